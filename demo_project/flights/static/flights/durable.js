/* The page about durable events: what its buttons do is sent without leaving the page. What comes of it is heard of. */
"use strict";

(function () {
  const said = document.getElementById("act-said");

  async function send(url, data) {
    const response = await fetch(url, { method: "POST", body: data });
    if (!response.ok) {
      throw new Error("the server answered " + response.status);
    }
    if (new URL(response.url).pathname !== window.location.pathname) {
      throw new Error("the server answered with another page");
    }
  }

  document.getElementById("act").addEventListener("submit", async function (event) {
    event.preventDefault();
    const button = event.submitter;
    if (button.getAttribute("aria-disabled")) {
      return; // it is being sent
    }
    const data = new FormData(event.target);
    data.append(button.name, button.value);
    button.setAttribute("aria-disabled", "true"); // `disabled` would take the focus away
    said.textContent = "";
    try {
      await send(button.formAction, data);
    } catch (error) {
      said.textContent = said.dataset.failed + " " + error.message;
    }
    button.removeAttribute("aria-disabled");
  });
})();
