/** Other clients for Node, with their own defaults, against WISP_URL: they hear WISP_SAID in the file WISP_SPEECH. */

import assert from "node:assert/strict";
import { createReadStream, readFileSync } from "node:fs";
import { File } from "node:buffer";
import { test } from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { experimental_transcribe as transcribe } from "ai";
import Groq from "groq-sdk";
import OpenAI from "openai";

globalThis.File ??= File; // Node 18, Debian 12's, has it in a module only

const { WISP_URL: baseURL, WISP_SPEECH: speech, WISP_SAID: said } = process.env;
const isRight = (text) => assert.ok(text.toLowerCase().replaceAll(",", "").includes(said), text);

for (const model of ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe"]) {
  test(`@ai-sdk/openai ${model}`, async () => {
    const openai = createOpenAI({ baseURL, apiKey: "none" });
    isRight((await transcribe({ model: openai.transcription(model), audio: readFileSync(speech) })).text);
  });
}

test("groq-sdk", async () => {
  const groq = new Groq({ baseURL: baseURL.replace(/\/v1$/, ""), apiKey: "none" });
  const file = createReadStream(speech);
  isRight((await groq.audio.transcriptions.create({ model: "whisper-large-v3-turbo", file })).text);
});

test("openai", async () => {
  const openai = new OpenAI({ baseURL, apiKey: "none" });
  isRight((await openai.audio.transcriptions.create({ model: "gpt-transcribe", file: createReadStream(speech) })).text);
});
