// The person's choice comes with the page (data-theme) and is kept in this browser, for the pages before they sign in; else
// the browser's choice counts, else the system. Runs before the first paint, so that the wrong theme never flashes and
// nothing moves. Without it the style sheet follows the system.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  if (navigator.clipboard) root.classList.add("can-copy"); // here, so that nothing moves when the buttons come
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    const { theme } = root.dataset;
    try {
      if (theme === "system") localStorage.removeItem("theme");
      else if (theme) localStorage.setItem("theme", theme);
      else return localStorage.getItem("theme");
    } catch {
      // storage is switched off in this browser: the person or the system decides
    }
    return theme === "system" ? "" : theme;
  };
  const apply = () => {
    root.dataset.bsTheme = chosen() || (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("portal:theme"));
  };
  // What was chosen meanwhile on another page of this browser is newer than what came with this one.
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
