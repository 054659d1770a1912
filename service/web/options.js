/** The user's options: language, prompt, temperature, word times. */

const form = document.getElementById("options-form");
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
    language: languageField.hidden ? "" : language.value,
    prompt: prompt.value.trim(),
    temperature: temperature.valueAsNumber,
    words: words.checked,
  };
}

/** Offer these languages, as Whisper's codes; hide the choice if there is only one. */
export function offerLanguages(codes) {
  languageField.hidden = codes.length < 2;
  const names = new Intl.DisplayNames(["en"], { type: "language" });
  const options = codes.map((code) => new Option(names.of(code), code));
  options.sort((one, other) => one.text.localeCompare(other.text));
  language.replaceChildren(new Option("Detect", ""), ...options);
}

function show() {
  const { prompt, temperature, words } = currentOptions();
  temperatureValue.textContent = temperature;
  const changed = [
    currentOptions().language && language.selectedOptions[0].text,
    prompt && "prompt",
    temperature && `temperature ${temperature}`,
    words && "word times",
  ];
  summary.textContent = changed.filter(Boolean).join(" · ");
}

form.addEventListener("input", show);
form.addEventListener("submit", (event) => event.preventDefault());
