/* The page about durable events: its forms are sent, and its contents fetched anew, without a reload. */
"use strict";

(function () {
  const page = document.getElementById("durable");
  const LOOK_AGAIN = 1000; // milliseconds: waiting times pass without an event

  async function takeOver(response) {
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const focused = document.activeElement?.closest("form")?.getAttribute("action");
    const [before, after] = [page, fresh.getElementById("durable")];
    if (before.innerHTML === after.innerHTML) {
      return;
    }
    const figures = new Map(Array.from(page.querySelectorAll("dd"), (one, place) => [place, one.textContent]));
    before.replaceChildren(...after.childNodes);
    page.querySelectorAll("dd").forEach(function (one, place) {
      if (figures.get(place) !== one.textContent) {
        flights.mark(one);
      }
    });
    if (focused) {
      page.querySelector('form[action="' + focused + '"] button')?.focus({ preventScroll: true });
    }
  }

  page.addEventListener("submit", async function (event) {
    event.preventDefault();
    const form = event.target;
    try {
      const response = await fetch(form.action, { method: "POST", body: new FormData(form) });
      await takeOver(response);
    } catch (error) {
      console.info("The form could not be sent: " + error.message);
    }
  });

  const refresh = async () => takeOver(await flights.get(window.location.href));
  flights.keepFresh(refresh);
  window.setInterval(() => document.hidden || refresh().catch(() => {}), LOOK_AGAIN);
})();
