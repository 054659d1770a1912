/** The server as the page sees it: its model, and a transcription as a stream of events. */

import { EventReader } from "./events.js";
import { storedKey } from "./key.js";

/** A failure, in one sentence from the server or from here. `status` is 0 without a response. */
export class ServerError extends Error {
  constructor(message, { status = 0, code = null, requestId = null, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }

  get needsKey() {
    return this.status === 401;
  }

  /** Whether a retry will soon succeed: the queue is full, or the GPU is being restarted. */
  get isBusy() {
    return this.status === 429 || this.code === "device_lost";
  }
}

const UNREACHABLE = "The server cannot be reached. Is it running, and is the network up?";
const BROKEN_OFF = "The connection was lost. The file may be larger than the server accepts, or the network failed.";
const CUT = "The connection ended before the transcript was complete.";

function errorOf(envelope, status, header) {
  const error = envelope?.error ?? {};
  return new ServerError(error.message ?? `The server answered with status ${status}.`, {
    status,
    code: error.code ?? null,
    requestId: header("x-request-id"),
    retryAfter: Number(header("retry-after")) || 0,
  });
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

async function get(path) {
  const key = storedKey();
  let response;
  try {
    response = await fetch(path, { cache: "no-store", headers: key ? { authorization: `Bearer ${key}` } : {} });
  } catch {
    throw new ServerError(UNREACHABLE);
  }
  const body = parsed(await response.text());
  if (!response.ok) throw errorOf(body, response.status, (name) => response.headers.get(name));
  return body;
}

/** The objects of all models, the default first; without other names of it. Throws ServerError. */
export async function servedModels() {
  const list = await get("v1/models");
  return list.data.filter((model) => !model.alias_of);
}

/** Resolves with the default model's name once it can transcribe. Throws ServerError with the reason if it can't yet. */
export async function readiness() {
  return (await get("readyz")).model;
}

function formOf(file, options) {
  const form = new FormData();
  const fields = {
    model: options.model,
    stream: "true",
    response_format: "verbose_json",
    language: options.language,
    prompt: options.prompt,
    temperature: options.temperature ? String(options.temperature) : "",
  };
  for (const [name, value] of Object.entries(fields)) if (value) form.append(name, value);
  form.append("timestamp_granularities[]", "segment");
  if (options.words) form.append("timestamp_granularities[]", "word");
  form.append("file", file, file.name); // last, so that unsupported values are rejected before the upload
  return form;
}

/**
 * Transcribe one file. Calls `onUpload(fraction)`, `onUploaded()` and `onSegment(segment)` on the way.
 * Resolves with the last event; rejects with ServerError, or with the signal's reason if aborted.
 * Uses XMLHttpRequest, because fetch does not report upload progress.
 */
export function transcribe(file, options, { onUpload, onUploaded, onSegment }, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const reader = new EventReader();
    let taken = 0;
    let done = null;
    let uploaded = false;

    const take = () => {
      const piece = request.responseText.slice(taken);
      taken += piece.length;
      for (const event of reader.read(piece)) {
        if (event.error) throw errorOf(event, 200, (name) => request.getResponseHeader(name));
        if (event.type === "transcript.text.segment") onSegment(event);
        if (event.type === "transcript.text.done") done = event;
      }
    };
    const attempt = (action) => () => {
      try {
        action();
      } catch (error) {
        reject(error);
        request.abort();
      }
    };
    request.open("POST", "v1/audio/transcriptions");
    const key = storedKey();
    if (key) request.setRequestHeader("authorization", `Bearer ${key}`);
    request.upload.onprogress = (event) => event.lengthComputable && onUpload(event.loaded / event.total);
    request.upload.onload = () => {
      uploaded = true;
      onUploaded();
    };
    request.onprogress = attempt(() => request.status === 200 && take());
    request.onload = attempt(() => {
      if (request.status !== 200) {
        throw errorOf(parsed(request.responseText), request.status, (name) => request.getResponseHeader(name));
      }
      take();
      if (!done) throw new ServerError(CUT);
      resolve(done);
    });
    request.onerror = () => reject(new ServerError(taken ? CUT : uploaded ? UNREACHABLE : BROKEN_OFF));
    signal.addEventListener("abort", () => {
      reject(signal.reason);
      request.abort();
    });
    request.send(formOf(file, options));
  });
}
