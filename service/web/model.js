/** Shows the model and whether it is ready, polling until it is. */

import { offerModels } from "./options.js";
import { readiness, servedModels } from "./server.js";

const EMBEDDED = "embedded"; // the model that comes with Wisp
const POLL_MS = 1500;
const line = document.getElementById("model");
const text = document.getElementById("model-text");
const hint = document.getElementById("embedded-hint");
const notice = document.getElementById("embedded-notice");
let isWatched = false;

function show(state, sentence) {
  line.dataset.state = state;
  if (text.textContent !== sentence) text.textContent = sentence;
}

function showHint({ id, description }) {
  hint.hidden = id !== EMBEDDED;
  notice.textContent = description ?? "";
}

function showChosen(model) {
  showHint(model);
  show(model.id === EMBEDDED ? "poor" : "ready", `Model ${model.id}`);
}

/**
 * Show the model and its state until it is ready or there is no key to ask with. Does nothing if already running.
 * `askForKey()` resolves with true once there is an API key to try.
 */
export async function watchModel(askForKey) {
  if (isWatched) return;
  isWatched = true;
  while (!(await ask(askForKey))) await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  isWatched = false;
}

/** Ask the server once; true if there is nothing more to wait for. */
async function ask(askForKey) {
  let name = null;
  try {
    const [model] = await servedModels();
    name = model.id;
    showHint(model);
    const byDefault = await readiness();
    offerModels(await servedModels(), byDefault, showChosen); // their languages are known once it is loaded
    return true;
  } catch (error) {
    if (error.needsKey) {
      show("locked", "API key needed");
      return !(await askForKey());
    }
    if (!name) show("unreachable", "Server not reachable");
    else show("loading", error.status === 503 ? `Waiting for ${name}…` : `${name} is not ready`);
    return false;
  }
}
