// Passkeys: a form with data-passkey="create" or "get" asks the browser for a credential before it is sent. The options
// stand in a JSON script of the page (data-options is its id), or are fetched from where the form goes.
(() => {
  const release = (form) => {
    delete form.dataset.busy;
    for (const element of [form, ...form.querySelectorAll("[aria-busy]")]) element.removeAttribute("aria-busy");
  };

  const optionsOf = async (form) => {
    const script = document.getElementById(form.dataset.options);
    if (script) return JSON.parse(script.textContent);
    const response = await fetch(form.action, { headers: { Accept: "application/json" } });
    return response.json();
  };

  const ask = async (form) => {
    const options = await optionsOf(form);
    if (form.dataset.passkey === "get") return webauthnJSON.get(options.request_options);
    const wanted = options.creation_options;
    const alone = form.elements.passwordless?.checked;
    wanted.publicKey.authenticatorSelection = {
      ...wanted.publicKey.authenticatorSelection,
      residentKey: alone ? "required" : "discouraged",
      requireResidentKey: Boolean(alone),
      userVerification: alone ? "required" : "discouraged",
    };
    return webauthnJSON.create(wanted);
  };

  for (const form of document.querySelectorAll("form[data-passkey]")) {
    const failure = form.querySelector("[data-passkey-failure]");
    // beside the form that signs in by password, so that the page has one button that Enter means
    form.querySelector("[data-passkey-start]")?.addEventListener("click", () => form.requestSubmit());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      failure.hidden = true;
      try {
        form.elements.credential.value = JSON.stringify(await ask(form));
        form.submit();
      } catch {
        // the person said no, took too long, or the browser has no passkey for this place
        release(form);
        failure.hidden = false;
      }
    });
  }
})();
