// What HTML and htmx can't do by themselves. Every page works without this file.
(() => {
  const root = document.documentElement;
  const announcer = () => document.getElementById("announcer");
  const announce = (text) => {
    const box = announcer();
    if (box && box.textContent !== text) box.textContent = text;
  };
  // Announcements, from here or from a fragment, disappear after a while. A failure stays until the portal answers again.
  let clearTimer;
  let failure = "";
  if (announcer()) {
    new MutationObserver(() => {
      clearTimeout(clearTimer);
      if (announcer().textContent !== failure) clearTimer = setTimeout(() => announce(""), 6000);
    }).observe(announcer(), { childList: true, characterData: true, subtree: true });
  }

  // Theme switch
  const showTheme = () => {
    const dark = root.dataset.bsTheme === "dark";
    for (const button of document.querySelectorAll("[data-theme-switch]")) button.setAttribute("aria-pressed", dark);
  };
  document.addEventListener("portal:theme", showTheme);
  showTheme();
  const switchTheme = () => {
    const theme = root.dataset.bsTheme === "dark" ? "light" : "dark";
    root.dataset.bsTheme = theme;
    try {
      localStorage.setItem("theme", theme);
    } catch {
      // No storage: the choice lasts for this page.
    }
    const { themeUrl } = document.body.dataset;
    if (themeUrl) {
      // Saved to the account, for the user's other browsers.
      root.dataset.theme = theme;
      const { "X-CSRFToken": token } = JSON.parse(document.body.getAttribute("hx-headers"));
      fetch(themeUrl, { method: "POST", body: new URLSearchParams({ theme }), headers: { "X-CSRFToken": token }, keepalive: true }).catch(() => {});
    }
    showTheme();
  };

  // Scroll the current tab into view where not all of them fit.
  const showTab = () => {
    for (const tab of document.querySelectorAll(".tabs [aria-current]")) {
      const list = tab.closest("ul");
      const [inner, outer] = [tab.getBoundingClientRect(), list.getBoundingClientRect()];
      list.scrollLeft += (inner.left + inner.right - outer.left - outer.right) / 2;
    }
  };
  showTab();
  document.addEventListener("htmx:afterSettle", showTab);

  // Copy
  const copy = async (button) => {
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      return announce(announcer().dataset.copyFailed);
    }
    button.classList.add("is-copied");
    announce(announcer().dataset.copied);
    setTimeout(() => button.classList.remove("is-copied"), 2500);
  };

  const openMenus = () => document.querySelectorAll("details.menu[open]");

  document.addEventListener("click", (event) => {
    const target = event.target;
    if (target.closest("[data-theme-switch]")) switchTheme();
    if (target.closest("[data-keys-switch]")) switchKeys();
    const copyButton = target.closest("[data-copy]");
    if (copyButton) copy(copyButton);
    for (const menu of openMenus()) if (!menu.contains(target)) menu.open = false;

    // A link in an error summary focuses the field, or the first control of a group.
    const link = target.closest(".error-summary a[href^='#']");
    const field = link && document.getElementById(link.hash.slice(1));
    if (field) {
      event.preventDefault();
      const control = field.matches("input, select, textarea, button") ? field : field.querySelector("input:not([type=hidden]), select, textarea");
      (field.closest(".field, fieldset") || field).scrollIntoView({ block: "center" });
      (control || field).focus({ preventScroll: true });
    }
  });

  // Ctrl-K searches everything, also while typing. On the page of the search it only focuses the input.
  const openSearch = () => {
    const [dialog, input] = [document.getElementById("find"), document.getElementById("find-text")];
    if (dialog && !dialog.open) dialog.showModal();
    input?.focus();
    input?.select();
    return input;
  };
  document.addEventListener("click", (event) => {
    const link = event.target.closest("[data-find-open]");
    if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.button && openSearch()) event.preventDefault();
  });
  document.addEventListener("keydown", (event) => {
    const isCtrlK = (event.ctrlKey || event.metaKey) && !event.altKey && !event.shiftKey && event.key.toLowerCase() === "k";
    if (isCtrlK && openSearch()) event.preventDefault();
    // The arrows go through the results and back to the input; what is typed meanwhile belongs to the input.
    const input = event.target.closest("#find-text, .found") && document.getElementById("find-text");
    if (!input || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const stops = [input, ...document.querySelectorAll("#found a")];
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      stops.at((stops.indexOf(document.activeElement) + step) % stops.length).focus();
    } else if (event.key.length === 1 && event.key !== " ") input.focus();
  });
  // Enter opens the best result, if the results are of what is typed; otherwise the page of the search.
  document.addEventListener("submit", (event) => {
    const best = event.target.matches("[data-find]") && document.querySelector("#found .found-hit");
    const query = document.querySelector("#found [data-q]")?.dataset.q;
    if (!best || query !== document.getElementById("find-text").value.trim()) return;
    event.preventDefault();
    location.assign(best.href);
  });

  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      for (const menu of openMenus()) {
        menu.open = false;
        menu.querySelector("summary").focus();
      }
    }
    const typing = event.target.closest("input:not([type=checkbox], [type=radio]), select, textarea, [contenteditable], dialog");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || !keysAreOn()) return;
    const search = event.key === "/" && document.querySelector("[data-search]");
    const keys = event.key === "?" && document.getElementById("keys");
    if (search || keys) event.preventDefault();
    if (search) {
      search.focus();
      search.select();
    }
    if (keys) keys.showModal();
  });

  // Single-key shortcuts can be turned off (WCAG 2.1.4), because speech input triggers them.
  const keysAreOn = () => {
    try {
      return localStorage.getItem("keys") !== "off";
    } catch {
      return true;
    }
  };
  const showKeys = () => {
    root.classList.toggle("keys-off", !keysAreOn());
    for (const button of document.querySelectorAll("[data-keys-switch]")) button.setAttribute("aria-pressed", !keysAreOn());
  };
  const switchKeys = () => {
    try {
      localStorage.setItem("keys", keysAreOn() ? "off" : "on");
    } catch {
      // No storage: the shortcuts stay on.
    }
    showKeys();
  };
  showKeys();

  // Enter in a search opens the result if there is only one.
  document.addEventListener("htmx:afterSettle", (event) => {
    const { elt, triggeringEvent } = event.detail.requestConfig || {};
    if (triggeringEvent?.type !== "submit" || !elt.querySelector("[data-search]:focus")) return;
    const hits = document.querySelectorAll(`${elt.getAttribute("hx-target")} .list-name`);
    if (hits.length === 1 && elt.querySelector("[data-search]").value) location.assign(hits[0].href);
  });

  // Bulk selection. It survives a refresh of the list.
  const boxes = () => [...document.querySelectorAll("[data-select]")];
  const showSelected = () => {
    const count = boxes().filter((box) => box.checked).length;
    for (const all of document.querySelectorAll("[data-select-all]")) {
      all.disabled = !boxes().length;
      all.checked = count > 0 && count === boxes().length;
      all.indeterminate = count > 0 && !all.checked;
    }
    for (const button of document.querySelectorAll("[data-selected]")) {
      button.disabled = !count;
      const number = button.querySelector("[data-selected-count]");
      number.textContent = count;
      number.hidden = !count;
    }
  };
  document.addEventListener("change", (event) => {
    if (event.target.matches("[data-select-all]")) for (const box of boxes()) box.checked = event.target.checked;
    if (event.target.matches("[data-select], [data-select-all]")) showSelected();
  });
  let selected = [];
  document.addEventListener("htmx:beforeSwap", () => {
    selected = boxes().filter((box) => box.checked).map((box) => box.value);
  });
  document.addEventListener("htmx:afterSwap", () => {
    for (const box of boxes()) if (selected.includes(box.value)) box.checked = true;
    showSelected();
  });
  window.addEventListener("pageshow", showSelected);

  // The bell refreshes the work in progress when it opens, and regularly while it is open.
  const REFRESH_MS = 10_000;
  let refreshTimer;
  const refreshBell = () => {
    const work = document.getElementById("bell-work");
    if (work && !document.hidden) htmx.trigger(work, "portal:refresh");
  };
  document.addEventListener(
    "toggle",
    (event) => {
      if (!event.target.matches("details.bell")) return;
      clearInterval(refreshTimer);
      if (!event.target.open) return;
      refreshBell();
      refreshTimer = setInterval(refreshBell, REFRESH_MS);
    },
    true,
  );

  // A row's menu is fetched when it opens, not when it closes, and opens upwards where there is more room.
  document.addEventListener("htmx:beforeRequest", (event) => {
    const menu = event.detail.elt;
    if (!menu.matches("details:not([open])")) return;
    event.preventDefault();
    menu.querySelector(".menu-panel").replaceChildren(); // else the next opening would replace the focused item
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    const menu = event.target.closest?.("details.row-menu[open]");
    if (!menu) return;
    menu.classList.remove("opens-up");
    const [button, panel] = [menu, menu.querySelector(".menu-panel")].map((part) => part.getBoundingClientRect());
    menu.classList.toggle("opens-up", panel.bottom > innerHeight && button.top > innerHeight - button.bottom);
  });

  // Menus close when they lose focus.
  document.addEventListener("focusout", (event) => {
    const menu = event.target.closest("details.menu[open]");
    if (menu && event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });

  // Ignore a second click on a submit button, with or without htmx.
  const release = (form) => {
    delete form.dataset.busy;
    for (const element of [form, ...form.querySelectorAll("[aria-busy]")]) element.removeAttribute("aria-busy");
  };
  document.addEventListener(
    "submit",
    (event) => {
      const form = event.target;
      if (form.method === "dialog" || form.matches("[hx-get]")) return;
      if (form.dataset.busy !== undefined) {
        event.preventDefault();
        event.stopImmediatePropagation();
        return;
      }
      form.dataset.busy = "";
      form.setAttribute("aria-busy", "true");
      event.submitter?.setAttribute("aria-busy", "true");
    },
    true,
  );
  window.addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-busy]")) release(form);
    root.classList.remove("is-leaving");
  });

  // Show progress as soon as a link is clicked, except for downloads.
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    const here = link.origin === location.origin && link.pathname + link.search === location.pathname + location.search && link.hash;
    if (here || link.origin !== location.origin || link.target || link.download || /\.(csv|pdf)$|\/files\/.+\/(file|archive)\/$/.test(link.pathname)) return;
    root.classList.add("is-leaving");
  });

  // In a wizard, clicking a choice continues to the next step. Arrow keys only select.
  document.addEventListener("click", (event) => {
    const choice = event.target.closest("form[data-advance] .choice:not(.is-disabled)");
    if (!choice || !event.detail) return;
    choice.querySelector("input").checked = true;
    choice.closest("form").requestSubmit();
  });

  // htmx
  const isQuiet = (event) => {
    const source = event.detail.requestConfig?.elt || event.detail.elt;
    return Boolean(source?.closest("[data-quiet]") || event.target.closest?.("[data-quiet]"));
  };

  // Polling pauses while the page is hidden.
  document.addEventListener("htmx:beforeRequest", (event) => {
    if (document.hidden && isQuiet(event)) event.preventDefault();
  });

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden) document.dispatchEvent(new Event("portal:seen"));
  });

  document.addEventListener("htmx:afterRequest", (event) => {
    const form = event.target.closest?.("form[data-busy]");
    if (form) release(form);
    if (event.detail.successful && failure) {
      if (announcer().textContent === failure) announce("");
      failure = "";
    }
  });

  const fail = (event, text) => {
    if (!announcer()) return;
    failure = isQuiet(event) ? announcer().dataset.paused : text;
    announce(failure);
  };
  document.addEventListener("htmx:sendError", (event) => fail(event, announcer()?.dataset.unreachable));
  document.addEventListener("htmx:timeout", (event) => fail(event, announcer()?.dataset.unreachable));
  document.addEventListener("htmx:responseError", (event) => {
    const status = event.detail.xhr.status;
    const texts = announcer()?.dataset;
    fail(event, status === 403 ? texts?.forbidden : status === 404 ? texts?.gone : status === 503 ? texts?.maintained : status === 507 ? texts?.full : texts?.failed);
  });

  document.addEventListener("htmx:afterSettle", (event) => {
    const part = event.target;
    if (!(part instanceof Element)) return;
    const titled = part.matches("[data-title]") ? part : part.querySelector("[data-title]");
    if (titled) document.title = titled.dataset.title;
    if (isQuiet(event)) return;
    const target = part.querySelector(".error-summary") || part.querySelector("[data-focus]");
    if (target) {
      if (!target.hasAttribute("tabindex")) target.setAttribute("tabindex", "-1");
      target.focus();
    }
  });

  // A page that loads with errors focuses their summary too.
  document.querySelector(".error-summary")?.focus();
})();
