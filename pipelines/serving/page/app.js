/* The page: asks for the cameras' statuses once a second, and shows all of them, or one large (#/camera/NAME).

In:     GET streams, POST streams, DELETE streams/ID; streams/ID/overlay.jpg, overlay.mjpeg and tracks
State:  the last answer, two minutes of latencies a camera, one minute of tracks of the camera that is large
Limits: what is kept and drawn is bounded whatever the server sends; every text of it is set as text, never as HTML */

import { Camera } from "./camera.js";
import { Dialogs } from "./dialogs.js";
import { Latencies } from "./latencies.js";
import { Pictures } from "./pictures.js";
import { statuses } from "./server.js";
import { digits, number, say, shown, stateOf } from "./text.js";
import { MOST_TILES, Tiles } from "./tiles.js";

const ASK_MS = 1000;
const LONGEST_WAIT_MS = 8000;

const part = (id) => document.getElementById(id);
const pictures = new Pictures();
const latencies = new Latencies();
const camera = new Camera(part("camera"), latencies);
const dialogs = new Dialogs(changed, signedIn);
const tiles = new Tiles(part("tiles"), pictures, (id) => dialogs.remove(id));

let known = []; // the last answer
let answered = null; // when it came, as a Date
let added = null; // the camera that was added last, to be shown when it comes
let locked = false; // no token was taken yet
let wake = () => {};

for (const id of ["add", "add-first"]) part(id).addEventListener("click", () => dialogs.add());
part("unlock").addEventListener("click", () => dialogs.token());
part("camera-remove").addEventListener("click", () => dialogs.remove(camera.id));
document.addEventListener("visibilitychange", () => wake());
document.addEventListener("keydown", ({ key }) => {
  if (key === "Escape" && camera.id !== null && document.querySelector("dialog[open]") === null) location.hash = "#/";
});
window.addEventListener("hashchange", route);
route();
pictures.start();
follow();

/** Ask, show, wait; for ever. */
async function follow() {
  let wait = ASK_MS;
  for (;;) {
    if (!document.hidden && !locked) {
      try {
        take(await statuses());
        wait = ASK_MS;
      } catch (error) {
        wait = lost(error, wait);
      }
    }
    await new Promise((done) => {
      wake = done;
      setTimeout(done, wait);
    });
  }
}

function take(list) {
  const wasLost = !part("trouble").hidden;
  part("trouble").hidden = part("locked").hidden = true;
  document.body.classList.remove("stale");
  answered = new Date();
  announce(list);
  known = list;
  latencies.add(list.slice(0, MOST_TILES));
  tiles.update(list);
  part("empty").hidden = list.length > 0;
  part("more").hidden = list.length <= MOST_TILES;
  say(part("more"), `${digits(list.length - MOST_TILES)} more cameras are not shown.`);
  const rate = list.reduce((sum, { fps_out: fps }) => sum + (number(fps) ?? 0), 0);
  const live = list.filter((status) => stateOf(status) === "live").length;
  const word = list.length === 1 ? "camera" : "cameras";
  say(part("summary"), list.length ? `${list.length} ${word}, ${live} live · ${digits(rate, 1)} frames a second` : "");
  if (camera.id !== null) {
    camera.update(find(camera.id));
    if (wasLost) camera.restart();
  }
  if (added !== null && find(added) !== undefined) {
    tiles.focus(added);
    added = null;
  }
}

/** Say what is wrong; gives how long to wait before asking again. */
function lost(error, wait) {
  if (error.status === 401) {
    locked = true;
    tiles.update([]);
    part("empty").hidden = true;
    part("locked").hidden = false;
    dialogs.token();
    return ASK_MS;
  }
  const since = answered === null ? "" : ` What is shown is of ${answered.toLocaleTimeString()}.`;
  document.body.classList.toggle("stale", answered !== null);
  part("trouble").hidden = false;
  say(part("trouble"), `${error.message ?? "Something went wrong."} Trying again.${since}`);
  return Math.min(2 * wait, LONGEST_WAIT_MS);
}

/** Tell those who do not see it when a camera changes its state. */
function announce(list) {
  const before = new Map(known.map((status) => [status.id, stateOf(status)]));
  const news = list
    .filter((status) => before.has(status.id) && before.get(status.id) !== stateOf(status))
    .map((status) => `${shown(status.id, 40)}: ${stateOf(status)}`);
  if (news.length > 0) say(part("announce"), news.slice(0, 5).join(", "));
}

function route() {
  const id = cameraOfAddress();
  const before = camera.id;
  part("grid").hidden = id !== null;
  document.title = id === null ? "Maskstream" : `${shown(id, 60)} · Maskstream`;
  if (id === null) {
    camera.close();
    if (before !== null) tiles.focus(before);
    return;
  }
  camera.open(id);
  if (answered !== null) camera.update(find(id));
}

function cameraOfAddress() {
  const match = /^#\/camera\/(.+)$/.exec(location.hash);
  try {
    return match === null ? null : decodeURIComponent(match[1]);
  } catch {
    return null; // no address of ours: percent signs that stand for nothing
  }
}

function find(id) {
  return known.find((status) => status.id === id);
}

function changed(id) {
  added = id;
  if (id === null || camera.id !== null) location.hash = "#/";
  wake();
}

function signedIn() {
  locked = false;
  part("locked").hidden = true;
  wake();
}
