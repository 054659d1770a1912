/** The microphone: getUserMedia → an AudioWorklet → a mono 16-bit WAV file. */

import { wavOf } from "./wav.js";

const RATE = 16_000; // Hz, Whisper's rate; a browser that cannot resample records at its own rate
const LAST_BLOCK_MS = 1000; // how long to wait for the audio thread, which may have stopped

/** The reason why this browser cannot record here, as a sentence, or null. */
export function whyNot() {
  if (!isSecureContext) return "Browsers give the microphone to pages over HTTPS or on localhost only.";
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) return "This browser cannot record sound.";
  return null;
}

const REFUSALS = {
  NotAllowedError: "The browser did not give the microphone. Allow it for this page, then record again.",
  NotFoundError: "No microphone was found.",
  NotReadableError: "The microphone is in use by another program.",
  AbortError: "The microphone went away.",
};

export class Recorder {
  #blocks = [];
  #n = 0; // samples in all of them
  #stream = null;
  #context = null;
  #node = null;
  #ended = null;
  #stopped = null;

  /** `onBlock(block, peak)`: an Int16Array of sound, its loudness from 0 to 1; `onLost()`: the microphone was lost. */
  constructor({ onBlock, onLost }) {
    Object.assign(this, { onBlock, onLost });
  }

  /** Start. Throws an Error with a sentence for the user. */
  async start() {
    try {
      const audio = { channelCount: 1, echoCancellation: false, autoGainControl: true };
      this.#stream = await navigator.mediaDevices.getUserMedia({ audio });
      const tracks = this.#stream.getTracks();
      const source = await this.#open();
      this.#node = new AudioWorkletNode(this.#context, "recorder", { numberOfOutputs: 0 });
      this.#ended = new Promise((resolve) => {
        this.#node.port.onmessage = ({ data }) => (data.ended ? resolve() : this.#take(data));
      });
      source.connect(this.#node);
      if (tracks.some((track) => track.readyState === "ended")) throw new DOMException("", "AbortError");
      tracks.forEach((track) => track.addEventListener("ended", () => this.onLost()));
    } catch (error) {
      this.discard();
      throw new Error(REFUSALS[error.name] ?? `Recording failed: ${error.message}`);
    }
  }

  async #open() {
    try {
      return await this.#source({ sampleRate: RATE });
    } catch {
      await this.#context?.close();
      return this.#source({}); // Firefox opens a microphone at its own rate only
    }
  }

  async #source(options) {
    this.#context = new AudioContext(options);
    await this.#context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    await this.#context.resume();
    return this.#context.createMediaStreamSource(this.#stream);
  }

  #take({ block, peak }) {
    this.#blocks.push(block);
    this.#n += block.length;
    this.onBlock(block, peak);
  }

  /** Samples a second, once it has started. */
  get rate() {
    return this.#context.sampleRate;
  }

  /** Seconds recorded so far. */
  get seconds() {
    return this.#context ? this.#n / this.#context.sampleRate : 0;
  }

  /** Stop, and resolve with the WAV file; further calls give the same file. */
  stop() {
    this.#stopped ??= this.#finish();
    return this.#stopped;
  }

  async #finish() {
    this.#node.port.postMessage("stop");
    await Promise.race([this.#ended, new Promise((resolve) => setTimeout(resolve, LAST_BLOCK_MS))]);
    const rate = this.#context.sampleRate;
    this.discard();
    const now = new Date();
    const two = (number) => String(number).padStart(2, "0");
    const day = [now.getFullYear(), two(now.getMonth() + 1), two(now.getDate())].join("-");
    const name = `Recording ${day} ${[now.getHours(), now.getMinutes(), now.getSeconds()].map(two).join(".")}.wav`;
    return new File([wavOf(this.#blocks, rate)], name, { type: "audio/wav" });
  }

  /** Release the microphone. */
  discard() {
    this.#stream?.getTracks().forEach((track) => track.stop());
    if (this.#context?.state !== "closed") this.#context?.close();
  }
}
