/** Captions while recording: the microphone's blocks go to the server's /v1/realtime, words come back. */

import { storedKey } from "./key.js";

const HYPOTHESIS = "item.input_audio_transcription.hypothesis"; // our own event: what may still change
const MAX_UNSENT = 1_000_000; // bytes: a connection that is slower than speech gets no more audio

function base64(block) {
  return btoa(String.fromCharCode(...new Uint8Array(block.buffer, block.byteOffset, block.byteLength)));
}

export class Captions {
  #socket = null;
  #isOpen = false; // whether the session has been configured
  #waiting = []; // blocks until then
  #items = new Map(); // id → { said, rest }

  /** `rate`: of the blocks, in Hz. `onWords(said, rest)`: all that is settled, and what may still change. */
  constructor({ rate, options, onWords }) {
    this.onWords = onWords;
    const address = new URL("v1/realtime", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    address.searchParams.set("intent", "transcription");
    if (options.model) address.searchParams.set("model", options.model);
    const key = storedKey();
    try {
      this.#socket = new WebSocket(address, ["realtime", ...(key ? [`openai-insecure-api-key.${key}`] : [])]);
    } catch {
      return; // a key that no header can carry: the recording goes on without captions
    }
    this.#socket.addEventListener("message", ({ data }) => this.#take(JSON.parse(data)));
    const transcription = { language: options.language || null, prompt: options.prompt || null };
    if (options.model) transcription.model = options.model;
    this.#socket.addEventListener("open", () => {
      this.#send({
        type: "session.update",
        session: {
          type: "transcription",
          include: [HYPOTHESIS],
          audio: { input: { format: { type: "audio/pcm", rate }, transcription } },
        },
      });
    });
  }

  /** Send an Int16Array of mono PCM. */
  add(block) {
    if (this.#isOpen) this.#append(block);
    else if (this.#socket && this.#socket.readyState <= WebSocket.OPEN) this.#waiting.push(block);
  }

  /** End the session; no more words come. */
  close() {
    this.onWords = () => {};
    this.#waiting = [];
    this.#socket?.close();
  }

  #send(event) {
    if (this.#socket.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(event));
  }

  #append(block) {
    if (this.#socket.bufferedAmount > MAX_UNSENT) this.#socket.close();
    this.#send({ type: "input_audio_buffer.append", audio: base64(block) });
  }

  #take({ type, item_id: id, delta, text, transcript }) {
    if (type === "error" && !this.#isOpen) return this.close();
    if (type === "session.updated") {
      this.#isOpen = true;
      for (const block of this.#waiting.splice(0)) this.#append(block);
      return;
    }
    const [, kind] = type.match(/^conversation\.item\.input_audio_transcription\.(\w+)$/) ?? [];
    if (!kind) return;
    const item = this.#items.get(id) ?? { said: "", rest: "" };
    this.#items.set(id, item);
    if (kind === "delta") Object.assign(item, { said: item.said + delta, rest: "" });
    if (kind === "hypothesis") item.rest = text;
    if (kind === "completed") Object.assign(item, { said: transcript, rest: "" });
    if (kind === "failed") item.rest = "";
    const items = [...this.#items.values()];
    const said = items.map((one) => one.said).filter(Boolean).join(" ");
    const rest = items.map((one) => one.rest).join("");
    this.onWords(said, said && rest && !items.at(-1).said ? ` ${rest}` : rest);
  }
}
