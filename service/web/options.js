/** The user's options: model, language, prompt, temperature, word times. */

const form = document.getElementById("options-form");
const modelField = document.getElementById("model-field");
const model = document.getElementById("model-choice");
const languageField = document.getElementById("language-field");
const language = document.getElementById("language");
const prompt = document.getElementById("prompt");
const temperature = document.getElementById("temperature");
const temperatureValue = document.getElementById("temperature-value");
const words = document.getElementById("words");
const summary = document.getElementById("options-summary");

/** The current options. */
export function currentOptions() {
  return {
    model: model.value,
    language: languageField.hidden ? "" : language.value,
    prompt: prompt.value.trim(),
    temperature: temperature.valueAsNumber,
    words: words.checked,
  };
}

/**
 * Offer these models, of which requests that name none get `byDefault`; hide the choice if there is only one.
 * `onChoose(model)` is called with the object of the chosen one, now and whenever it changes.
 */
export function offerModels(models, byDefault, onChoose) {
  const before = model.value;
  modelField.hidden = models.length < 2;
  const size = ({ size }) => `${Math.round(size / 1e6)} MB`;
  const options = models.map((one) => new Option(`${one.id} · ${size(one)}`, one.id === byDefault ? "" : one.id));
  model.replaceChildren(...options);
  const kept = options.findIndex((option) => option.value === before);
  model.selectedIndex = Math.max(0, kept);
  const choose = () => {
    const chosen = models[model.selectedIndex];
    offerLanguages(chosen.languages ?? []);
    onChoose(chosen);
    show();
  };
  model.onchange = choose;
  choose();
}

/** Offer these languages, as Whisper's codes; hide the choice if there is only one. */
function offerLanguages(codes) {
  languageField.hidden = codes.length < 2;
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const options = codes.map((code) => new Option(names.of(code), code));
  options.sort((one, other) => one.text.localeCompare(other.text));
  const before = language.value;
  language.replaceChildren(new Option("Detect", ""), ...options);
  if (codes.includes(before)) language.value = before;
}

function show() {
  const { prompt, temperature, words } = currentOptions();
  temperatureValue.textContent = temperature;
  const changed = [
    model.value,
    currentOptions().language && language.selectedOptions[0].text,
    prompt && "prompt",
    temperature && `temperature ${temperature}`,
    words && "word times",
  ];
  summary.textContent = changed.filter(Boolean).join(" · ");
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
