/** A recording's loudness over time: measured if the browser can decode the file, drawn on a canvas. */

const LARGEST_BYTES = 96 * 1024 * 1024; // decoding holds all of it in memory, several times over
const RATE = 8000; // Hz: enough for a picture, and little memory for an hour
const N_PEAKS = 1200;
const BAR = 2; // CSS pixels
const GAP = 1.5;

/** The reason why there is no waveform, in a sentence. */
export class NoWaveform extends Error {}

/** File → { peaks: Float32Array (N_PEAKS,) of 0 to 1, duration: seconds }. Throws NoWaveform. */
export async function measure(file) {
  if (file.size > LARGEST_BYTES) throw new NoWaveform("No waveform is drawn for a file this large.");
  try {
    const bytes = await file.arrayBuffer();
    const audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(bytes);
    return { peaks: peaksOf(audio.getChannelData(0)), duration: audio.duration };
  } catch {
    throw new NoWaveform("This browser cannot show or play this file. Its transcript is not affected.");
  }
}

/** (n,) samples → (N_PEAKS,) loudest of each stretch; the loudest of all is 1. */
export function peaksOf(samples) {
  const peaks = new Float32Array(Math.min(N_PEAKS, Math.max(1, samples.length)));
  let loudest = 0;
  for (let peak = 0; peak < peaks.length; peak += 1) {
    const start = Math.floor((peak * samples.length) / peaks.length);
    const end = Math.max(start + 1, Math.floor(((peak + 1) * samples.length) / peaks.length));
    let top = 0;
    for (let at = start; at < end; at += 1) top = Math.max(top, Math.abs(samples[at] || 0));
    peaks[peak] = top;
    loudest = Math.max(loudest, top);
  }
  return loudest ? peaks.map((peak) => peak / loudest) : peaks;
}

/** A canvas' drawing context in CSS pixels, cleared and in its displayed size. */
function fitted(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}

/** The style sheet's current colours: looked up once per drawing, not per bar. */
function colours(canvas) {
  const style = getComputedStyle(canvas);
  const [accent, wave, heardWave, regionGround] = ["--accent", "--wave", "--wave-heard", "--region"].map((name) =>
    style.getPropertyValue(name),
  );
  return { accent, wave, heardWave, regionGround };
}

/** `paint`, at most once per frame, however often it is called: a slow machine then draws less and stays responsive. */
export function oncePerFrame(paint) {
  let frame = 0;
  return () => {
    frame ||= requestAnimationFrame(() => {
      frame = 0;
      paint();
    });
  };
}

function bar(context, x, height, size) {
  const length = Math.max(BAR, size * (height - 4));
  context.beginPath();
  context.roundRect(x, (height - length) / 2, BAR, length, BAR / 2);
  context.fill();
}

/**
 * Draw the waveform. `played` and `heard`: share of it, 0 to 1; `region`: the current segment, [start, end] from 0 to
 * 1, or null. Without peaks it draws a flat line. Colours come from the style sheet.
 */
export function draw(canvas, peaks, { played, heard, region }) {
  const { context, width, height } = fitted(canvas);
  if (!width) return;
  const { accent, wave, heardWave, regionGround } = colours(canvas);
  if (region) {
    const [start, end] = region;
    context.fillStyle = regionGround;
    context.beginPath();
    context.roundRect(start * width, 0, Math.max(3, (end - start) * width), height, 4);
    context.fill();
  }
  const step = BAR + GAP;
  const n = Math.floor(width / step);
  for (let at = 0; at < n; at += 1) {
    const place = (at + 0.5) / n;
    context.fillStyle = place <= played ? accent : place <= heard ? heardWave : wave;
    let size = 0;
    if (peaks) {
      const from = Math.floor((at * peaks.length) / n);
      const to = Math.max(from + 1, Math.floor(((at + 1) * peaks.length) / n));
      for (let peak = from; peak < to; peak += 1) size = Math.max(size, peaks[peak]);
    }
    bar(context, at * step, height, size);
  }
  if (played > 0) {
    context.fillStyle = accent;
    context.fillRect(Math.min(width - 2, played * width - 1), 0, 2, height);
  }
}

/** Draw the latest levels of a running recording, the newest at the right. `levels`: 0 to 1, oldest first. */
export function drawLevels(canvas, levels) {
  const { context, width, height } = fitted(canvas);
  const step = BAR + GAP;
  const n = Math.floor(width / step);
  const shown = levels.slice(-n);
  const { accent, wave } = colours(canvas);
  for (let at = 0; at < n; at += 1) {
    const level = shown[at - (n - shown.length)];
    context.fillStyle = level === undefined ? wave : accent;
    bar(context, at * step, height, Math.sqrt(level ?? 0)); // speech is quiet; the root makes it visible
  }
}
