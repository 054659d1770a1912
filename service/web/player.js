/** Plays a recording: its sound, its waveform, its position. One recording plays at a time. */

import { clock } from "./formats.js";
import { NoWaveform, draw, measure, oncePerFrame } from "./waveform.js";

let playing = null;

export class Player extends EventTarget {
  #audio = new Audio();
  #peaks = null;
  #heard = 0;
  #region = null;
  #frame = 0;

  /** `root`: the element with the class player; `note`: for messages. Dispatches "time" and "known". */
  constructor(root, note, file) {
    super();
    const find = (selector) => root.querySelector(selector);
    Object.assign(this, { root, note, duration: null, canPlay: false });
    this.button = find(".play");
    this.canvas = find("canvas");
    this.range = find(".seek");
    this.now = find(".now");
    this.length = find(".duration");
    this.redraw = oncePerFrame(() => this.#draw());
    this.url = URL.createObjectURL(file);
    this.#listen();
    this.#audio.preload = "metadata";
    this.#audio.src = this.url;
    this.#measure(file);
  }

  #listen() {
    const audio = this.#audio;
    audio.addEventListener("loadedmetadata", () => this.#playable());
    audio.addEventListener("error", () => this.#say("This browser cannot play this file. Its transcript is not affected."));
    audio.addEventListener("timeupdate", () => this.#moved());
    audio.addEventListener("seeked", () => this.#moved());
    for (const name of ["play", "pause", "ended"]) audio.addEventListener(name, () => this.#switched());
    this.button.addEventListener("click", () => this.toggle());
    this.range.addEventListener("input", () => {
      audio.currentTime = this.range.valueAsNumber;
      this.#moved();
    });
    this.range.addEventListener("keydown", (event) => {
      if (event.key === " " || event.key === "Enter") {
        event.preventDefault();
        this.toggle();
      }
    });
    this.resized = new ResizeObserver(() => this.redraw());
    this.resized.observe(this.canvas);
  }

  async #measure(file) {
    try {
      const { peaks, duration } = await measure(file);
      this.#peaks = peaks;
      this.#know(duration);
    } catch (error) {
      if (!(error instanceof NoWaveform)) throw error;
      if (!this.note.textContent) this.#say(error.message);
    }
    this.redraw();
  }

  #playable() {
    this.canPlay = true;
    this.button.disabled = this.range.disabled = false;
    if (Number.isFinite(this.#audio.duration)) this.#know(this.#audio.duration);
    this.dispatchEvent(new Event("known"));
  }

  #know(duration) {
    this.duration ??= duration;
    this.range.max = this.duration;
    this.length.textContent = ` / ${clock(this.duration)}`;
    this.#moved();
    this.dispatchEvent(new Event("known"));
  }

  #say(sentence) {
    this.note.textContent = sentence;
    this.note.hidden = false;
  }

  #switched() {
    const isPlaying = this.isPlaying;
    this.button.setAttribute("aria-label", isPlaying ? "Pause" : "Play");
    this.root.classList.toggle("playing", isPlaying);
    cancelAnimationFrame(this.#frame);
    const follow = () => {
      this.#moved();
      if (this.isPlaying) this.#frame = requestAnimationFrame(follow);
    };
    follow();
  }

  #moved() {
    const time = this.time;
    this.range.value = time;
    this.range.setAttribute("aria-valuetext", this.duration ? `${clock(time)} of ${clock(this.duration)}` : clock(time));
    this.now.textContent = clock(time);
    this.dispatchEvent(new Event("time"));
    this.redraw();
  }

  /** Seconds from the start. */
  get time() {
    return this.#audio.currentTime;
  }

  get isPlaying() {
    return !this.#audio.paused && !this.#audio.ended;
  }

  /** Show on the waveform how much is transcribed, in seconds, and the current segment or null. */
  show(heard, segment) {
    const share = (seconds) => (this.duration ? Math.min(1, seconds / this.duration) : 0);
    this.#heard = heard === Infinity ? 1 : share(heard);
    this.#region = segment && this.duration ? [share(segment.start), share(segment.end)] : null;
    this.redraw();
  }

  #draw() {
    const played = this.duration ? this.time / this.duration : 0;
    draw(this.canvas, this.#peaks, { played, heard: this.#heard, region: this.#region });
  }

  /** Play from here, in seconds. */
  playFrom(time) {
    if (!this.canPlay) return;
    this.#audio.currentTime = time;
    this.#play();
  }

  toggle() {
    if (this.isPlaying) this.#audio.pause();
    else if (this.canPlay) this.#play();
  }

  #play() {
    if (playing && playing !== this) playing.pause();
    playing = this;
    this.#audio.play().catch(() => this.#switched()); // the browser refused, or playback was paused immediately
  }

  pause() {
    this.#audio.pause();
  }

  /** Release the file. */
  close() {
    this.pause();
    this.resized.disconnect();
    this.#audio.removeAttribute("src");
    URL.revokeObjectURL(this.url);
  }
}
