// The person's choice comes with the page (data-theme), else from this browser, else from the system. Runs before the first paint, so that the wrong theme never flashes. Without it the style sheet follows the system.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const apply = () => {
    let chosen = root.dataset.theme;
    try {
      chosen ||= localStorage.getItem("theme");
    } catch {
      // storage is switched off in this browser: the system decides
    }
    root.dataset.bsTheme = chosen || (system.matches ? "dark" : "light");
    document.dispatchEvent(new Event("portal:theme"));
  };
  apply();
  system.addEventListener("change", apply);
  window.addEventListener("storage", apply);
})();
