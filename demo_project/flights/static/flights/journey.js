/* "One event": causes a write, and shows what each station has seen of it. */
"use strict";

(function () {
  const page = document.getElementById("journey");
  const button = page.querySelector("button");
  const status = page.querySelector("[role=status]");
  const numbers = document.getElementById("numbers-of").dataset.url;
  const WITHIN = 10000; // milliseconds
  let lines = new Map(); // the news of flights, as last fetched

  const station = (name) => page.querySelector('[data-station="' + name + '"]');
  const json = (value) => JSON.stringify(value, null, 2).replace(/\[\s+([^[\]{}]*?)\s+\]/g, (all, inner) => "[" + inner.replace(/\s+/g, " ") + "]");

  function pass(name, milliseconds, text, note) {
    const element = station(name);
    element.classList.add("passed");
    const figure = document.createElement("b");
    const sign = milliseconds < 0 ? "−" : "+";
    figure.textContent = sign + Math.abs(milliseconds).toFixed(1) + " ms";
    element.querySelector(".when").replaceChildren(figure, note);
    element.querySelector("pre").textContent = text;
  }

  function clear() {
    for (const element of page.querySelectorAll(".station")) {
      element.classList.remove("passed");
      element.querySelector(".when").replaceChildren();
      element.querySelector("pre").textContent = "";
    }
  }

  function showServer(seen) {
    const { write, trigger, relay, receiver } = seen;
    pass("write", write.begun - write.commit, write.sql, "begun");
    pass("trigger", trigger.at - write.commit, json(trigger.payload), trigger.bytes + " bytes");
    for (const [name, noted] of Object.entries({ relay, receiver })) {
      if (noted) {
        pass(name, noted.at - write.commit, json(noted.event), noted.thread === "MainThread" ? "event loop" : noted.thread);
      }
    }
  }

  async function follow() {
    button.disabled = true;
    clear();
    try {
      const clocks = await flights.compareClocks(page.dataset.moment);
      const seen = await flights.post(page.dataset.url, {});
      showServer(seen);
      const commit = seen.write.commit - clocks.offset;
      const arrival = await flights.heardOf(seen.write.keys, commit - clocks.within, WITHIN);
      if (arrival === null) {
        throw new Error("the browser has not heard of it");
      }
      pass("browser", arrival.at - commit, json(arrival.frame), "arrived");
      const painted = await arrival.painted;
      pass("paint", painted - commit, json(lines.get(seen.write.keys[0])), "painted");
      status.textContent = seen.write.said + ". ±" + clocks.within.toFixed(1) + " ms";
      page.dataset.done = "true";
    } catch (error) {
      status.textContent = page.dataset.failed + " " + error.message;
    }
    button.disabled = false;
    button.focus({ preventScroll: true });
  }

  button.addEventListener("click", follow);
  flights.keepFresh(async function (news) {
    const keys = Array.from(news.changed.keys()).slice(-50).join();
    const fresh = await (await flights.get(numbers + "?changed=" + encodeURIComponent(keys))).json();
    flights.clock.set(fresh.clock);
    lines = new Map(fresh.changed.map((line) => [line.pk, line]));
  });
})();
