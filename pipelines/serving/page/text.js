/* What comes from the network, as text for people: hostile names are cut and made harmless, numbers are checked. */

// Control and direction marks: a name with one could reorder the words around it, or look like another name.
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
const REASONS = {
  queue_full_oldest: "queue full, oldest",
  queue_full_newest: "queue full, newest",
  damaged: "damaged",
  stopped: "stopped",
  restarted: "restarted",
};
const MOST_REASONS = 12;
const STATES = ["connecting", "live", "reconnecting", "ended", "failed", "stopped"];

/** Any value as one short line; what is not a string gives "". */
export function shown(value, most = 120) {
  if (typeof value !== "string") return "";
  const letters = Array.from(value.slice(0, 2 * most).replace(INVISIBLE, "\ufffd"));
  const whole = letters.length <= most && value.length <= 2 * most;
  return whole ? letters.join("") : `${letters.slice(0, most - 1).join("")}…`;
}

/** A finite number, or null. */
export function number(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}

/** 3 -> "3", 12345 -> "12,345", 0.52 -> "0.5" with one place; no number -> "–". Never long. */
export function digits(value, places = 0) {
  const known = number(value);
  if (known === null) return "–";
  if (Math.abs(known) >= 1e12) return known.toExponential(1);
  return known.toLocaleString("en", { minimumFractionDigits: places, maximumFractionDigits: places });
}

/** Milliseconds with as many digits as matter: "84 ms", "2.4 s". */
export function milliseconds(value) {
  const known = number(value);
  if (known === null) return "–";
  return known < 1000 ? `${digits(known)} ms` : `${digits(known / 1000, 1)} s`;
}

/** "84 / 130 ms" */
export function latency(status) {
  const { p50, p95 } = status.latency_ms ?? {};
  if (number(p50) === null || number(p95) === null) return "–";
  return p95 < 1000 ? `${digits(p50)} / ${digits(p95)} ms` : `${digits(p50 / 1000, 1)} / ${digits(p95 / 1000, 1)} s`;
}

/** Seconds as "4 s", "2 min 5 s", "3 h 12 min". */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(number(seconds) ?? 0));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
}

/** How many tracks its picture shows: of a camera that is away there is none, whatever the last one showed. */
export function tracksNow(status) {
  return stateOf(status) === "live" ? digits(status.tracks) : "–";
}

export function stateOf(status) {
  return STATES.includes(status.state) ? status.state : "failed";
}

/** "live", "reconnecting in 4 s", ... */
export function stateText(status) {
  const state = stateOf(status);
  const wait = number(status.retry_in_s);
  return state === "reconnecting" && wait !== null && wait > 0 ? `reconnecting in ${duration(Math.ceil(wait))}` : state;
}

/** All dropped frames, and why: { total, reasons: [["queue full, oldest", 12], ...] }, the most first, MOST_REASONS of
 * them at most. */
export function dropped(status) {
  const counts = status.frames?.dropped;
  const known = Object.entries(counts !== null && typeof counts === "object" ? counts : {})
    .filter(([, count]) => number(count) !== null && count > 0)
    .sort((a, b) => b[1] - a[1]);
  const named = ([reason, count]) => [Object.hasOwn(REASONS, reason) ? REASONS[reason] : shown(reason, 40), count];
  return {
    total: known.reduce((sum, [, count]) => sum + count, 0),
    reasons: known.slice(0, MOST_REASONS).map(named),
  };
}

/** Sets an element's text where it changed: screen readers are not told the same again, nothing is laid out anew. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
