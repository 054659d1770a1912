/** The API key: asked for when the server wants one, kept in this tab's session storage only. */

const NAME = "wisp-key";
const dialog = document.getElementById("key-dialog");
const input = document.getElementById("key");
const error = document.getElementById("key-error");
let asking = null;

/** The stored key, or an empty string. */
export function storedKey() {
  return sessionStorage.getItem(NAME) ?? "";
}

/** Forget the key. */
export function forgetKey() {
  sessionStorage.removeItem(NAME);
}

/** Ask for a key. Resolves with true once there is a new one, with false if the user gives none. */
export function askForKey() {
  asking ??= new Promise((resolve) => {
    error.textContent = storedKey() ? "The server does not accept this key." : "";
    input.value = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "use"), { once: true });
    dialog.returnValue = "";
    dialog.showModal();
  }).finally(() => {
    asking = null;
  });
  return asking;
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(NAME, input.value.trim());
  dialog.close("use");
});
document.getElementById("key-cancel").addEventListener("click", () => dialog.close(""));
