// The theme chosen last time, before anything is drawn. Not a module, because those run late.
try {
  const theme = localStorage.getItem("wisp-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden: the system's theme it is.
}
