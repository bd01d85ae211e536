/* The newest picture of every camera in sight, in turns.

Two requests are under way at most, thirty a second begin. Each camera has its turn as often as it gives frames; with
many, or on a slow line, the turns come more slowly, and no picture is ever late. Nothing is fetched while the page is
hidden. */

import { ask, streamPath } from "./server.js";

const LANES = 2;
const REST_MS = 1000 / 30; // between two requests of all lanes: a server takes so many of one token
const SHORTEST_MS = 80;
const AFTER_ERROR_MS = 2000;
const IDLE_MS = 15;
const TILE_SIDE = 800; // pixels that the picture of a tile is kept with: 1.4 MB

export class Pictures {
  #watched = new Map(); // canvas -> { id, wait, due, busy }
  #running = false;
  #rest = 0; // until when no request begins

  /** Draw camera `id` on `canvas`; `wait()` gives ms between two pictures, or null while none is wanted. */
  watch(canvas, id, wait) {
    this.#watched.set(canvas, { id, wait, due: 0, busy: false });
  }

  forget(canvas) {
    this.#watched.delete(canvas);
  }

  start() {
    if (this.#running) return;
    this.#running = true;
    for (let lane = 0; lane < LANES; lane++) this.#lane();
  }

  async #lane() {
    for (;;) {
      const next = document.hidden ? null : this.#next();
      if (next === null) await pause(IDLE_MS);
      else await this.#fetch(...next);
    }
  }

  /** Who is due for the longest, or null. */
  #next() {
    const now = performance.now();
    if (now < this.#rest) return null;
    let best = null;
    for (const [canvas, turn] of this.#watched) {
      if (turn.busy || turn.due > now || (best !== null && best[1].due <= turn.due)) continue;
      if (turn.wait() !== null) best = [canvas, turn];
    }
    if (best !== null) this.#rest = now + REST_MS;
    return best;
  }

  async #fetch(canvas, turn) {
    const begun = performance.now();
    turn.busy = true;
    try {
      const response = await ask("GET", streamPath(turn.id, "/overlay.jpg"));
      const picture = await createImageBitmap(await response.blob());
      draw(picture, canvas, TILE_SIDE);
      turn.due = begun + Math.max(SHORTEST_MS, turn.wait() ?? 0);
    } catch {
      turn.due = performance.now() + AFTER_ERROR_MS; // there is none yet, or the camera is gone: its status says which
    } finally {
      turn.busy = false;
    }
  }
}

/** Draws a picture, no side of it longer than `most` pixels, and lets go of it. */
export function draw(picture, canvas, most) {
  const scale = Math.min(1, most / Math.max(picture.width, picture.height));
  const [width, height] = [Math.round(picture.width * scale), Math.round(picture.height * scale)];
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").drawImage(picture, 0, 0, width, height);
  picture.close();
  canvas.dataset.pictures = String(Number(canvas.dataset.pictures ?? 0) + 1);
}

function pause(ms) {
  return new Promise((done) => setTimeout(done, ms));
}
