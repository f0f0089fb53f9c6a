/* Ordinary pages: what {% pg_live %} and {% pg_topics %} mark takes part in what happens. After live.js and refresh.js.

   data-pg-topics="flights.flight channel:news"   events of these topics are dispatched as DOM events: `pg:flights.flight`
                                                  on the element and on the body, with the message in event.detail
   data-pg-fragment="name"                        besides, the element's content is fetched anew, from data-pg-url or
                                                  from the page's own address, where it must have the same name

   The element has data-pg-state: connecting, live, lost, refused; and data-pg-gone where the page that was fetched has it
   no more. Before its content is replaced it gets the event
   `pg:before-swap`, which may be prevented; afterwards `pg:swap`.
*/
"use strict";

(function () {
  const MARKED = "[data-pg-topics]";
  const FOCUSABLE = "a[href], button, input, select, textarea, summary, [tabindex]";
  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // written by hand
    }
  }
  const topicsOf = (element) => element.dataset.pgTopics.split(" ").filter(Boolean).map(decoded);
  const urlOf = (element) => new URL(element.dataset.pgUrl || "", window.location.href.split("#")[0]).href;
  const fragments = () => document.querySelectorAll(MARKED + "[data-pg-fragment]");
  const refreshers = new Map(); // by the URL that fragments are fetched from
  const sockets = new Map(); // by the URL of the WebSocket
  const asked = new Map(); // topics, by the same
  const states = new Map();
  const granted = new Map(); // by the URL and the topic

  function dispatch(name, detail) {
    const at = [document.body, ...document.querySelectorAll(MARKED)];
    const topic = name.slice("pg:".length);
    for (const element of new Set(at)) {
      if (element === document.body || topicsOf(element).includes(topic)) {
        element.dispatchEvent(new CustomEvent(name, { detail: detail }));
      }
    }
  }

  const isInUse = (field) => field === document.activeElement || pgsignals.isEdited(field);

  // For each of these in the one, the one at its place in the other; where they are as many.
  function pairs(element, fresh, selector) {
    const [before, after] = [element, fresh].map((one) => Array.from(one.querySelectorAll(selector)));
    return before.length === after.length ? before.map((one, place) => [one, after[place]]) : [];
  }

  // A CSRF token is another in each answer, and as good as the one before; and what is unfolded stays so.
  function takeAlong(element, fresh) {
    const token = 'input[name="csrfmiddlewaretoken"]';
    pairs(element, fresh, token).forEach(([one, other]) => other.setAttribute("value", one.getAttribute("value")));
    pairs(element, fresh, "details").forEach(([one, other]) => other.toggleAttribute("open", one.open));
  }

  // Also of what has no id: at the same place.
  function refocus(element, focused) {
    const found = Array.from(element.querySelectorAll(FOCUSABLE));
    const again = (focused.id && document.getElementById(focused.id)) || (found.length === focused.of && found[focused.place]);
    if (again && again.matches(focused.tag)) {
      again.focus({ preventScroll: true });
    }
  }

  function focusIn(element) {
    const active = document.activeElement;
    const found = Array.from(element.querySelectorAll(FOCUSABLE));
    return found.includes(active) && { id: active.id, tag: active.localName, place: found.indexOf(active), of: found.length };
  }

  function swap(element, fresh) {
    element.toggleAttribute("data-pg-gone", fresh === null);
    if (fresh === null) {
      return;
    }
    takeAlong(element, fresh);
    if (element.innerHTML === fresh.innerHTML) {
      return;
    }
    if (Array.from(element.querySelectorAll("input, select, textarea")).some(isInUse)) {
      element.dataset.pgWaits = ""; // until the visitor is done
      return;
    }
    delete element.dataset.pgWaits;
    if (element.dispatchEvent(new CustomEvent("pg:before-swap", { cancelable: true, detail: { fresh: fresh } }))) {
      const focused = focusIn(element);
      element.replaceChildren(...fresh.childNodes);
      if (focused) {
        refocus(element, focused);
      }
      element.dispatchEvent(new CustomEvent("pg:swap", { bubbles: true }));
    }
  }

  function refresherOf(url) {
    if (!refreshers.has(url)) {
      refreshers.set(url, pgsignals.refresher(async function () {
        const page = await pgsignals.page(url);
        for (const element of fragments()) {
          const named = `[data-pg-fragment="${CSS.escape(element.dataset.pgFragment)}"]`;
          if (urlOf(element) === url) {
            swap(element, page.querySelector(named));
          }
        }
      }));
    }
    return refreshers.get(url);
  }

  // All that a topic's fragments need; those of one URL are fetched together.
  function refresh(topic, how) {
    const urls = Array.from(fragments()).filter((one) => !topic || topicsOf(one).includes(topic)).map(urlOf);
    new Set(urls).forEach((url) => how(refresherOf(url)));
  }

  // "live" only where it hears of something: what was put in later is asked for later.
  function show(element) {
    const state = states.get(element.dataset.pgSocket);
    const known = topicsOf(element).map((topic) => granted.get(element.dataset.pgSocket + " " + topic));
    const mine = known.includes(true) ? "live" : known.includes(undefined) ? "connecting" : "refused";
    element.dataset.pgState = state === "live" || state === "refused" ? mine : state;
  }

  function showAll() {
    document.querySelectorAll(MARKED).forEach(show);
  }

  const connect = (socket, topics) => pgsignals.connect(socket, topics, {
    onEvent(message) {
      dispatch("pg:" + message.topic, message);
      refresh(message.topic, (one) => one.tell(message));
    },
    onGap(message) {
      dispatch("pg:" + message.topic, Object.assign({ refetch: true }, message));
      refresh(message.topic, (one) => one.all());
    },
    onTopic(message) {
      granted.set(socket + " " + message.topic, message.granted);
      showAll();
      if (message.granted) {
        refresh(message.topic, (one) => one.all()); // what happened since the page was made is in no event
      }
    },
    onState(state) {
      states.set(socket, state);
      showAll();
      dispatch("pg:state", { state: state });
      if (state === "live") {
        refresh(null, (one) => one.all()); // nor what happened while the connection was lost
      }
    },
  });

  // Also for what htmx, or the page's own scripts, put in later or take away.
  function scan() {
    const present = new Map(Array.from(asked.keys(), (socket) => [socket, new Set()]));
    for (const element of document.querySelectorAll(MARKED)) {
      const socket = element.dataset.pgSocket;
      if (!sockets.has(socket)) {
        sockets.set(socket, connect(socket, topicsOf(element)));
      }
      sockets.get(socket).subscribe(topicsOf(element));
      present.set(socket, new Set([...(present.get(socket) || []), ...topicsOf(element)]));
      show(element);
    }
    for (const [socket, topics] of present) {
      const gone = Array.from(asked.get(socket) || []).filter((topic) => !topics.has(topic));
      sockets.get(socket).unsubscribe(gone);
      gone.forEach((topic) => granted.delete(socket + " " + topic));
      asked.set(socket, topics);
    }
  }

  scan();
  new MutationObserver(scan).observe(document.documentElement, { childList: true, subtree: true });
  document.addEventListener("focusout", function (event) {
    const waiting = event.target.closest("[data-pg-waits]");
    if (waiting) {
      window.setTimeout(() => refresherOf(urlOf(waiting)).all());
    }
  });
})();
