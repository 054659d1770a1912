/** OpenAI's realtime classes for Node, which accept wss: only, through a TLS proxy: they hear WISP_SAID in WISP_SPEECH. */

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync } from "node:fs";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { createServer } from "node:tls";
import OpenAI from "openai";
import { OpenAIRealtimeWebSocket } from "openai/realtime/websocket";
import { OpenAIRealtimeWS } from "openai/realtime/ws";
import { WebSocket } from "ws";

globalThis.WebSocket ??= WebSocket; // Node 20 has none

const { WISP_URL: url, WISP_SPEECH: speech, WISP_SAID: said } = process.env;
const RATE = 24_000;
const STEP_MS = 50;
let proxy, cert;

before(async () => {
  const folder = mkdtempSync(join(tmpdir(), "wisp-"));
  const files = ["key.pem", "cert.pem"].map((name) => join(folder, name));
  execFileSync("openssl", [
    ..."req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost".split(" "),
    ..."-addext subjectAltName=DNS:localhost -keyout".split(" "), files[0], "-out", files[1],
  ], { stdio: "ignore" });
  const [key, made] = files.map((file) => readFileSync(file));
  cert = made;
  const { hostname, port } = new URL(url);
  proxy = createServer({ key, cert }, (client) => {
    const server = connect(port, hostname);
    client.pipe(server).pipe(client);
    for (const end of [client, server]) end.on("error", () => [client, server].forEach((other) => other.destroy()));
  });
  await new Promise((resolve) => proxy.listen(0, "localhost", resolve));
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0"; // for the class that takes no certificate
});

after(() => proxy.close());

/** The recording, 16-bit mono WAV with a plain header, at 24 kHz, and a second of silence. */
function pcm() {
  const file = readFileSync(speech);
  const rate = file.readUInt32LE(24);
  const samples = new Int16Array(file.buffer.slice(file.byteOffset + 44, file.byteOffset + (file.length & ~1)));
  const resampled = new Int16Array(Math.floor((samples.length - 1) * RATE / rate) + RATE);
  for (let i = 0; i < resampled.length - RATE; i++) {
    const at = i * rate / RATE, first = Math.floor(at);
    resampled[i] = samples[first] + (samples[first + 1] - samples[first]) * (at - first);
  }
  return Buffer.from(resampled.buffer);
}

/** Speak as one does, commit, and return what was heard. */
async function heard(realtime) {
  const texts = [];
  let nItems = 0, hasEnded = false;
  const done = new Promise((resolve, reject) => {
    const look = () => hasEnded && nItems > 0 && texts.length === nItems && resolve(texts.join(" "));
    realtime.on("error", reject);
    realtime.on("input_audio_buffer.committed", () => nItems++);
    realtime.on("conversation.item.input_audio_transcription.completed", (event) => {
      texts.push(event.transcript);
      look();
    });
    realtime.on("input_audio_buffer.cleared", () => {
      hasEnded = true;
      look();
    });
  });
  await new Promise((resolve) => realtime.on("session.created", resolve));
  const audio = pcm(), size = RATE * 2 * STEP_MS / 1000;
  for (let at = 0; at < audio.length; at += size) {
    realtime.send({ type: "input_audio_buffer.append", audio: audio.subarray(at, at + size).toString("base64") });
    await pause(STEP_MS);
  }
  realtime.send({ type: "input_audio_buffer.commit" });
  realtime.send({ type: "input_audio_buffer.clear" });
  const text = await done;
  realtime.close();
  return text.toLowerCase().replaceAll(/[^\w\s]/g, "").replaceAll(/\s+/g, " ");
}

const client = () => new OpenAI({
  baseURL: `https://localhost:${proxy.address().port}/v1`, apiKey: "none", dangerouslyAllowBrowser: true,
});

test("openai/realtime/ws", async () => {
  const realtime = new OpenAIRealtimeWS({ model: "gpt-4o-transcribe", options: { ca: cert } }, client());
  const text = await heard(realtime);
  assert.ok(text.includes(said), text);
});

test("openai/realtime/websocket, with a key as a subprotocol", async () => {
  const text = await heard(new OpenAIRealtimeWebSocket({ model: "gpt-realtime" }, client()));
  assert.ok(text.includes(said), text);
});
