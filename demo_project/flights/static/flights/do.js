/* "Do something": causes a write, and measures its way from the commit to the paint. */
"use strict";

(function () {
  const panel = document.getElementById("do");
  const words = panel.dataset;
  const answer = panel.querySelector(".latency");
  const WITHIN = 10000; // milliseconds
  let clocks = null; // how this browser's clock and the server's compare

  function part(name, text, parent) {
    const element = document.createElement("span");
    element.className = name;
    element.textContent = text;
    parent.append(element);
  }

  const milliseconds = (value) => Math.round(value) + " ms";

  function say(done, figure, text) {
    const line = document.createElement("p");
    part("said", done.said, line);
    if (figure) {
      part("figure", figure, line);
    }
    part("quiet", text, line);
    answer.replaceChildren(line);
  }

  async function measure(done) {
    const rows = done.keys.length + " " + (done.keys.length === 1 ? words.row : words.rows);
    if (done.silent) {
      say(done, "", rows + ", " + words.silent);
      return;
    }
    // The server's moment, on this browser's clock.
    const commit = done.commit - clocks.offset;
    const arrival = await flights.heardOf(done.keys, commit - clocks.within, WITHIN);
    if (arrival === null) {
      say(done, "", rows + ", " + words.unheard);
      return;
    }
    const painted = (await arrival.painted) - commit;
    panel.dataset.latency = String(painted);
    const about = words.heard + " " + milliseconds(arrival.at - commit) + ", ±" + Math.ceil(clocks.within) + " ms";
    say(done, milliseconds(painted), words.painted + " · " + rows + ", " + about);
  }

  async function act(control, asked) {
    control.disabled = true;
    try {
      clocks = clocks || (await flights.compareClocks(words.moment));
      await measure(await flights.post(words.url, asked));
    } catch (error) {
      say({ said: words.failed }, "", error.message);
    }
    control.disabled = false;
    control.focus({ preventScroll: true });
  }

  panel.querySelector("button.deed").addEventListener("click", (event) => act(event.currentTarget, { deed: "delay" }));
  for (const form of panel.querySelectorAll("form")) {
    form.addEventListener("submit", function (event) {
      event.preventDefault();
      act(form.querySelector("button"), { deed: form.dataset.deed, ...Object.fromEntries(new FormData(form)) });
    });
  }
  const statements = document.getElementById("do-statement");
  statements.addEventListener("change", function () {
    document.getElementById("do-sql").textContent = statements.selectedOptions[0].dataset.sql;
  });
})();
