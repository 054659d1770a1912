/** Server-sent events out of a response that arrives in pieces. */

export class EventReader {
  #rest = "";

  /** The next piece of the body → the data of the events completed by it, as parsed JSON. */
  read(piece) {
    const frames = (this.#rest + piece).split(/\r?\n\r?\n/);
    this.#rest = frames.pop();
    return frames.map(dataOf).filter(Boolean).map((data) => JSON.parse(data));
  }
}

function dataOf(frame) {
  const lines = frame.split(/\r?\n/).filter((line) => line.startsWith("data:"));
  return lines.map((line) => line.slice(5).trimStart()).join("\n");
}
