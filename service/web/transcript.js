/** The segments on the page: appended as they arrive, played when chosen, marked while heard. */

import { clock } from "./formats.js";

export class Transcript {
  #rows = []; // { segment, item, button, words: [{ start, end, element }] }
  #current = null;
  #seekable = false;

  /** `list`: an ordered list; `onPlay(seconds)`: a segment or a word was chosen; `onPause()`: play or pause. */
  constructor(list, { onPlay, onPause }) {
    Object.assign(this, { list, onPlay, onPause });
    list.addEventListener("click", (event) => this.#clicked(event));
    list.addEventListener("keydown", (event) => this.#pressed(event));
  }

  clear() {
    this.list.replaceChildren();
    this.#rows = [];
    this.#current = null;
  }

  /** Whether choosing a segment plays it. */
  set seekable(seekable) {
    this.#seekable = seekable;
    this.list.classList.toggle("seekable", seekable);
    for (const { button } of this.#rows) button.disabled = !seekable;
  }

  /** Append a segment. Those without words are not shown. */
  append(segment) {
    if (!segment.text.trim()) return;
    const item = document.createElement("li");
    const button = document.createElement("button");
    const text = document.createElement("p");
    button.type = "button";
    button.textContent = clock(segment.start);
    button.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
    button.disabled = !this.#seekable;
    button.tabIndex = this.#rows.length ? -1 : 0; // one Tab stop; the arrow keys move on from there
    const words = pieces(segment, text);
    item.append(button, text);
    this.list.append(item);
    this.#rows.push({ segment, item, button, words });
  }

  /** Mark the segment heard at `time`, in seconds; returns it or null. */
  mark(time) {
    const row = this.#rows.findLast(({ segment }) => segment.start <= time + 0.01) ?? null;
    const heard = row && time < row.segment.end ? row : null;
    if (heard !== this.#current) {
      const wasInView = this.#current && isInView(this.#current.item);
      this.#current?.item.removeAttribute("aria-current");
      for (const { element } of this.#current?.words ?? []) element.classList.remove("heard");
      heard?.item.setAttribute("aria-current", "true");
      if (heard && wasInView) heard.item.scrollIntoView({ block: "nearest" });
      this.#current = heard;
    }
    const word = heard?.words.findLast(({ start }) => start <= time + 0.01);
    for (const other of heard?.words ?? []) other.element.classList.toggle("heard", other === word);
    return heard?.segment ?? null;
  }

  #rowOf(node) {
    const item = node.closest("li");
    return this.#rows.findIndex((row) => row.item === item);
  }

  #clicked(event) {
    const row = this.#rows[this.#rowOf(event.target)];
    if (!row || !this.#seekable) return;
    if (!event.target.closest("button") && !getSelection().isCollapsed) return; // text is being selected
    const word = row.words.find(({ element }) => element === event.target);
    this.#stop(row);
    this.onPlay(word ? word.start : row.segment.start);
  }

  #pressed(event) {
    const at = this.#rowOf(event.target);
    if (at < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.#rows.length - 1;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: last }[event.key];
    if (to !== undefined) {
      const row = this.#rows[Math.min(last, Math.max(0, to))];
      this.#stop(row);
      row.button.focus();
    } else if (event.key === " ") {
      this.onPause();
    } else {
      return;
    }
    event.preventDefault();
  }

  #stop(row) {
    for (const { button } of this.#rows) button.tabIndex = button === row.button ? 0 : -1;
  }
}

/** Write the segment's text into `paragraph`, each timed word in its own element; returns those. */
function pieces(segment, paragraph) {
  const text = segment.text.trim();
  const words = [];
  let at = 0;
  for (const { word, start, end } of segment.words ?? []) {
    const found = text.indexOf(word, at);
    if (!word || found < 0) continue;
    const element = document.createElement("span");
    element.className = "word";
    element.textContent = word;
    paragraph.append(text.slice(at, found), element);
    words.push({ start, end, element });
    at = found + word.length;
  }
  paragraph.append(text.slice(at));
  return words;
}

function isInView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > 0 && top < innerHeight;
}
