/** Gets audio: chosen, dropped, pasted, or recorded from the microphone. */

import { Captions } from "./captions.js";
import { clock } from "./formats.js";
import { currentOptions } from "./options.js";
import { Recorder, whyNot } from "./recorder.js";
import { drawLevels, oncePerFrame } from "./waveform.js";

const MAX_LEVELS = 1000; // more bars than any screen is wide
const element = (id) => document.getElementById(id);

/** Listen to the page; `onFile(file, { fromMicrophone })` for each, `onError(sentence)` when recording fails. */
export function listen({ onFile, onError, announce }) {
  const take = (files) => {
    for (const file of files) onFile(file, { fromMicrophone: false });
  };
  const input = element("file");
  element("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take([...input.files]);
    input.value = ""; // the same file may be chosen again
  });
  listenForDrops(take);
  addEventListener("paste", (event) => take(event.clipboardData?.files ?? []));
  listenForRecording({ onFile, onError, announce });
}

function listenForDrops(take) {
  const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
  let inside = 0; // dragenter and dragleave fire for every element on the way
  const show = (count) => {
    inside = count;
    document.body.classList.toggle("dragging", inside > 0);
  };
  addEventListener("dragenter", (event) => hasFiles(event) && show(inside + 1));
  addEventListener("dragleave", (event) => hasFiles(event) && show(Math.max(0, inside - 1)));
  addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    show(0);
    take([...event.dataTransfer.files]);
  });
}

function listenForRecording({ onFile, onError, announce }) {
  const reason = whyNot();
  element("record").disabled = Boolean(reason);
  element("record-note").hidden = !reason;
  element("record-note").textContent = reason ?? "";
  let recorder = null;
  let captions = null;
  let levels = [];

  const paint = oncePerFrame(() => {
    if (!recorder) return;
    element("recorder-time").textContent = clock(recorder.seconds);
    drawLevels(element("recorder-wave"), levels);
  });
  const show = (isRecording) => {
    element("recorder").hidden = !isRecording;
    element("drop").hidden = isRecording;
  };
  const showWords = (said, rest) => {
    element("captions").hidden = !said && !rest;
    element("captions-said").textContent = said;
    element("captions-rest").textContent = rest;
    element("captions").scrollTop = element("captions").scrollHeight;
  };
  const end = () => {
    captions?.close();
    captions = null;
    recorder = null;
    showWords("", "");
    levels = [];
    show(false);
    element("recorder-time").textContent = clock(0); // for the next recording, before its first frame
    element("record").focus();
  };
  const stop = async (ending) => {
    const file = await ending.stop();
    if (recorder !== ending) return; // it has been discarded, or stopped by another click
    end();
    onFile(file, { fromMicrophone: true });
  };
  element("record").addEventListener("click", async () => {
    if (recorder) return;
    onError("");
    const starting = new Recorder({
      onBlock: (block, peak) => {
        levels = [...levels.slice(-MAX_LEVELS), peak];
        captions?.add(block);
        paint();
      },
      onLost: () => stop(starting),
    });
    recorder = starting;
    try {
      await starting.start();
    } catch (error) {
      end();
      onError(error.message);
      return;
    }
    captions = new Captions({ rate: starting.rate, options: currentOptions(), onWords: showWords });
    show(true);
    paint();
    element("recorder-stop").focus();
    announce("Recording.");
  });
  element("recorder-stop").addEventListener("click", () => recorder && stop(recorder));
  element("recorder-discard").addEventListener("click", () => {
    recorder?.discard();
    end();
    announce("The recording is discarded.");
  });
}
