/** Connects the page's parts: files are queued, each recording gets a card, the model's state is shown. */

import { Card } from "./card.js";
import { listen } from "./intake.js";
import { askForKey, forgetKey, storedKey } from "./key.js";
import { watchModel } from "./model.js";
import { currentOptions } from "./options.js";
import { Queue } from "./queue.js";
import { Recording } from "./recording.js";

const element = (id) => document.getElementById(id);
const cards = [];

const announce = (sentence) => {
  element("announcer").textContent = sentence;
};

async function getKey() {
  const isGiven = await askForKey();
  element("key-field").hidden = !storedKey();
  if (isGiven) watchModel(getKey);
  return isGiven;
}

const queue = new Queue({ options: currentOptions, askForKey: getKey });

function add(file, { fromMicrophone }) {
  const recording = new Recording(file, { fromMicrophone });
  const card = new Card(recording, {
    announce,
    actions: { cancel: (one) => queue.cancel(one), again: (one) => queue.again(one), remove },
  });
  // One that has to wait is folded, because another is being read.
  card.open(!cards.some((other) => other.recording.isUnderWay));
  cards.push(card);
  element("recordings").append(card.root);
  document.body.classList.add("has-recordings");
  recording.addEventListener("change", () => tell(card));
  queue.add(recording);
}

function remove(card) {
  queue.cancel(card.recording);
  const at = cards.indexOf(card);
  cards.splice(at, 1);
  card.close();
  document.body.classList.toggle("has-recordings", cards.length > 0);
  const next = cards[Math.min(at, cards.length - 1)];
  (next ? next.find(".card-toggle") : element("choose")).focus();
  announce(`${card.recording.name} is removed.`);
}

/** Screen readers announce each recording's start and end; the text has its own live region. */
function tell(card) {
  const { state, name, segments, words } = card.recording;
  if (card.told === state) return;
  card.told = state;
  if (state === "uploading" && !cards.some((other) => other !== card && other.recording.isUnderWay && other.isOpen)) {
    card.open(true);
  }
  const sentence = {
    uploading: `${name} is being transcribed.`,
    done: words ? `${name} is transcribed. Segments: ${segments.length}.` : `${name}: no speech was heard.`,
    cancelled: `${name} is cancelled.`,
  }[state];
  if (sentence) announce(sentence);
}

function listenToTheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const show = () => {
    element("theme").setAttribute("aria-pressed", String(isDark()));
    for (const card of cards) card.player.redraw();
  };
  element("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    try {
      localStorage.setItem("wisp-theme", root.dataset.theme);
    } catch {
      // Storage may be forbidden: the choice then lasts until the page is closed.
    }
    show();
  });
  system.addEventListener("change", show);
  show();
}

listen({
  onFile: add,
  onError: (sentence) => {
    element("page-error").textContent = sentence;
  },
  announce,
});
listenToTheme();
element("key-field").hidden = !storedKey();
element("key-forget").addEventListener("click", () => {
  forgetKey();
  element("key-field").hidden = true;
  announce("The API key is forgotten.");
});
addEventListener("beforeunload", (event) => {
  const isUnsaved = ({ recording }) => recording.isUnderWay || (recording.fromMicrophone && recording.state !== "done");
  if (cards.some(isUnsaved)) event.preventDefault();
});
watchModel(getKey);
