/* What both live pages do: show the connection's state, and fetch anew when something happened, but not too often.

     flights.keepFresh(function refresh(news) { return a promise; });

   news.changed: Map of key -> operation since the last call; news.everything: true where these may not be all.
*/
"use strict";

(function () {
  const PAUSE = 250; // milliseconds between two fetches: four a second are as live as an eye can tell
  const RETRY = 2000; // milliseconds after a fetch that failed

  function keepFresh(refresh) {
    const sign = document.getElementById("live");
    let changed = new Map();
    let everything = false;
    let timer = null;
    let busy = false;

    function ask(delay) {
      if (timer === null && !busy) {
        timer = window.setTimeout(run, delay);
      }
    }

    async function run() {
      const news = { changed: changed, everything: everything };
      changed = new Map();
      everything = false;
      timer = null;
      busy = true;
      let delay = PAUSE;
      try {
        await refresh(news);
      } catch (error) {
        console.info("The page could not be refreshed, and tries again: " + error.message);
        everything = true;
        delay = RETRY;
      }
      busy = false;
      if (everything || changed.size) {
        ask(delay);
      }
    }

    function all() {
      everything = true;
      ask(0);
    }

    pgsignals.connect(sign.dataset.events, [sign.dataset.topic], {
      onEvent(message) {
        everything = everything || message.refetch;
        for (const [operation, key] of message.events) {
          changed.set(key, operation);
        }
        ask(0);
      },
      onGap: all,
      onState(state) {
        sign.dataset.state = state;
        sign.querySelector(".live-text").textContent = sign.dataset[state];
        // What happened between the page's making and its first listening is in no event.
        if (state === "live") {
          all();
        }
      },
    });
  }

  // The CSS animates what is marked; the mark goes with the animation, so that the next change shows too.
  function mark(element) {
    element.classList.remove("changed");
    void element.offsetWidth;
    element.classList.add("changed");
  }
  document.addEventListener("animationend", function (event) {
    event.target.classList.remove("changed");
  });

  async function get(url) {
    const response = await fetch(url, { cache: "no-store" });
    if (!response.ok || response.redirected) {
      throw new Error("the server answered " + response.status);
    }
    return response;
  }

  window.flights = { keepFresh: keepFresh, mark: mark, get: get };
})();
