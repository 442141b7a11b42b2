// Applies the theme before the first paint, so that the wrong one never flashes: the account's (data-theme), which this
// browser remembers for the pages before the sign-in, else the browser's, else the system's. Without this script the style
// sheet follows the system.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  if (navigator.clipboard) root.classList.add("can-copy"); // set here so that nothing moves when the buttons appear
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    const { theme } = root.dataset;
    try {
      if (theme === "system") localStorage.removeItem("theme");
      else if (theme) localStorage.setItem("theme", theme);
      else return localStorage.getItem("theme");
    } catch {
      // No storage: the account or the system decides.
    }
    return theme === "system" ? "" : theme;
  };
  const apply = () => {
    root.dataset.bsTheme = chosen() || (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("portal:theme"));
  };
  // A choice made meanwhile in another tab is newer than the one that came with this page.
  const follow = () => {
    try {
      if (root.dataset.theme) root.dataset.theme = localStorage.getItem("theme") || "system";
    } catch {
      return;
    }
    apply();
  };
  apply();
  system.addEventListener("change", apply);
  window.addEventListener("storage", (event) => event.key === "theme" && follow());
  window.addEventListener("pageshow", (event) => event.persisted && follow());
})();
