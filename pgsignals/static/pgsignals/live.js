/* Listens to PgEventConsumer. No dependencies, nothing inline: it runs under Content-Security-Policy: default-src 'self'.

     const live = pgsignals.connect("/ws/pg/", ["flights.flight"], {
       onEvent(message) {},   // {topic, refetch, events: [[operation, key, [changed fields]], ...]} or payloads
       onGap(message) {},     // {topic, cause}: something may have been missed, fetch anew
       onState(state) {},     // "connecting", "live", "lost", "refused"
     });
     live.close();

   "lost" is shown when the WebSocket is gone, and when the relay behind it has no connection to the database.
   After each reconnect onGap is called: nobody knows what happened meanwhile.
*/
"use strict";

(function () {
  const FIRST_WAIT = 500; // milliseconds
  const LONGEST_WAIT = 15000;

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
    let socket = null;
    let attempt = 0;
    let timer = null;
    let closed = false;
    let connectedBefore = false;
    let state = null;

    function call(name, argument) {
      if (handlers[name]) {
        handlers[name](argument);
      }
    }

    function become(next) {
      if (next !== state) {
        state = next;
        call("onState", next);
      }
    }

    function subscribed(message) {
      if (message.topics.length === 0) {
        become("refused");
        return;
      }
      attempt = 0;
      become("live");
      if (connectedBefore) {
        for (const topic of message.topics) {
          call("onGap", { topic: topic, cause: "reconnected" });
        }
      }
      connectedBefore = true;
    }

    const on = {
      subscribed: subscribed,
      event(message) {
        become("live");
        call("onEvent", message);
      },
      gap(message) {
        become("live");
        call("onGap", message);
      },
      lost() {
        become("lost");
      },
      refused() {
        become("refused");
      },
      error(message) {
        console.warn("pgsignals: " + message.message);
      },
    };

    function again() {
      if (closed) {
        return;
      }
      become("lost");
      attempt += 1;
      timer = window.setTimeout(open, jittered(attempt));
    }

    function open() {
      timer = null;
      try {
        socket = new WebSocket(absolute(url));
      } catch (error) {
        console.warn("pgsignals: " + error.message);
        again();
        return;
      }
      socket.addEventListener("open", function () {
        socket.send(JSON.stringify({ subscribe: topics }));
      });
      socket.addEventListener("message", function (event) {
        const message = JSON.parse(event.data);
        if (Object.hasOwn(on, message.type)) {
          on[message.type](message);
        }
      });
      socket.addEventListener("close", again);
    }

    // A laptop that wakes, or a network that returns, need not wait for the timer.
    function atOnce() {
      if (!closed && timer !== null) {
        window.clearTimeout(timer);
        open();
      }
    }
    window.addEventListener("online", atOnce);

    become("connecting");
    open();
    return {
      close() {
        closed = true;
        window.removeEventListener("online", atOnce);
        window.clearTimeout(timer);
        socket.close();
      },
    };
  }

  window.pgsignals = { connect: connect };
})();
