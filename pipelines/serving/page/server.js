/* Asking the server: JSON over fetch, each answer within ten seconds, each failure as one sentence.

All addresses are relative to the page, so that it works below any path. Browsers open six connections to a host, over
all windows of one page together: nothing here holds one for long, tracks come by WebSocket (which does not count), and
only the large picture is a stream. */

import { shown } from "./text.js";

const PATIENCE_MS = 10000;
const LARGEST_PART = 16 << 20; // bytes of one picture of a stream

/** What the server, or the way to it, refused: `status` is 0 where there was no answer. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function streamPath(id, what = "") {
  return `streams/${encodeURIComponent(id)}${what}`;
}

export function socketAddress(path) {
  const address = new URL(path, document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  return address.href;
}

/** The response to a request; throws Refused, also for every status from 400 on.
 *
 * With `over`, the body may go on for as long as that signal lets it. */
export async function ask(method, path, { body, over } = {}) {
  const headers = {};
  const late = new AbortController();
  const timer = setTimeout(() => late.abort(), PATIENCE_MS);
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      method, headers, cache: "no-store", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: over === undefined ? late.signal : AbortSignal.any([over, late.signal]),
    });
  } catch {
    const slow = "The server did not answer within 10 s.";
    throw new Refused(0, late.signal.aborted ? slow : "The server cannot be reached.");
  } finally {
    clearTimeout(timer);
  }
  if (!response.ok) throw new Refused(response.status, await reason(response));
  return response;
}

/** The cameras' statuses, well-formed ones only. */
export async function statuses() {
  const response = await ask("GET", "streams");
  let answer;
  try {
    answer = await response.json();
  } catch {
    throw new Refused(0, "The server's list of cameras is no JSON.");
  }
  const list = Array.isArray(answer?.streams) ? answer.streams : [];
  return list.filter((status) => typeof status?.id === "string" && !["", ".", ".."].includes(status.id));
}

/** The pictures of a multipart response as they come, each a Blob; ends or throws when the response does. */
export async function* pictures(response) {
  let bytes = new Uint8Array(0);
  for await (const chunk of chunks(response.body.getReader())) {
    bytes = joined(bytes, chunk);
    for (let part = firstPart(bytes); part !== null; part = firstPart(bytes)) {
      yield new Blob([bytes.subarray(part.from, part.to)], { type: "image/jpeg" });
      bytes = bytes.slice(part.to);
    }
    if (bytes.length > LARGEST_PART) throw new Refused(0, "The server sent no picture that can be read.");
  }
}

async function* chunks(reader) {
  try {
    for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) yield value;
  } finally {
    reader.cancel().catch(() => {}); // who stops reading closes the connection; it may be broken already
  }
}

/** Where the first picture lies: behind a blank line, as long as its Content-Length says; null: not whole yet. */
function firstPart(bytes) {
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 2048));
  const end = head.indexOf("\r\n\r\n");
  if (end < 0) return null;
  const length = Number(/^content-length:\s*(\d+)\s*$/im.exec(head.slice(0, end))?.[1]);
  if (!(length <= LARGEST_PART)) throw new Refused(0, "The server sent a picture without its length.");
  return bytes.length < end + 4 + length ? null : { from: end + 4, to: end + 4 + length };
}

function joined(a, b) {
  if (a.length === 0) return b;
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

async function reason(response) {
  try {
    const { error } = await response.json();
    if (typeof error === "string" && error !== "") return shown(error, 600);
  } catch {
    // not JSON: a proxy's own page, of which the number says enough
  }
  return `The server answered ${response.status}.`;
}
