/* The grid: a tile for each camera, its newest picture and what can be said of it. */

import { digits, dropped, latency, number, say, shown, stateOf, stateText, tracksNow } from "./text.js";

export const MOST_TILES = 200;
const WITHOUT_PICTURE_MS = 5000; // how often one is asked for that a camera without frames may have left

const FITS = [[1, "one"], [4, "four"], [9, "nine"]]; // so many cameras are seen at once on a large screen

export class Tiles {
  #tiles = new Map(); // id -> Tile
  #list;
  #pictures;
  #remove;
  #sight;

  /** `pictures` draws, `remove(id)` is called when a camera is to be removed. */
  constructor(list, pictures, remove) {
    this.#list = list;
    this.#pictures = pictures;
    this.#remove = remove;
    this.#sight = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        const tile = this.#tiles.get(target.dataset.id);
        if (tile !== undefined) tile.inSight = isIntersecting;
      }
    });
  }

  /** One tile a status, in their order; those of cameras that are gone go too. */
  update(statuses) {
    const some = statuses.slice(0, MOST_TILES);
    this.#list.dataset.fit = FITS.find(([most]) => some.length <= most)?.[1] ?? "many";
    const ids = new Set(some.map((status) => status.id));
    for (const id of this.#tiles.keys()) if (!ids.has(id)) this.#drop(id);
    some.forEach((status, place) => {
      const tile = this.#tiles.get(status.id) ?? this.#make(status.id);
      const there = this.#list.children[place] ?? null;
      if (there !== tile.node) this.#list.insertBefore(tile.node, there);
      tile.update(status);
    });
  }

  focus(id) {
    this.#tiles.get(id)?.node.querySelector(".open").focus();
  }

  #make(id) {
    const tile = new Tile(id, () => this.#remove(id));
    this.#tiles.set(id, tile);
    this.#sight.observe(tile.node);
    this.#pictures.watch(tile.canvas, id, () => tile.wait());
    return tile;
  }

  #drop(id) {
    const { node, canvas } = this.#tiles.get(id);
    this.#tiles.delete(id);
    this.#sight.unobserve(node);
    this.#pictures.forget(canvas);
    node.remove();
  }
}

class Tile {
  inSight = false;
  #status = {};

  constructor(id, remove) {
    this.node = document.getElementById("tile").content.firstElementChild.cloneNode(true);
    this.node.dataset.id = id;
    this.canvas = this.node.querySelector("canvas");
    const name = shown(id);
    say(this.node.querySelector("h2 bdi"), name);
    this.node.querySelector("h2").title = name;
    const open = this.node.querySelector(".open");
    open.href = `#/camera/${encodeURIComponent(id)}`;
    open.setAttribute("aria-label", `Show ${name} large`);
    const button = this.node.querySelector(".remove");
    button.setAttribute("aria-label", `Remove ${name}`);
    button.title = "Remove";
    button.addEventListener("click", remove);
  }

  /** ms between two pictures, or null while none is wanted. */
  wait() {
    if (!this.inSight) return null;
    if (stateOf(this.#status) === "live") return 1000 / Math.max(number(this.#status.fps_out) ?? 1, 1);
    return this.canvas.dataset.pictures === undefined ? WITHOUT_PICTURE_MS : null;
  }

  update(status) {
    this.#status = status;
    showState(this.node.querySelector(".badge"), status);
    showPicture(this.node.querySelector(".picture"), status, this.canvas.dataset.pictures !== undefined);
    const came = number(status.fps_in) === null ? "" : ` of ${digits(status.fps_in, 1)}`;
    this.#fact("fps", digits(status.fps_out, 1), came);
    this.#fact("latency", latency(status));
    this.#fact("tracks", tracksNow(status));
    const { total, reasons } = dropped(status);
    this.#fact("dropped", digits(total));
    const list = this.node.querySelector(".reasons");
    showList(list, reasons.map(([reason, count]) => `${digits(count)} ${reason}`));
  }

  #fact(name, value, aside = "") {
    const place = this.node.querySelector(`[data-is="${name}"]`);
    if (place.textContent === value + aside) return;
    place.textContent = value;
    if (aside === "") return;
    const small = document.createElement("small");
    small.textContent = aside;
    place.append(small);
  }
}

export function showState(badge, status) {
  if (badge.dataset.state !== stateOf(status)) badge.dataset.state = stateOf(status);
  say(badge, stateText(status));
}

/** Over a picture: why there is none, or why it stands still. */
export function showPicture(picture, status, any) {
  const state = stateOf(status);
  const reason = shown(status.reason, 300);
  const text = {
    live: any ? "" : "Waiting for the first picture.",
    connecting: reason || "Connecting.",
    reconnecting: reason || "No frame comes any more.",
    ended: reason || "The stream has ended.",
    stopped: reason || "The stream was stopped.",
    failed: reason || "The stream failed.",
  }[state];
  picture.classList.toggle("dead", state !== "live");
  const place = picture.querySelector(".no-picture");
  place.hidden = text === "";
  say(place, text);
}

function showList(list, texts) {
  while (list.children.length > texts.length) list.lastElementChild.remove();
  while (list.children.length < texts.length) list.append(document.createElement("li"));
  texts.forEach((text, place) => say(list.children[place], text));
}
