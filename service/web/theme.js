// Applies the last chosen theme before anything is drawn. Not a module, because modules run late.
try {
  const theme = localStorage.getItem("wisp-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden: use the system's theme.
}
