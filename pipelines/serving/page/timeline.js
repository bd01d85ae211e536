/* When each track of a camera was in the picture, over the last minute. */

import { trackColor } from "./colors.js";
import { digits, duration, number, say, shown } from "./text.js";

export const SPAN_S = 60;
const MOST_TRACKS = 64;
const MOST_SPELLS = 64; // times that one track came back within the span
const MOST_INSTANCES = 256; // of one frame
const LONGEST_GAP_S = 5; // between two frames that both show a track

/** Which tracks were seen when: bounded, whatever a camera shows. */
export class TrackHistory {
  #tracks = new Map(); // id -> { id, label, score, spells: [[from, to], ...] }
  #shown = new Set(); // ids of the frame before
  #heard = 0; // performance.now() of it
  now = 0; // when it was captured, by the server's clock

  /** Take in a record of the tracks stream; what is not one is left out, and tracks that are not drawn either. */
  add(record, leastScore = 0) {
    const time = number(record?.captured_at);
    if (time === null || !Array.isArray(record.instances)) return;
    if (time < this.now - LONGEST_GAP_S) this.clear(); // the camera's clock was put back
    const continued = time - this.now <= LONGEST_GAP_S;
    this.now = Math.max(this.now, time);
    this.#heard = performance.now();
    const ids = new Set();
    for (const instance of record.instances.slice(0, MOST_INSTANCES)) {
      const id = instance?.track_id;
      if (!Number.isSafeInteger(id) || ids.has(id) || instance.score < leastScore) continue;
      ids.add(id);
      this.#see(instance, time, continued && this.#shown.has(id));
    }
    this.#shown = ids;
    this.#forget();
  }

  /** What time it is where the records come from: it goes on when they do not. */
  get clock() {
    return this.now === 0 ? 0 : this.now + (performance.now() - this.#heard) / 1000;
  }

  /** The tracks of the span before `now`: those in the picture first, then by when they were last seen. */
  rows(now = this.now) {
    const flows = now - this.now <= LONGEST_GAP_S; // after that the last picture is no picture of now
    return [...this.#tracks.values()]
      .map((track) => ({ ...track, here: flows && this.#shown.has(track.id), last: track.spells.at(-1)[1] }))
      .filter(({ last }) => last >= now - SPAN_S)
      .sort((a, b) => b.here - a.here || (a.here ? a.id - b.id : b.last - a.last));
  }

  clear() {
    this.#tracks.clear();
    this.#shown.clear();
    this.now = 0;
  }

  #see({ track_id: id, category, score }, time, continues) {
    const track = this.#tracks.get(id) ?? { id, spells: [], seconds: 0 };
    this.#tracks.set(id, track);
    track.label = shown(category, 40);
    track.score = number(score);
    const last = track.spells.at(-1);
    if (continues && last !== undefined) {
      track.seconds += Math.max(0, time - last[1]);
      last[1] = Math.max(last[1], time);
    } else {
      track.spells.push([time, time]);
      if (track.spells.length > MOST_SPELLS) track.spells.shift();
    }
  }

  #forget() {
    for (const [id, { spells }] of this.#tracks) {
      while (spells.length > 0 && spells[0][1] < this.now - SPAN_S) spells.shift();
      if (spells.length === 0) this.#tracks.delete(id);
    }
    if (this.#tracks.size <= MOST_TRACKS) return;
    const oldest = this.rows().slice(MOST_TRACKS);
    for (const { id } of oldest) this.#tracks.delete(id);
  }
}

/** The history as a table: one row a track, its line drawn, its times as words beside it. */
export class Timeline {
  #body;
  #rows = new Map(); // id -> row

  constructor(body) {
    this.#body = body;
  }

  draw(history) {
    const now = history.clock;
    const tracks = history.rows(now);
    const ids = new Set(tracks.map(({ id }) => id));
    for (const [id, row] of this.#rows) {
      if (ids.has(id)) continue;
      row.node.remove();
      this.#rows.delete(id);
    }
    tracks.forEach((track, place) => {
      const row = this.#rows.get(track.id) ?? this.#make(track.id);
      const there = this.#body.children[place] ?? null;
      if (there !== row.node) this.#body.insertBefore(row.node, there);
      row.update(track, now);
    });
  }

  #make(id) {
    const row = new Row(id);
    this.#rows.set(id, row);
    return row;
  }
}

class Row {
  #score = cell("td", "number");
  #label = cell("td", "label");
  #seconds = cell("td", "number");
  #canvas = document.createElement("canvas");

  constructor(id) {
    this.color = trackColor(id);
    this.node = document.createElement("tr");
    const head = cell("th", "");
    head.scope = "row";
    const swatch = document.createElement("i");
    swatch.style.backgroundColor = this.color;
    head.append(swatch, `#${id}`);
    const line = cell("td", "line");
    this.#canvas.setAttribute("aria-hidden", "true");
    line.append(this.#canvas);
    this.node.append(head, this.#label, this.#score, this.#seconds, line);
  }

  update({ label, score, seconds, spells, here }, now) {
    this.node.classList.toggle("gone", !here);
    say(this.#label, label);
    say(this.#score, digits(score, 2));
    say(this.#seconds, duration(seconds));
    const [context, width, height] = sized(this.#canvas);
    context.fillStyle = this.color;
    context.globalAlpha = here ? 1 : 0.55;
    for (const [from, to] of spells) {
      const left = Math.max(0, (1 - (now - from) / SPAN_S) * width);
      const right = (1 - (now - to) / SPAN_S) * width;
      context.beginPath();
      context.roundRect(left, height * 0.18, Math.max(right - left, 2), height * 0.64, 3);
      context.fill();
    }
  }
}

/** A canvas's context, cleared, in CSS pixels, sharp on every screen; its width and height. */
export function sized(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = Math.min(window.devicePixelRatio || 1, 3);
  const [columns, rows] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== columns || canvas.height !== rows) [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function cell(kind, className) {
  const node = document.createElement(kind);
  node.className = className;
  return node;
}
