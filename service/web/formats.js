/** A transcript as txt, srt, vtt and json: the same text as the server's own formats (service/http/formats.py). */

const WHITE = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+/g; // Python's whitespace
const MEDIA_TYPES = {
  txt: "text/plain;charset=utf-8",
  srt: "application/x-subrip;charset=utf-8",
  vtt: "text/vtt;charset=utf-8",
  json: "application/json",
};

/** 3661.5 → `01:01:01,500`. Rounding to milliseconds carries into seconds, minutes and hours. */
export function timestamp(seconds, decimalMark) {
  const milliseconds = Math.max(0, Math.floor(seconds * 1000 + 0.5));
  const two = (number) => String(number).padStart(2, "0");
  const hours = Math.floor(milliseconds / 3_600_000);
  const minutes = Math.floor(milliseconds / 60_000) % 60;
  const whole = Math.floor(milliseconds / 1000) % 60;
  return `${two(hours)}:${two(minutes)}:${two(whole)}${decimalMark}${String(milliseconds % 1000).padStart(3, "0")}`;
}

/** 3661.5 → `1:01:01`, as a person writes it. */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const hours = Math.floor(whole / 3600);
  const minutes = Math.floor(whole / 60) % 60;
  const rest = String(whole % 60).padStart(2, "0");
  return hours ? `${hours}:${String(minutes).padStart(2, "0")}:${rest}` : `${minutes}:${rest}`;
}

/** The segments with words. Whisper also makes empty ones where it heard nothing. */
export function spoken(segments) {
  return segments.filter((segment) => segment.text.trim());
}

/** Text that cannot end its cue or look like a timing line: one line, no arrow. */
function cueText(text) {
  return text.replace(WHITE, " ").trim().replace(/-{2,}>/g, "->");
}

/** A cue's start and end: within the recording, unlike Whisper's own times, unless it starts after its end. */
function timing({ start, end }, duration, decimalMark) {
  const last = start < duration ? Math.min(end, duration) : end;
  return `${timestamp(start, decimalMark)} --> ${timestamp(last, decimalMark)}`;
}

/** SubRip: numbered cues; empty without speech. */
export function srt({ segments, duration }) {
  const cue = (segment, index) => `${index + 1}\n${timing(segment, duration, ",")}\n${cueText(segment.text)}\n`;
  return spoken(segments).map(cue).join("\n");
}

/** WebVTT, with the characters escaped that would start a tag or an entity. */
export function vtt({ segments, duration }) {
  const escaped = (text) => cueText(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const cue = (segment) => `${timing(segment, duration, ".")}\n${escaped(segment.text)}\n`;
  return ["WEBVTT\n", ...spoken(segments).map(cue)].join("\n");
}

/** OpenAI's verbose_json: numeric IDs where a stream's events have strings, and seconds instead of tokens. */
export function verbose({ language, languages, duration, text, segments }) {
  const words = segments.flatMap((segment) => segment.words ?? []);
  const bare = segments.map(({ words: _, id, ...segment }) => ({ id: Number(id.replace("seg_", "")), ...segment }));
  const timed = { segments: bare, ...(words.length && { words }) };
  const usage = { type: "duration", seconds: Math.ceil(duration) };
  return { task: "transcribe", language, duration, text, languages, ...timed, usage };
}

/** A transcript in one of the four formats, as a file's content. */
export function render(transcript, format) {
  const text = {
    txt: () => `${transcript.text}\n`,
    srt: () => srt(transcript),
    vtt: () => vtt(transcript),
    json: () => `${JSON.stringify(verbose(transcript), null, 2)}\n`,
  }[format]();
  return new Blob([text], { type: MEDIA_TYPES[format] });
}
