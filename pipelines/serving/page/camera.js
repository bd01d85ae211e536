/* One camera large: its picture as a stream, its figures, the timeline of its tracks. */

import { draw } from "./pictures.js";
import { ask, pictures, socketAddress, streamPath } from "./server.js";
import { digits, dropped, duration, milliseconds, number, say, shown, stateOf, tracksNow } from "./text.js";
import { showPicture, showState } from "./tiles.js";
import { Timeline, TrackHistory } from "./timeline.js";

const LARGE_SIDE = 1920; // pixels
const REDRAW_MS = 250;
const SHORTEST_RETRY_MS = 500;
const LONGEST_RETRY_MS = 8000;
const LARGEST_RECORD = 8 << 20; // letters of one record of tracks
const STREAM_OVER = 1000; // the code with which a socket closes when its stream has ended

export class Camera {
  #section;
  #latencies;
  #timeline;
  #id = null;
  #view = null; // what is open for this camera: ended by its AbortController
  #status = null;

  constructor(section, latencies) {
    this.#section = section;
    this.#latencies = latencies;
    this.#timeline = new Timeline(section.querySelector("#timeline-rows"));
    document.addEventListener("visibilitychange", () => this.restart());
  }

  get id() {
    return this.#id;
  }

  open(id) {
    this.close();
    this.#id = id;
    const name = shown(id);
    say(this.#part("#camera-name bdi"), name);
    const canvas = this.#part("#camera-picture canvas");
    canvas.setAttribute("aria-label", `Picture of ${name}, with masks`);
    canvas.width = canvas.width; // clears it: what it showed was another camera
    delete canvas.dataset.pictures;
    this.#section.hidden = false;
    this.restart();
    this.#part("#camera-name").focus();
  }

  close() {
    this.#view?.end.abort();
    this.#view = this.#id = this.#status = null;
    this.#section.hidden = true;
  }

  /** The newest status of this camera; undefined: the server does not know it. */
  update(status) {
    const before = this.#status;
    this.#status = status ?? { state: "ended", reason: "The server has no camera of this name." };
    const [was, is] = [before, this.#status].map((one) => number(one?.started_at));
    const other = was !== null && is !== null && was !== is; // another stream has the name now
    if (other) this.#view?.history.clear();
    const back = before !== null && (other || stateOf(before) !== "live") && stateOf(this.#status) === "live";
    if (back) this.restart(); // what ended with the stream begins anew, at once
    showState(this.#part("#camera-state"), this.#status);
    const canvas = this.#part("#camera-picture canvas");
    showPicture(this.#part("#camera-picture"), this.#status, canvas.dataset.pictures !== undefined);
    say(this.#part("#camera-url"), this.#status.kind === "push" ? "sent by a program" : shown(this.#status.url, 300));
    this.#part("#camera-remove").hidden = status === undefined;
    showFigures(this.#part("#camera-figures"), figures(this.#status));
    this.#latencies.draw(this.#part("#camera-latency"), this.#id);
  }

  #part(selector) {
    return this.#section.querySelector(selector);
  }

  /** Begin picture and tracks anew, if a camera is open; nothing of them goes on while the page is hidden. */
  restart() {
    this.#view?.end.abort();
    if (this.#id === null || document.hidden) return;
    const view = { end: new AbortController(), history: this.#view?.history ?? new TrackHistory() };
    this.#view = view;
    this.#showPictures(this.#id, view.end.signal);
    this.#followTracks(this.#id, view);
    const clock = setInterval(() => this.#timeline.draw(view.history), REDRAW_MS);
    view.end.signal.addEventListener("abort", () => clearInterval(clock));
    this.#timeline.draw(view.history);
  }

  async #showPictures(id, over) {
    const canvas = this.#part("#camera-picture canvas");
    let wait = SHORTEST_RETRY_MS;
    while (!over.aborted) {
      try {
        const response = await ask("GET", streamPath(id, "/overlay.mjpeg"), { over });
        for await (const blob of pictures(response)) {
          const picture = await createImageBitmap(blob);
          if (over.aborted) return picture.close();
          draw(picture, canvas, LARGE_SIDE);
          wait = SHORTEST_RETRY_MS;
        }
      } catch {
        // the picture stands still; the state beside it, which is asked for separately, says why
      }
      await pause(wait, over);
      wait = Math.min(2 * wait, LONGEST_RETRY_MS);
    }
  }

  async #followTracks(id, { end: { signal: over }, history }) {
    const note = this.#part("#timeline-note");
    let wait = SHORTEST_RETRY_MS;
    while (!over.aborted) {
      const code = await records(socketAddress(streamPath(id, "/tracks")), over, (record) => {
        wait = SHORTEST_RETRY_MS;
        // before the first status nobody knows which tracks are drawn
        if (this.#status !== null) history.add(record, number(this.#status.min_score) ?? 0);
        say(note, "");
      });
      if (over.aborted) return;
      if (code === STREAM_OVER) return say(note, "The stream of tracks has ended.");
      say(note, `The stream of tracks was cut; next try in ${duration(Math.ceil(wait / 1000))}.`);
      await pause(wait, over);
      wait = Math.min(2 * wait, LONGEST_RETRY_MS);
    }
  }
}

/** Hands on every record of a socket until it closes; gives the code with which it did. */
function records(address, over, take) {
  return new Promise((closed) => {
    const socket = new WebSocket(address);
    const close = () => socket.close();
    over.addEventListener("abort", close);
    socket.addEventListener("message", ({ data }) => {
      if (typeof data !== "string" || data.length > LARGEST_RECORD) return;
      try {
        take(JSON.parse(data));
      } catch {
        // not JSON: no record of ours, and the next may be one
      }
    });
    socket.addEventListener("close", ({ code }) => {
      over.removeEventListener("abort", close);
      closed(code);
    });
  });
}

/** What can be said of a stream: [label, value, how it hangs together with those above]. */
function figures(status) {
  const frames = status.frames ?? {};
  const { total, reasons } = dropped(status);
  const began = number(status.started_at);
  return [
    ["Frames a second", `${digits(status.fps_out, 1)} of ${digits(status.fps_in, 1)}`],
    ["Latency p50", milliseconds(status.latency_ms?.p50)],
    ["Latency p95", milliseconds(status.latency_ms?.p95)],
    ["Tracks now", tracksNow(status)],
    ["Size", number(status.width) === null ? "–" : `${digits(status.width)} × ${digits(status.height)}`],
    ["Frames in", digits(frames.in)],
    ["out", digits(frames.out), "part"],
    ["in flight", digits(frames.in_flight), "part"],
    ["dropped", digits(total), "part"],
    ...reasons.map(([reason, count]) => [reason, digits(count), "part of-part"]),
    ["Reconnects", digits(status.reconnects)],
    ["Since", began === null ? "–" : new Date(began * 1000).toLocaleString()],
  ];
}

function showFigures(list, rows) {
  while (list.children.length > rows.length) list.lastElementChild.remove();
  while (list.children.length < rows.length) {
    const row = document.createElement("div");
    row.append(document.createElement("dt"), document.createElement("dd"));
    list.append(row);
  }
  rows.forEach(([label, value, kind = ""], place) => {
    const row = list.children[place];
    row.className = kind;
    say(row.firstElementChild, label);
    say(row.lastElementChild, value);
  });
}

/** Waits, until `over` ends at most. */
function pause(ms, over) {
  return new Promise((done) => {
    const finish = () => {
      clearTimeout(timer);
      over.removeEventListener("abort", finish);
      done();
    };
    const timer = setTimeout(finish, ms);
    over.addEventListener("abort", finish);
  });
}
