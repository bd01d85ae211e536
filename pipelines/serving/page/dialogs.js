/* Adding a camera, removing one, giving a token: each says what went wrong where it was asked for. */

import { ask, Refused, streamPath } from "./server.js";
import { say, shown } from "./text.js";

/** Wires the three dialogs; `changed(id)` is called when a camera was added, or with null removed, `signedIn()` when a
 * token was taken. */
export class Dialogs {
  #add = prepare("add-dialog", (form) => this.#adding(form));
  #remove = prepare("remove-dialog", () => this.#removing());
  #token = prepare("token-dialog", (form) => this.#signingIn(form));
  #changed;
  #signedIn;
  #id = null; // the camera to be removed

  constructor(changed, signedIn) {
    this.#changed = changed;
    this.#signedIn = signedIn;
    const { kind, url } = this.#add.querySelector("form").elements;
    for (const choice of kind) {
      choice.addEventListener("change", () => {
        url.disabled = choice.value === "push"; // only the one that is chosen now gets this event
        document.getElementById("add-url").hidden = url.disabled;
      });
    }
  }

  add() {
    open(this.#add);
  }

  remove(id) {
    this.#id = id;
    say(this.#remove.querySelector("h2 bdi"), shown(id));
    open(this.#remove);
  }

  token() {
    if (!this.#token.open) open(this.#token);
  }

  async #adding({ id, url, policy, queue }) {
    const body = { id: id.value.trim(), policy: policy.value, queue: Number(queue.value) };
    if (!url.disabled) body.url = url.value.trim();
    await ask("POST", "streams", { body });
    this.#add.querySelector("form").reset();
    url.disabled = document.getElementById("add-url").hidden = false;
    this.#changed(body.id);
  }

  async #removing() {
    try {
      await ask("DELETE", streamPath(this.#id));
    } catch (error) {
      if (error.status !== 404) throw error; // gone already is what was wanted
    }
    this.#changed(null);
  }

  async #signingIn({ token }) {
    await ask("POST", "login", { body: { token: token.value } }); // it comes back as a cookie that no script can read
    token.value = "";
    this.#signedIn();
  }
}

/** A dialog whose submit runs `action(elements)`, stays open with the reason where that fails, and closes where not. */
function prepare(name, action) {
  const dialog = document.getElementById(name);
  const form = dialog.querySelector("form");
  const submit = form.querySelector("[type=submit]");
  dialog.querySelector("[data-do=close]").addEventListener("click", () => dialog.close());
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    submit.disabled = true;
    complain(dialog, "");
    try {
      await action(form.elements);
      dialog.close();
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      complain(dialog, error.message);
    } finally {
      submit.disabled = false;
    }
  });
  return dialog;
}

function open(dialog) {
  complain(dialog, "");
  dialog.showModal();
}

function complain(dialog, text) {
  const place = dialog.querySelector(".error");
  place.hidden = text === "";
  say(place, text);
}
