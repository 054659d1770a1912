/** OpenAI's client for Node against WISP_URL: every format with every option. The model there says SENTENCE every 3 s. */

import assert from "node:assert/strict";
import { File } from "node:buffer";
import { describe, test } from "node:test";
import OpenAI, { toFile } from "openai";

globalThis.File ??= File; // Node 18, Debian 12's, has it in a module only

const SENTENCE = "Ask not what";
const SENTENCES = `${SENTENCE} ${SENTENCE}`;
const WORDS = [" Ask", " not", " what"];
const RATE = 8000;
const client = new OpenAI({ baseURL: process.env.WISP_URL, apiKey: "none", maxRetries: 0 });
const { transcriptions, translations } = client.audio;

/** A WAV file of a tone. */
function wav(seconds) {
  const samples = Buffer.alloc(2 * RATE * seconds);
  for (let n = 0; n < RATE * seconds; n++) samples.writeInt16LE(Math.round(3000 * Math.sin(n / 3)), 2 * n);
  const head = Buffer.alloc(44);
  head.write("RIFF", 0);
  head.writeUInt32LE(36 + samples.length, 4);
  head.write("WAVEfmt ", 8);
  head.writeUInt32LE(16, 16);
  head.writeUInt16LE(1, 20);
  head.writeUInt16LE(1, 22);
  head.writeUInt32LE(RATE, 24);
  head.writeUInt32LE(2 * RATE, 28);
  head.writeUInt16LE(2, 32);
  head.writeUInt16LE(16, 34);
  head.write("data", 36);
  head.writeUInt32LE(samples.length, 40);
  return Buffer.concat([head, samples]);
}

const SOUND = wav(4);
const sound = () => toFile(SOUND, "tone.wav");
const hear = async (options) => transcriptions.create({ file: await sound(), model: "whisper-1", ...options });

describe("formats", () => {
  for (const [api, said, language] of [[transcriptions, SENTENCES, "german"], [translations, "what what", "english"]]) {
    const call = async (response_format) =>
      api.create({ file: await sound(), model: "whisper-1", response_format, prompt: "A film.", temperature: 0 });
    const name = api === translations ? "translations" : "transcriptions";
    test(`${name} json`, async () => {
      const { text, usage } = await call("json");
      assert.deepEqual([text, usage], [said, { type: "duration", seconds: 4 }]);
    });
    test(`${name} text`, async () => assert.equal(await call("text"), `${said}\n`));
    test(`${name} srt`, async () => assert.match(await call("srt"), /^1\n00:00:00,000 --> /));
    test(`${name} vtt`, async () => assert.match(await call("vtt"), /^WEBVTT\n\n00:00:00\.000 --> /));
    test(`${name} verbose_json`, async () => {
      const answer = await call("verbose_json");
      assert.deepEqual([answer.text, answer.language, answer.duration], [said, language, 4]);
      assert.equal(answer.segments.length, 2);
    });
  }
});

describe("granularities", () => {
  for (const timestamp_granularities of [["segment"], ["word"], ["segment", "word"]]) {
    test(timestamp_granularities.join(" and "), async () => {
      const answer = await hear({ response_format: "verbose_json", timestamp_granularities });
      assert.equal(Array.isArray(answer.segments), timestamp_granularities.includes("segment"));
      assert.equal(Array.isArray(answer.words), timestamp_granularities.includes("word"));
    });
  }
});

describe("streams", () => {
  for (const response_format of [undefined, "json", "text", "verbose_json"]) {
    for (const include of response_format === undefined || response_format !== "text" ? [undefined, ["logprobs"]] : [undefined]) {
      test(`${response_format} ${include ?? ""}`, async () => {
        const events = [];
        for await (const event of await hear({ stream: true, response_format, include })) events.push(event);
        const deltas = events.filter(({ type }) => type === "transcript.text.delta");
        assert.equal(events.filter(({ type }) => type === "transcript.text.done").length, 1);
        assert.equal(events.at(-1).text, SENTENCES);
        assert.equal(deltas.map(({ delta }) => delta).join(""), SENTENCES);
        if (include) assert.deepEqual(deltas[0].logprobs.map(({ token }) => token), WORDS);
        assert.equal("logprobs" in events.at(-1), Boolean(include));
      });
    }
  }
});

describe("everything else", () => {
  const vad = { type: "server_vad", threshold: 0.9, prefix_padding_ms: 0, silence_duration_ms: 500 };
  for (const chunking_strategy of ["auto", vad]) {
    test(`chunking ${chunking_strategy.type ?? chunking_strategy}`, async () => {
      const answer = await hear({ chunking_strategy, include: ["logprobs"] });
      assert.deepEqual([answer.text, answer.logprobs], ["", []]);
    });
  }
  test("log-probabilities", async () => {
    const { logprobs } = await hear({ include: ["logprobs"] });
    assert.deepEqual(logprobs.map(({ token }) => token), [...WORDS, ...WORDS]);
    assert.deepEqual(logprobs[0].bytes, [...Buffer.from(WORDS[0])]);
  });
  test("language, keywords, candidates", async () => {
    assert.equal((await hear({ language: "en", keywords: ["Wisp", "lavapipe"], languages: ["en"] })).text, SENTENCES);
  });
  test("models", async () => {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    assert.deepEqual(ids.slice(0, 2), ["both", "gpt-live-transcribe"]);
    assert.equal((await client.models.retrieve("whisper-1")).id, "whisper-1");
  });
});

describe("refusals", () => {
  for (const [options, error, param] of [
    [{ file: Buffer.from("no sound") }, OpenAI.BadRequestError, "file"],
    [{ model: "gpt-5" }, OpenAI.NotFoundError, "model"],
    [{ language: "fr" }, OpenAI.BadRequestError, "language"],
    [{ response_format: "diarized_json" }, OpenAI.BadRequestError, "response_format"],
    [{ temperature: 2 }, OpenAI.BadRequestError, "temperature"],
    [{ stream: true, response_format: "srt" }, OpenAI.BadRequestError, "response_format"],
    [{ timestamp_granularities: ["word"] }, OpenAI.BadRequestError, "timestamp_granularities[]"],
    [{ known_speaker_names: ["Ann"] }, OpenAI.BadRequestError, "known_speaker_names[]"],
  ]) {
    test(JSON.stringify(options), async () => {
      const file = await toFile(options.file ?? SOUND, "upload");
      await assert.rejects(hear({ ...options, file }), (thrown) => {
        assert.ok(thrown instanceof error);
        assert.equal(thrown.param, param);
        assert.ok(thrown.requestID && thrown.code);
        return true;
      });
    });
  }
});
