/* Listens to PgEventConsumer. No dependencies, nothing inline: it runs under Content-Security-Policy: default-src 'self'.

     const live = pgsignals.connect("/ws/pg/", ["flights.flight"], {
       onEvent(message) {},   // {topic, refetch, events: [[operation, key, [changed fields]], ...]} or payloads
       onGap(message) {},     // {topic, cause}: something may have been missed, fetch anew
       onTopic(topic) {},     // {topic, granted}: from here on its events come; or they do not, or no longer
       onState(state) {},     // "connecting", "live", "lost", "refused"
     });
     live.subscribe(["flights.airline"]);
     live.unsubscribe(["flights.airline"]);
     live.close();

   "lost" is shown when the WebSocket is gone or silent, and when the relay behind it has no connection to the database.
   "refused" is shown when the user may hear of none of the topics (any more). Who may not listen at all is refused once,
   and nothing is tried again.
   After a reconnect onGap is called, because nobody knows what happened meanwhile. For durable events the server knows:
   it is told how far we are, and what was missed comes as onEvent.
*/
"use strict";

(function () {
  // Milliseconds.
  const FIRST_WAIT = 500;
  const LONGEST_WAIT = 15000;
  const PING_EVERY = 25000;
  const ANSWER_WITHIN = 10000;
  const ANSWER_SOON = 3000; // where there is a reason to doubt
  const GAP_SPREAD = 400;
  // The close code for who may not listen at all.
  const REFUSED = 4403;

  function absolute(url) {
    const full = new URL(url, window.location.href);
    full.protocol = full.protocol === "https:" ? "wss:" : full.protocol === "http:" ? "ws:" : full.protocol;
    return full.href;
  }

  // Browsers that lost the same server must not come back in step.
  function jittered(attempt) {
    return Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** Math.min(attempt, 10)) * (0.5 + Math.random() / 2);
  }

  function connect(url, topics, handlers) {
    const wanted = new Set(topics);
    const granted = new Set();
    const before = new Set(); // topics that were granted once
    const heard = new Map(); // how far we are, by topic: what the server calls the id
    const gaps = new Set(); // topics whose gap is about to be told
    let socket = null;
    let attempt = 0;
    let timer = null; // of the next attempt
    let pulse = null; // of the next ping, or of the answer to it, or of the connection
    let spoke = 0; // when the server was called, or last spoke; by a clock that goes on while the machine sleeps
    let closed = false;
    let turnedAway = false;
    let state = null;

    const isOpen = () => socket !== null && socket.readyState === WebSocket.OPEN;

    function call(name, argument) {
      if (!closed && handlers[name]) {
        handlers[name](argument);
      }
    }

    function become(next) {
      if (next !== state) {
        state = next;
        call("onState", next);
      }
    }

    // A gap reaches all browsers at once, and each will ask the server for everything: spread that a little.
    function announceGap(topic, cause) {
      if (!gaps.has(topic)) {
        gaps.add(topic);
        window.setTimeout(function () {
          gaps.delete(topic);
          call("onGap", { topic: topic, cause: cause });
        }, Math.random() * GAP_SPREAD);
      }
    }

    const on = {
      subscribed(message) {
        for (const topic of message.topics) {
          granted.add(topic);
          if (before.has(topic) && !(message.resumed || []).includes(topic)) {
            announceGap(topic, "reconnected");
          }
          before.add(topic);
        }
        for (const topic of message.refused) {
          granted.delete(topic);
          console.warn("pgsignals: the server refused the topic " + topic);
        }
        Object.entries(message.ids || {}).forEach(([topic, id]) => heard.set(topic, id));
        attempt = 0;
        become(granted.size ? "live" : "refused");
        message.topics.forEach((topic) => call("onTopic", { topic: topic, granted: true }));
        message.refused.forEach((topic) => call("onTopic", { topic: topic, granted: false }));
      },
      event(message) {
        become("live");
        if (message.id) {
          heard.set(message.topic, message.id);
        }
        call("onEvent", message);
      },
      ack(message) {
        socket.send(JSON.stringify({ ack: message.number })); // or the server takes us for too slow
      },
      gap(message) {
        become("live");
        announceGap(message.topic, message.cause);
      },
      lost() {
        become("lost");
      },
      refused(message) {
        granted.delete(message.topic);
        call("onTopic", { topic: message.topic, granted: false });
        if (granted.size === 0) {
          become("refused");
        }
      },
      error(message) {
        console.warn("pgsignals: " + message.message);
      },
    };

    // A connection whose other end vanished says nothing, for ever: silence is asked whether it is still there.
    function alive() {
      spoke = Date.now();
      window.clearTimeout(pulse);
      pulse = window.setTimeout(() => ping(ANSWER_WITHIN), PING_EVERY);
    }

    function ping(within) {
      window.clearTimeout(pulse);
      socket.send('{"ping": 1}');
      pulse = window.setTimeout(again, within);
    }

    function ask(topics) {
      const since = Array.from(heard).filter(([topic]) => topics.includes(topic));
      const said = since.length ? { subscribe: topics, since: Object.fromEntries(since) } : { subscribe: topics };
      socket.send(JSON.stringify(said));
    }

    function letGo() {
      window.clearTimeout(pulse);
      if (socket !== null) {
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.close();
        socket = null;
      }
    }

    function again() {
      letGo();
      become("lost");
      attempt += 1;
      timer = window.setTimeout(open, jittered(attempt));
    }

    function refuse(topics) {
      topics.forEach((topic) => call("onTopic", { topic: topic, granted: false }));
    }

    function turnAway() {
      turnedAway = true;
      letGo();
      granted.clear();
      refuse(wanted);
      become("refused");
    }

    function open() {
      timer = null;
      spoke = Date.now();
      try {
        socket = new WebSocket(absolute(url));
      } catch (error) {
        console.warn("pgsignals: " + error.message);
        again();
        return;
      }
      pulse = window.setTimeout(again, ANSWER_WITHIN); // a browser would try for minutes
      socket.onopen = function () {
        granted.clear();
        ask(Array.from(wanted));
        alive();
      };
      socket.onmessage = function (event) {
        alive();
        const message = JSON.parse(event.data);
        if (Object.hasOwn(on, message.type)) {
          on[message.type](message);
        }
      };
      socket.onclose = (event) => (event.code === REFUSED ? turnAway() : again());
    }

    // A network that returns need not wait for the timer; and what was begun over the one before may be dead.
    function atOnce() {
      if (turnedAway) {
        return;
      }
      if (isOpen()) {
        ping(ANSWER_SOON);
      } else {
        window.clearTimeout(timer);
        letGo();
        open();
      }
    }

    // A laptop that wakes has slept through its pings.
    function seen() {
      if (!document.hidden && Date.now() - spoke > PING_EVERY + ANSWER_WITHIN) {
        atOnce();
      }
    }
    window.addEventListener("online", atOnce);
    document.addEventListener("visibilitychange", seen);

    become("connecting");
    open();
    return {
      subscribe(topics) {
        const more = topics.filter((topic) => !wanted.has(topic));
        more.forEach((topic) => wanted.add(topic));
        if (turnedAway) {
          refuse(more);
        }
        if (more.length && isOpen()) {
          ask(more);
        }
      },
      unsubscribe(topics) {
        const gone = topics.filter((topic) => wanted.delete(topic));
        [granted, before, heard].forEach((one) => gone.forEach((topic) => one.delete(topic)));
        if (gone.length && isOpen()) {
          socket.send(JSON.stringify({ unsubscribe: gone }));
        }
      },
      close() {
        closed = true;
        window.removeEventListener("online", atOnce);
        document.removeEventListener("visibilitychange", seen);
        window.clearTimeout(timer);
        letGo();
      },
    };
  }

  window.pgsignals = { connect: connect };
})();
