/** One recording on the page: its player, its transcript as it arrives, and its buttons. */

import { clock, render } from "./formats.js";
import { copyText, saveFile } from "./take.js";
import { Player } from "./player.js";
import { Transcript } from "./transcript.js";

const TICK_MS = 200;
const template = document.getElementById("recording-template");

const STATES = {
  waiting: "Waiting",
  uploading: "Uploading",
  busy: "Server busy",
  transcribing: "Transcribing",
  done: "Done",
  failed: "Failed",
  cancelled: "Cancelled",
};

export class Card {
  #tick = null;

  /** `actions`: { again, cancel, remove }, each called with the recording; `announce(sentence)` for screen readers. */
  constructor(recording, { actions, announce }) {
    this.recording = recording;
    this.actions = actions;
    this.announce = announce;
    this.root = template.content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.root.querySelector(selector);
    this.#name();
    this.player = new Player(this.find(".player"), this.find(".player-note"), recording.file);
    this.transcript = new Transcript(this.find(".segments"), {
      onPlay: (time) => this.player.playFrom(time),
      onPause: () => this.player.toggle(),
    });
    this.#listen();
    this.show();
  }

  #name() {
    const { name } = this.recording;
    const id = `recording-${crypto.getRandomValues(new Uint32Array(1))[0]}`;
    this.find(".name").textContent = name;
    this.find(".name").id = id;
    this.root.setAttribute("aria-labelledby", id);
    this.find(".card-toggle").title = name;
    this.find(".remove").setAttribute("aria-label", `Remove ${name}`);
    this.find(".save-audio").hidden = !this.recording.fromMicrophone;
  }

  #listen() {
    const { recording, player, transcript } = this;
    recording.addEventListener("change", () => this.show());
    recording.addEventListener("reset", () => {
      transcript.clear();
      this.show();
    });
    recording.addEventListener("segment", ({ detail }) => transcript.append(detail));
    player.addEventListener("time", () => this.#follow());
    player.addEventListener("known", () => {
      recording.duration ??= player.duration;
      transcript.seekable = player.canPlay;
      this.show();
    });
    const on = (selector, action) => this.find(selector).addEventListener("click", action);
    on(".card-toggle", () => this.open(!this.isOpen));
    on(".remove", () => this.actions.remove(this));
    on(".cancel", () => this.actions.cancel(recording));
    on(".retry", () => this.actions.again(recording));
    on(".again", () => this.actions.again(recording));
    on(".copy", () => this.#copy());
    on(".save-audio", () => saveFile(recording.file, recording.name));
    for (const button of this.root.querySelectorAll("[data-format]")) {
      button.addEventListener("click", () => this.#download(button.dataset.format));
    }
  }

  get isOpen() {
    return this.find(".card-toggle").getAttribute("aria-expanded") === "true";
  }

  /** Unfold or fold it. */
  open(isOpen) {
    this.find(".card-toggle").setAttribute("aria-expanded", String(isOpen));
    this.find(".card-body").hidden = !isOpen;
    if (!isOpen) this.player.pause();
  }

  #follow() {
    this.player.show(this.recording.heard, this.transcript.mark(this.player.time));
  }

  /** Update the page to the recording's state. */
  show() {
    const { recording } = this;
    const { state } = recording;
    const hasWords = recording.words !== "";
    this.root.dataset.state = state;
    this.find(".state").textContent = this.#stateLine();
    this.#showProgress();
    this.#showFailure();
    this.find(".empty").hidden = !(state === "done" && !hasWords);
    this.find(".keys").hidden = !(state === "done" && hasWords && this.player.canPlay);
    this.find(".cancel").hidden = !recording.isUnderWay;
    this.find(".retry").hidden = !["failed", "cancelled"].includes(state);
    this.find(".again").hidden = state !== "done";
    this.find(".copy").hidden = this.find(".downloads").hidden = !(hasWords && !recording.isUnderWay);
    this.#follow();
    clearInterval(this.#tick);
    if (["transcribing", "busy"].includes(state)) this.#tick = setInterval(() => this.#showProgress(), TICK_MS);
  }

  #stateLine() {
    const { state, duration, elapsed, language } = this.recording;
    if (state !== "done") return STATES[state];
    const name = language && language !== "english" ? ` · ${language[0].toUpperCase()}${language.slice(1)}` : "";
    return `${clock(duration)} in ${seconds(elapsed)}${speed(duration, elapsed)}${name}`;
  }

  #showProgress() {
    const { state, uploaded, heard, duration, elapsed, retryAt } = this.recording;
    const box = this.find(".progress");
    const bar = this.find("progress");
    const [text, share] = {
      waiting: ["Waiting for the one before", null],
      uploading: [`Uploading, ${Math.floor(uploaded * 100)} %`, uploaded],
      busy: [`The server is busy. Trying again in ${Math.max(0, Math.ceil((retryAt - performance.now()) / 1000))} s`, null],
      transcribing: [
        duration ? `Transcribed ${clock(heard)} of ${clock(duration)}` : `Transcribed ${clock(heard)}`,
        heard && duration ? Math.min(1, heard / duration) : null,
      ],
    }[state] ?? ["", null];
    box.hidden = !text;
    this.find(".progress-text").textContent = text;
    this.find(".progress-speed").textContent =
      state === "transcribing" ? `${seconds(elapsed)}${speed(heard, elapsed)}` : "";
    if (share === null) bar.removeAttribute("value");
    else bar.value = share;
    bar.setAttribute("aria-label", text || "Progress");
  }

  #showFailure() {
    const { state, error, name } = this.recording;
    const box = this.find(".failure");
    if (state !== "failed") {
      box.replaceChildren();
      return;
    }
    const what = document.createElement("p");
    const strong = document.createElement("strong");
    strong.textContent = `${name} was not transcribed. `;
    what.append(strong, error.message);
    const rest = document.createElement("p");
    rest.className = "help";
    rest.textContent = ["Nothing is lost: the audio is still here.", error.requestId && `Request ${error.requestId}`]
      .filter(Boolean)
      .join(" ");
    box.replaceChildren(what, rest);
  }

  async #copy() {
    const label = this.find(".copy span");
    const copied = await copyText(this.recording.words);
    label.textContent = copied ? "Copied" : "Copying failed";
    this.announce(copied ? "The text is in the clipboard." : "The text could not be copied.");
    setTimeout(() => (label.textContent = "Copy text"), 2000);
  }

  #download(format) {
    const { recording } = this;
    const { language, languages, duration, segments, words: text } = recording;
    const stem = recording.name.replace(/\.[^.]*$/, "") || "transcript";
    saveFile(render({ language, languages, duration, text, segments }, format), `${stem}.${format}`);
  }

  /** Release everything. */
  close() {
    clearInterval(this.#tick);
    this.player.close();
    this.root.remove();
  }
}

function seconds(elapsed) {
  return elapsed < 60 ? `${elapsed.toFixed(1)} s` : clock(elapsed);
}

/** Speed relative to the sound itself. */
function speed(heard, elapsed) {
  if (!heard || !elapsed || !Number.isFinite(heard)) return "";
  const factor = heard / elapsed;
  return ` · ${factor < 10 ? factor.toFixed(1) : Math.round(factor)}× real time`;
}
