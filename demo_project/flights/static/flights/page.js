/* What the pages have in common: the sign of the connection, when what was heard of stood on the screen, and how to ask
   the server. That events come at all is pgsignals' doing: they are DOM events on the body. */
"use strict";

window.flights = (function () {
  const FLIGHT = "pg:flights.flight";
  const REMEMBER = 15000; // milliseconds for which arrivals are remembered
  const sign = document.getElementById("live");

  // Milliseconds since 1970, finer than Date.now().
  const now = () => performance.timeOrigin + performance.now();

  // The moment when the browser has painted what the document says now.
  function painted() {
    return new Promise(function (resolve) {
      requestAnimationFrame(function () {
        const channel = new MessageChannel();
        channel.port1.onmessage = () => resolve(now());
        channel.port2.postMessage(null);
      });
    });
  }

  document.body.addEventListener("pg:state", function (event) {
    sign.dataset.state = event.detail.state;
    sign.querySelector(".live-text").textContent = sign.dataset[event.detail.state];
  });

  // What was heard of flights: {at, keys (null where all may have changed), message, painted (a promise of the moment)}.
  const arrivals = [];
  const waiting = []; // what is to be told when something arrives

  function arrive(message) {
    const keys = message.refetch ? null : new Set(message.events.map((event) => event[1]));
    const arrival = { at: now(), keys, message };
    arrival.painted = new Promise((resolve) => (arrival.resolve = resolve));
    arrivals.push(arrival);
    while (arrivals[0].at < arrival.at - REMEMBER) {
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
        (arrival.keys || keys).forEach((key) => missing.delete(key));
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

  // Calls refresh(keys, everything) when flights have changed, and notes when that stood on the screen.
  function keepFresh(refresh) {
    let unpainted = [];
    const news = pgsignals.refresher(async function (told) {
      const shows = unpainted;
      unpainted = [];
      try {
        await refresh(Array.from(told.keys.keys()), told.everything);
      } catch (error) {
        unpainted = shows.concat(unpainted);
        throw error;
      }
      painted().then((at) => shows.forEach((arrival) => arrival.resolve(at)));
    });
    document.body.addEventListener(FLIGHT, function (event) {
      unpainted.push(arrive(event.detail));
      news.tell(event.detail);
    });
    document.body.addEventListener("pg:state", function (event) {
      if (event.detail.state === "live") {
        news.all(); // what happened since the page was made is in no event
      }
    });
  }

  // The CSS animates what is marked; the mark goes with the animation, so that the next change shows too.
  function mark(element) {
    element.classList.remove("changed");
    void element.getBoundingClientRect();
    element.classList.add("changed");
  }
  document.addEventListener("animationend", (event) => event.target.classList.remove("changed"));

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
    const headers = { "Content-Type": "application/json", "X-CSRFToken": token };
    const response = await fetch(url, { method: "POST", headers, body: JSON.stringify(data) });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok || answer.refused) {
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
        best = { offset: theirs - (asked + answered) / 2, within };
      }
    }
    return best;
  }

  const still = window.matchMedia("(prefers-reduced-motion: reduce)");

  return { keepFresh, mark, get, post, now, painted, heardOf, compareClocks, still };
})();
