// The person's choice comes with the page (data-theme), else from this browser, else from the system. Runs before the first
// paint, so that the wrong theme never flashes and nothing moves. Without it the style sheet follows the system.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  if (navigator.clipboard) root.classList.add("can-copy"); // here, so that nothing moves when the buttons come
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
