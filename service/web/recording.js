/** One recording being transcribed: its file, progress and segments. Dispatches an event on each change. */

import { spoken } from "./formats.js";

export const UNDER_WAY = new Set(["waiting", "uploading", "transcribing", "busy"]);

export class Recording extends EventTarget {
  /** `file`: the audio to send; `fromMicrophone`: whether it exists nowhere else yet. */
  constructor(file, { fromMicrophone = false } = {}) {
    super();
    this.file = file;
    this.name = file.name;
    this.fromMicrophone = fromMicrophone;
    this.duration = null; // seconds, once the browser or the server knows
    this.reset();
  }

  /** Reset, for the first run or another one. Drops all segments. */
  reset() {
    this.state = "waiting"; // uploading, busy, transcribing, done, failed, cancelled
    this.uploaded = 0; // 0 to 1
    this.sentAt = null; // performance.now() when the last byte was sent
    this.endedAt = null;
    this.segments = [];
    this.text = "";
    this.language = null;
    this.languages = null;
    this.error = null;
    this.retryAt = null;
    this.tell("reset");
  }

  /** Apply changes and dispatch an event. */
  update(changes) {
    Object.assign(this, changes);
    this.tell("change");
  }

  /** Add a segment from the server. */
  add({ type: _, ...segment }) {
    this.segments.push(segment);
    this.dispatchEvent(new CustomEvent("segment", { detail: segment }));
    this.tell("change");
  }

  tell(name) {
    this.dispatchEvent(new Event(name));
  }

  get isUnderWay() {
    return UNDER_WAY.has(this.state);
  }

  /** Seconds of the audio transcribed so far. */
  get heard() {
    if (this.state === "done") return this.duration ?? Infinity;
    return this.segments.at(-1)?.end ?? 0;
  }

  /** Seconds since the last byte was sent, up to the end. */
  get elapsed() {
    return this.sentAt === null ? 0 : ((this.endedAt ?? performance.now()) - this.sentAt) / 1000;
  }

  /** The text so far, even if the end is missing. */
  get words() {
    return this.text || spoken(this.segments).map((segment) => segment.text).join("").trim();
  }
}
