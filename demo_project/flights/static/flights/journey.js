/* "One event": causes a write, and shows what each station has seen of it. */
"use strict";

(function () {
  const page = document.getElementById("journey");
  const words = page.dataset;
  const button = page.querySelector("button");
  const status = page.querySelector("[role=status]");
  const numbers = document.getElementById("numbers-of").dataset.url;
  const WITHIN = 10000; // milliseconds
  let lines = new Map(); // the news of flights, as last fetched

  const station = (name) => page.querySelector('[data-station="' + name + '"]');

  // A line for each name, and not for each bracket.
  function json(value) {
    const spaced = (one) => JSON.stringify(one, null, 1).replace(/\n\s*/g, " ").replace(/([[{]) /g, "$1").replace(/ ([\]}])/g, "$1");
    return Object.entries(value).map(([name, one]) => name + ": " + spaced(one)).join("\n");
  }

  const signed = (milliseconds) => (milliseconds < 0 ? "−" : "+") + Math.abs(milliseconds).toFixed(1) + " ms";

  function pass(name, milliseconds, text, note) {
    const element = station(name);
    element.classList.add("passed");
    const figure = document.createElement("b");
    figure.textContent = signed(milliseconds);
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
    pass("write", write.begun - write.commit, write.sql, words.begun);
    pass("trigger", trigger.at - write.commit, json(trigger.payload), trigger.bytes + " " + words.bytes);
    if (relay) {
      pass("relay", relay.at - write.commit, json(relay.event), words.called);
    }
    if (receiver) {
      pass("receiver", receiver.at - write.commit, "event.instance() = " + receiver.instance, words.called);
    }
  }

  async function follow() {
    button.disabled = true;
    clear();
    try {
      const clocks = await flights.compareClocks(words.moment);
      const seen = await flights.post(words.url, {});
      showServer(seen);
      const commit = seen.write.commit - clocks.offset;
      const arrival = await flights.heardOf(seen.write.keys, commit - clocks.within, WITHIN);
      if (arrival === null) {
        throw new Error("the browser has not heard of it");
      }
      pass("browser", arrival.at - commit, json(arrival.message), words.arrived);
      const painted = await arrival.painted;
      pass("paint", painted - commit, json(lines.get(seen.write.keys[0])), words.painted);
      status.textContent = seen.write.said + ". ±" + clocks.within.toFixed(1) + " ms";
      page.dataset.done = "true";
    } catch (error) {
      status.textContent = words.failed + " " + error.message;
    }
    button.disabled = false;
    button.focus({ preventScroll: true });
  }

  button.addEventListener("click", follow);
  flights.keepFresh(async function (keys) {
    const wanted = encodeURIComponent(keys.slice(-50).join());
    const fresh = await (await flights.get(numbers + "?changed=" + wanted)).json();
    flights.clock.set(fresh.clock);
    lines = new Map(fresh.changed.map((line) => [line.pk, line]));
  });
})();
