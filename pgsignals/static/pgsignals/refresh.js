/* When to fetch anew: soon after something happened, once for a burst, never twice at a time, and not in a hidden tab.

     const news = pgsignals.refresher(async function refresh(news) {});
     news.tell(message);   // an event of pgsignals.connect
     news.all();           // anything may have changed, also whether the server gives the page

   news.keys: Map of key (as text) -> operation, since the last call; news.everything: true where these may not be all.
   Where refresh() rejects it is called again, later and later; with an error whose `final` is true not before all().
*/
"use strict";

(function () {
  // Milliseconds. A few rows are shown at once; of a bulk write more is about to come.
  const FEW = 60;
  const MANY = 350;
  const LONGEST = 1500;
  const PAUSE = 200;
  const FIRST_RETRY = 2000;
  const LAST_RETRY = 60000;
  const MANY_KEYS = 20;
  const MOST_KEYS = 1000;

  function refresher(refresh) {
    let news = nothing();
    let since = 0; // when the first of the news came
    let timer = null;
    let busy = false;
    let rest = 0; // nothing is fetched before
    let failures = 0;
    let over = false;

    function nothing() {
      return { keys: new Map(), everything: false };
    }

    function ask(delay) {
      const now = performance.now();
      since = since || now;
      if (over || busy || document.hidden) {
        return;
      }
      window.clearTimeout(timer);
      timer = window.setTimeout(run, Math.max(Math.min(now + delay, since + LONGEST), rest) - now);
    }

    async function run() {
      const told = news;
      news = nothing();
      since = 0;
      busy = true;
      try {
        await refresh(told);
        failures = 0;
        rest = performance.now() + PAUSE;
      } catch (error) {
        over = Boolean(error.final);
        failures += 1;
        console.info("pgsignals: the page could not be refreshed" + (over ? ": " : ", and tries again: ") + error.message);
        news.everything = true;
        rest = performance.now() + Math.min(LAST_RETRY, FIRST_RETRY * 2 ** Math.min(failures - 1, 10));
      }
      busy = false;
      if (news.everything || news.keys.size) {
        ask(FEW);
      }
    }

    document.addEventListener("visibilitychange", function () {
      if (!document.hidden && since) {
        ask(FEW);
      }
    });

    return {
      tell(message) {
        const keys = (message.events || []).map(([operation, key]) => [String(key), operation]);
        keys.forEach(([key, operation]) => news.keys.set(key, operation));
        news.everything = news.everything || Boolean(message.refetch) || !keys.length || news.keys.size > MOST_KEYS;
        if (news.everything) {
          news.keys.clear(); // a hidden page may hear of things for days
        }
        ask(message.refetch || keys.length > MANY_KEYS ? MANY : FEW);
      },
      all() {
        news.everything = true;
        over = false;
        ask(FEW);
      },
    };
  }

  /* Whether somebody has changed a field, and not sent it yet. */
  function isEdited(field) {
    if (field.type === "hidden") {
      return false;
    }
    if (field.options) {
      const options = Array.from(field.options);
      const chosen = options.map((one) => one.defaultSelected).lastIndexOf(true);
      return field.multiple
        ? options.some((one) => one.selected !== one.defaultSelected)
        : field.selectedIndex !== Math.max(chosen, Math.min(0, options.length - 1));
    }
    return /^(checkbox|radio)$/.test(field.type) ? field.checked !== field.defaultChecked : field.value !== field.defaultValue;
  }

  /* A page of this site as a document. Rejects where the server does not give it; for good where it never will. */
  async function page(url) {
    const response = await fetch(url, { cache: "no-store", headers: { "X-Pgsignals": "refresh" } });
    if (!response.ok || response.redirected) {
      const error = new Error("the server answered " + (response.redirected ? "with another page" : response.status));
      error.redirected = response.redirected ? response.url : "";
      error.status = response.status;
      error.final = response.redirected || (response.status >= 400 && response.status < 500 && response.status !== 429);
      throw error;
    }
    return new DOMParser().parseFromString(await response.text(), "text/html");
  }

  Object.assign(window.pgsignals, { refresher: refresher, page: page, isEdited: isEdited });
})();
