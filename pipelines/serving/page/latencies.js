/* Latency over the last two minutes, for every camera, and its drawing. */

import { sized } from "./timeline.js";
import { milliseconds, number } from "./text.js";

const SPAN_MS = 120000;
const MOST_POINTS = 240;

export class Latencies {
  #points = new Map(); // id -> [{ at, p50, p95 }, ...]

  /** Take in the statuses; cameras that are not among them are forgotten. */
  add(statuses) {
    const now = performance.now();
    const before = this.#points;
    this.#points = new Map();
    for (const status of statuses) {
      const points = (before.get(status.id) ?? []).filter(({ at }) => at > now - SPAN_MS).slice(-MOST_POINTS);
      points.push({ at: now, p50: number(status.latency_ms?.p50), p95: number(status.latency_ms?.p95) });
      this.#points.set(status.id, points);
    }
  }

  draw(canvas, id) {
    const points = this.#points.get(id) ?? [];
    const [context, width, height] = sized(canvas);
    const style = getComputedStyle(canvas);
    const most = roundAbove(Math.max(1, ...points.map(({ p95 }) => p95 ?? 0)));
    const now = performance.now();
    context.font = `12px ${style.fontFamily}`;
    context.strokeStyle = style.getPropertyValue("--line");
    const heightOf = (share) => Math.round((height - 1) * (1 - share)) + 0.5;
    for (const share of [0, 0.5, 1]) line(context, [[0, heightOf(share)], [width, heightOf(share)]]);
    for (const [key, color] of [["p95", "--wait"], ["p50", "--accent"]]) {
      context.strokeStyle = style.getPropertyValue(color);
      context.lineWidth = 2;
      const along = ({ at }) => (1 - (now - at) / SPAN_MS) * width;
      for (const run of runs(points, key))
        line(context, run.map((point) => [along(point), height - 2 - (point[key] / most) * (height - 4)]));
    }
    const measured = points.some(({ p95 }) => p95 !== null); // else there is nothing that the axis could measure
    for (const share of measured ? [0.5, 1] : []) {
      const text = milliseconds(most * share);
      context.fillStyle = style.getPropertyValue("--card"); // a line behind it would make it hard to read
      context.fillRect(0, heightOf(share) + 2, context.measureText(text).width + 6, 14);
      context.fillStyle = style.getPropertyValue("--quiet");
      context.fillText(text, 2, heightOf(share) + 13);
    }
  }
}

/** Points that follow each other and have a value: while a camera is away there is none, and no line. */
function runs(points, key) {
  const found = [[]];
  for (const point of points) {
    if (point[key] !== null) found.at(-1).push(point);
    else if (found.at(-1).length > 0) found.push([]);
  }
  return found.filter((run) => run.length > 0);
}

/** The next of 1, 2, 4, 10, 20, 40, 100, ... */
function roundAbove(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * ([1, 2, 4].find((step) => step * power >= value) ?? 10);
}

function line(context, points) {
  context.beginPath();
  for (const [x, y] of points) context.lineTo(x, y);
  context.stroke();
}
