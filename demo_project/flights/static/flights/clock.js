/* The day's clock: ticks here between two messages of the server, and its controls turn the server's hands. */
"use strict";

flights.clock = (function () {
  const face = document.querySelector("#clock .time");
  const controls = document.getElementById("controls");
  const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "America/New_York" });
  let reading = null; // {read, at, speed, paused, part, heard}
  let length = 0; // of the day, in seconds
  let scrubbing = false;

  // Seconds since 1970, of that day.
  function now() {
    const passed = reading.paused ? 0 : ((performance.now() - reading.heard) / 1000) * reading.speed;
    return reading.at + passed;
  }

  function part() {
    return Math.min(reading.part + (length ? (now() - reading.at) / length : 0), 1);
  }

  function draw() {
    const text = time.format(new Date(now() * 1000));
    if (face.textContent !== text) {
      face.textContent = text;
    }
    if (controls && !scrubbing) {
      const slider = controls.elements.part;
      slider.value = String(Math.round(part() * 1000));
      slider.setAttribute("aria-valuetext", text);
    }
  }

  function set(given) {
    if (reading && given.read < reading.read) {
      return; // it was overtaken on its way here, and may be of before the hands were turned
    }
    reading = { ...given, at: Date.parse(given.at) / 1000, heard: performance.now() };
    length = Number(given.length || 0);
    draw();
    if (controls) {
      const button = controls.querySelector(".play");
      button.setAttribute("aria-pressed", String(!reading.paused));
      button.querySelector(".visually-hidden").textContent = reading.paused ? button.dataset.play : button.dataset.pause;
      const options = Array.from(controls.elements.speed.options);
      const chosen = options.find((option) => Number(option.value) === reading.speed);
      if (chosen) {
        chosen.selected = true;
      }
    }
  }

  async function turn(hands) {
    try {
      set(await flights.post(controls.dataset.url, hands));
    } catch (error) {
      console.info("The clock was not set: " + error.message);
    }
  }

  if (controls) {
    const slider = controls.elements.part;
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.querySelector(".play").addEventListener("click", () => turn({ paused: !reading.paused }));
    controls.elements.speed.addEventListener("change", (event) => turn({ speed: Number(event.target.value) }));
    slider.addEventListener("input", function () {
      scrubbing = true;
      const text = time.format(new Date((reading.at + (slider.value / 1000 - reading.part) * length) * 1000));
      face.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    });
    slider.addEventListener("change", async function () {
      await turn({ jump: slider.value / 1000 });
      scrubbing = false;
    });
  }

  set(JSON.parse(document.getElementById("clock-reading").textContent));
  document.body.addEventListener("pg:channel:flights_clock", (event) => (event.detail.payloads || []).forEach(set));
  window.setInterval(draw, 200);
  return { now, set };
})();
