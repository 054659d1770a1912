/** Transcribes recordings one after the other, in order, each until it is done, fails or is cancelled. */

import { ServerError, transcribe } from "./server.js";

const MAX_BUSY_TRIES = 20; // attempts with a busy server

export class Queue {
  #waiting = [];
  #running = null;
  #abort = new Map();

  /** `options()`: the user's current options; `askForKey()`: true once there is a key to try. */
  constructor({ options, askForKey }) {
    this.options = options;
    this.askForKey = askForKey;
  }

  /** Transcribe it after all earlier ones. */
  add(recording) {
    this.#waiting.push(recording);
    this.#next();
  }

  /** Start it again from the beginning, with the current options. */
  again(recording) {
    recording.reset();
    this.add(recording);
  }

  /** Stop it, waiting or running. The server stops at the next token. */
  cancel(recording) {
    this.#waiting = this.#waiting.filter((other) => other !== recording);
    const abort = this.#abort.get(recording);
    if (abort) abort.abort();
    else if (recording.isUnderWay) recording.update({ state: "cancelled" });
  }

  async #next() {
    if (this.#running || !this.#waiting.length) return;
    const recording = this.#waiting.shift();
    this.#running = recording;
    const abort = new AbortController();
    this.#abort.set(recording, abort);
    try {
      await this.#run(recording, abort.signal);
    } catch (error) {
      const state = abort.signal.aborted ? "cancelled" : "failed";
      recording.update({ state, error, endedAt: performance.now() });
    } finally {
      this.#abort.delete(recording);
      this.#running = null;
      this.#next();
    }
  }

  async #run(recording, signal) {
    for (let tries = 1; ; tries += 1) {
      try {
        return await this.#once(recording, signal);
      } catch (error) {
        if (!(error instanceof ServerError)) throw error;
        if (error.needsKey && (await this.askForKey())) recording.reset();
        else if (error.isBusy && tries < MAX_BUSY_TRIES) {
          recording.reset(); // it may have started
          await this.#untilFree(recording, error, signal);
        } else throw error;
      }
    }
  }

  async #once(recording, signal) {
    signal.throwIfAborted();
    recording.update({ state: "uploading" });
    const listeners = {
      onUpload: (uploaded) => recording.update({ uploaded }),
      onUploaded: () => recording.update({ uploaded: 1, state: "transcribing", sentAt: performance.now() }),
      onSegment: (segment) => recording.add(segment),
    };
    const { text, language, languages, duration } = await transcribe(recording.file, this.options(), listeners, signal);
    recording.update({ state: "done", endedAt: performance.now(), text, language, languages, duration });
  }

  #untilFree(recording, { retryAfter }, signal) {
    const seconds = Math.max(1, retryAfter);
    recording.update({ state: "busy", retryAt: performance.now() + seconds * 1000 });
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, seconds * 1000);
      signal.addEventListener("abort", () => {
        clearTimeout(timer);
        reject(signal.reason);
      });
    });
  }
}
