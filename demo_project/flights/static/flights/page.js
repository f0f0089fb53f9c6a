/* What all live pages do: show the connection's state, fetch anew when something happened, but not too often, and note
   when what was heard of stood on the screen.

     flights.keepFresh(function refresh(news) { return a promise; });

   news.changed: Map of key -> operation since the last call; news.everything: true where these may not be all.
*/
"use strict";

window.flights = (function () {
  const PAUSE = 150; // milliseconds between two fetches
  const RETRY = 2000; // milliseconds after a fetch that failed
  const REMEMBER = 15000; // milliseconds for which arrivals are remembered
  const sign = document.getElementById("live");
  const listeners = {};

  // Milliseconds since 1970, finer than Date.now().
  const now = () => performance.timeOrigin + performance.now();

  // Once the browser has painted what the document says now.
  function painted() {
    return new Promise(function (resolve) {
      requestAnimationFrame(function () {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => resolve(now());
        channel.port2.postMessage(null);
      });
    });
  }

  // What was heard: {at, keys (null where all rows may have changed), painted (a promise of the moment)}.
  const arrivals = [];
  const waiting = []; // what is to be told when something arrives

  function arrive(keys) {
    const arrival = { at: now(), keys: keys, frame: null };
    arrival.painted = new Promise((resolve) => (arrival.resolve = resolve));
    arrivals.push(arrival);
    while (arrivals.length && arrivals[0].at < arrival.at - REMEMBER) {
      arrivals.shift();
    }
    waiting.splice(0).forEach((tell) => tell());
    return arrival;
  }

  // The arrival with which the last of these keys was heard of, of those since a moment; null after `within` ms.
  async function heardOf(keys, since, within) {
    const deadline = now() + within;
    for (;;) {
      const missing = new Set(keys);
      for (const arrival of arrivals.filter((one) => one.at >= since)) {
        if (arrival.keys === null) {
          return arrival;
        }
        arrival.keys.forEach((key) => missing.delete(key));
        if (missing.size === 0) {
          return arrival;
        }
      }
      if (now() >= deadline) {
        return null;
      }
      await new Promise(function (resolve) {
        waiting.push(resolve);
        window.setTimeout(resolve, deadline - now());
      });
    }
  }

  function keepFresh(refresh) {
    let changed = new Map();
    let everything = false;
    let timer = null;
    let busy = false;
    let unpainted = [];

    function ask(delay) {
      if (timer === null && !busy) {
        timer = window.setTimeout(run, delay);
      }
    }

    async function run() {
      const news = { changed: changed, everything: everything };
      const shows = unpainted;
      changed = new Map();
      everything = false;
      unpainted = [];
      timer = null;
      busy = true;
      let delay = PAUSE;
      try {
        await refresh(news);
        painted().then((at) => shows.forEach((arrival) => arrival.resolve(at)));
      } catch (error) {
        console.info("The page could not be refreshed, and tries again: " + error.message);
        everything = true;
        unpainted = shows.concat(unpainted);
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

    pgsignals.connect(sign.dataset.events, sign.dataset.topics.split(" "), {
      onEvent(message) {
        if (message.payloads) {
          message.payloads.forEach((payload) => listeners[message.topic]?.(payload));
          return;
        }
        const arrival = arrive(message.refetch ? null : new Set(message.events.map((event) => event[1])));
        arrival.frame = message;
        unpainted.push(arrival);
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
    void element.getBoundingClientRect();
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

  // Sends JSON and gets JSON; what the server refuses is an error with its words.
  async function post(url, data) {
    const token = document.querySelector("input[name=csrfmiddlewaretoken]").value;
    const response = await fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": token },
      body: JSON.stringify(data),
    });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) {
      throw new Error(answer.refused || "the server answered " + response.status);
    }
    return answer;
  }

  // How far this browser's clock is from the server's, and within how many milliseconds that is certain: of several
  // questions the one that was answered first leaves the least room.
  async function compareClocks(url) {
    let best = { offset: 0, within: Infinity };
    for (let round = 0; round < 8; round += 1) {
      const asked = now();
      const theirs = Number(await (await get(url)).text());
      const answered = now();
      const within = (answered - asked) / 2;
      if (within < best.within) {
        best = { offset: theirs - (asked + answered) / 2, within: within };
      }
    }
    return best;
  }

  // On messages of an application channel.
  function on(topic, listener) {
    listeners[topic] = listener;
  }

  const still = window.matchMedia("(prefers-reduced-motion: reduce)");

  return { keepFresh, mark, get, post, on, now, painted, heardOf, compareClocks, still };
})();
