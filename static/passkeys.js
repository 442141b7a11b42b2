// Passkeys: a form with data-passkey="create" or "get" asks the browser for a credential before it is sent. The options
// come from a JSON script of the page (data-options is its ID), or from the form's URL.
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

  const requestCredential = async (form) => {
    const options = await optionsOf(form);
    if (form.dataset.passkey === "get") return webauthnJSON.get(options.request_options);
    const wanted = options.creation_options;
    const passwordless = form.elements.passwordless?.checked;
    wanted.publicKey.authenticatorSelection = {
      ...wanted.publicKey.authenticatorSelection,
      residentKey: passwordless ? "required" : "discouraged",
      requireResidentKey: Boolean(passwordless),
      userVerification: passwordless ? "required" : "discouraged",
    };
    return webauthnJSON.create(wanted);
  };

  for (const form of document.querySelectorAll("form[data-passkey]")) {
    const failure = form.querySelector("[data-passkey-failure]");
    // Not a submit button, so that Enter submits the password form beside it.
    form.querySelector("[data-passkey-start]")?.addEventListener("click", () => form.requestSubmit());
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      failure.hidden = true;
      try {
        form.elements.credential.value = JSON.stringify(await requestCredential(form));
        form.submit();
      } catch {
        // The user cancelled, the request timed out, or the browser has no passkey for this site.
        release(form);
        failure.hidden = false;
      }
    });
  }
})();
