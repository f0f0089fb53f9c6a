/* LiveModelAdmin's pages. What they need to know stands in the script element: data-socket, data-topics, data-words;
   of a changelist also data-keys, the primary keys of its rows.

   The changelist fetches the page that it is, and takes over the rows that differ. Rows stay the elements they were, so
   that the focus stays and the page does not move. Nothing is touched while somebody edits in the list. */
"use strict";

(function () {
  const said = document.currentScript.dataset;
  const words = JSON.parse(said.words);
  const MARKED = 1800; // milliseconds
  const SPEAK_EVERY = 5000;

  function element(tag, properties, children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...(children || []));
    return made;
  }

  function fill(text, count) {
    return text.replace("%d", count);
  }

  /* The sign of the connection, and what is said to those who hear the page. */
  function sign(place) {
    const text = element("span", { className: "pg-live-text" });
    const whole = element("p", { className: "pg-live" }, [element("span", { className: "pg-live-dot" }), text]);
    whole.firstChild.setAttribute("aria-hidden", "true");
    const spoken = element("div", { className: "pg-spoken" });
    spoken.setAttribute("role", "status");
    spoken.setAttribute("aria-live", "polite");
    place.prepend(whole, spoken);
    let last = -SPEAK_EVERY;
    let timer = null;
    return {
      show(state) {
        whole.dataset.state = state;
        text.textContent = words[state];
        whole.title = words[state + "_help"] || "";
        if (state !== "connecting") {
          this.speak(words[state]);
        }
      },
      // The last thing, and not more than a listener can bear.
      speak(sentence) {
        window.clearTimeout(timer);
        timer = window.setTimeout(function () {
          last = performance.now();
          spoken.textContent = sentence;
        }, Math.max(0, last + SPEAK_EVERY - performance.now()));
      },
    };
  }

  function mark(row) {
    row.classList.add("pg-changed");
    window.setTimeout(() => row.classList.remove("pg-changed"), MARKED);
  }

  function listen(shown, news) {
    pgsignals.connect(said.socket, JSON.parse(said.topics), {
      onEvent: news.tell,
      onGap: news.all,
      onState(state) {
        shown.show(state);
        if (state === "live") {
          news.all(); // what happened since the page was made is in no event
        }
      },
    });
  }

  /* ---- The changelist. ---- */

  const TABLE = "#result_list";
  const KEYS = "script[data-keys]";
  const box = (row) => row.querySelector("input.action-select");
  const form = document.getElementById("changelist-form");
  const served = new WeakMap(); // each cell as the server made it, before scripts of widgets came
  const boxes = []; // what Django's own script takes for the list's checkboxes

  const table = () => form.querySelector(TABLE);
  const isError = (row) => row.querySelector(":scope > [colspan] > .errorlist"); // Django's, above the row that it is about
  const rowsOf = (whole) => Array.from(whole ? whole.tBodies[0].rows : []).filter((row) => !isError(row));
  const html = (cell) => served.get(cell) || cell.innerHTML;
  const content = (text) => text.replace(/form-\d+-/g, "form-"); // the number is only the row's place in the list
  const isAcross = () => Array.from(form.querySelectorAll("input.select-across")).some((one) => one.value === "1");
  const isBox = (cell) => cell.classList.contains("action-checkbox");
  const differs = (row, fresh) => Array.from(fresh.cells).some(
    (cell, place) => !row.cells[place] || (!isBox(cell) && content(html(row.cells[place])) !== content(cell.innerHTML)));

  // Rows by their primary keys. One that the list has twice is told apart, so that no row is lost.
  function byKey(page) {
    const keys = JSON.parse(page.querySelector(KEYS).dataset.keys);
    const found = new Map();
    rowsOf(page.querySelector(TABLE)).forEach(function (row, position) {
      let key = box(row) ? box(row).value : keys[position];
      while (found.has(key)) {
        key += "'";
      }
      found.set(key, row);
    });
    return found;
  }

  function remember(row) {
    Array.from(row.cells).forEach((cell) => served.set(cell, cell.innerHTML));
  }

  // Django's script keeps the checkboxes that it found first. It is given a list that stays right instead.
  function adopt() {
    const own = window.Actions;
    if (own) {
      window.Actions = (found, options) => own(found.length && table() ? count() : found, options);
    }
  }

  function count() {
    boxes.splice(0, boxes.length, ...rowsOf(table()).map(box).filter(Boolean));
    return boxes;
  }

  function isBusy() {
    const fields = Array.from(form.querySelectorAll(`${TABLE} tbody :is(input, select, textarea):not(.action-select)`));
    return Boolean(document.querySelector(".errornote")) || fields.some((one) => one === document.activeElement || pgsignals.isEdited(one));
  }

  // Also what has only got another number. True where something was replaced.
  function takeOver(row, fresh) {
    const focused = row.contains(document.activeElement) ? document.activeElement : null;
    const others = Array.from(fresh.cells).filter((cell, place) => !isBox(cell) && html(row.cells[place]) !== cell.innerHTML);
    others.forEach(function (cell) {
      const old = row.cells[cell.cellIndex];
      const held = focused && old.contains(focused) ? Array.from(old.querySelectorAll("a, button")).indexOf(focused) : -1;
      served.set(old, cell.innerHTML);
      old.className = cell.className;
      old.replaceChildren(...cell.childNodes);
      if (held >= 0 && old.querySelectorAll("a, button")[held]) {
        old.querySelectorAll("a, button")[held].focus({ preventScroll: true });
      }
    });
    return others.length > 0;
  }

  function place(body, rows) {
    const kept = new Set(rows);
    Array.from(body.rows).filter((row) => !kept.has(row)).forEach((row) => row.remove());
    rows.forEach(function (row, position) {
      // Only what is not in its place moves: moving an element takes the focus from it.
      if (body.rows[position] !== row) {
        const focused = row.contains(document.activeElement) ? document.activeElement : null;
        body.insertBefore(row, body.rows[position] || null);
        if (focused) {
          focused.focus({ preventScroll: true });
        }
      }
    });
  }

  function takeOverRows(page, news) {
    const known = byKey(document);
    const across = isAcross();
    const changed = [];
    let swapped = false;
    const rows = Array.from(byKey(page), function ([key, fresh]) {
      const row = known.get(key);
      if (row && row.cells.length === fresh.cells.length) {
        if (differs(row, fresh)) {
          changed.push([key, row]);
        }
        swapped = takeOver(row, fresh) || swapped;
        return row;
      }
      remember(fresh);
      changed.push([key, fresh]);
      if (across && box(fresh)) {
        box(fresh).checked = true;
        fresh.classList.add("selected");
      }
      return fresh;
    });
    place(table().tBodies[0], rows);
    changed.filter(([key]) => news.everything || news.keys.has(key)).forEach(([, row]) => mark(row));
    return { changed: changed.length, swapped: swapped || changed.length > 0 };
  }

  function takeOverRest(page) {
    document.querySelector(KEYS).dataset.keys = page.querySelector(KEYS).dataset.keys;
    for (const selector of [".hiddenfields", ".paginator", "#changelist-search .small.quiet", "input[name=form-TOTAL_FORMS]", "input[name=form-INITIAL_FORMS]"]) {
      const [old, fresh] = [document.querySelector("#changelist " + selector), page.querySelector("#changelist " + selector)];
      if (old && fresh && old.outerHTML !== fresh.outerHTML && !old.contains(document.activeElement)) {
        old.replaceWith(fresh);
      }
    }
    const numbers = page.querySelectorAll(".action-counter");
    document.querySelectorAll(".action-counter").forEach(function (counter, position) {
      counter.dataset.actionsIcnt = numbers[position] ? numbers[position].dataset.actionsIcnt : 0;
    });
    for (const selector of [".actions .question a", ".actions .all"]) {
      const fresh = page.querySelector(selector); // not where all are on this page
      document.querySelectorAll(selector).forEach((old) => old.replaceChildren(fresh ? fresh.textContent : ""));
    }
    count();
    if (boxes.length && document.getElementById("action-toggle")) {
      window.dispatchEvent(new Event("pageshow")); // on which Django's script counts again
      if (isAcross()) {
        form.querySelector(".actions .question a").click(); // and asks again what has been answered
      }
    }
  }

  // What is shown while somebody edits: which rows are not what they were.
  function holdBack(page, shown) {
    const fresh = byKey(page);
    const stale = Array.from(byKey(document)).filter(function ([key, row]) {
      const now = fresh.get(key);
      const old = !now || differs(row, now);
      row.classList.toggle("pg-stale", old);
      return old;
    });
    note(stale.length ? fill(words.waits, stale.length) : "");
    if (stale.length) {
      shown.speak(fill(words.waits, stale.length));
    }
  }

  function note(sentence) {
    const there = form.querySelector(".pg-note") || element("p", { className: "pg-note" });
    there.textContent = sentence;
    there.hidden = !sentence;
    if (!there.isConnected) {
      form.prepend(there);
    }
  }

  function changelist() {
    const shown = sign(form.parentElement);
    rowsOf(table()).forEach(remember);
    adopt();
    let waits = false;
    const news = pgsignals.refresher(async function (told) {
      const page = await fetchList(shown);
      if (page === null) {
        return;
      }
      if (!page.querySelector(KEYS)) {
        throw new Error("the server answered with another page");
      }
      waits = isBusy();
      if (waits) {
        holdBack(page, shown);
        return;
      }
      note("");
      rowsOf(table()).forEach((row) => row.classList.remove("pg-stale"));
      if (!table()) {
        replaceAll(page);
        return;
      }
      const { changed, swapped } = takeOverRows(page, told);
      takeOverRest(page);
      if (changed) {
        shown.speak(fill(words.changed, changed));
      }
      if (swapped) {
        form.dispatchEvent(new CustomEvent("pg:swap", { bubbles: true }));
      }
    });
    for (const kind of ["focusout", "change", "input"]) {
      form.addEventListener(kind, () => window.setTimeout(() => waits && !isBusy() && news.all()));
    }
    listen(shown, news);
  }

  // The list was empty, and had neither a table nor actions.
  function replaceAll(page) {
    if (!page.querySelector(TABLE)) {
      return;
    }
    document.querySelector(KEYS).dataset.keys = page.querySelector(KEYS).dataset.keys;
    form.replaceChildren(...page.querySelector("#changelist-form").childNodes);
    rowsOf(table()).forEach(remember);
    rowsOf(table()).forEach(mark);
    if (window.Actions && box(table())) {
      window.Actions(form.querySelectorAll("input.action-select"));
    }
  }

  async function fetchList(shown) {
    try {
      return await pgsignals.page(window.location.href);
    } catch (error) {
      if (error.redirected && new URL(error.redirected).pathname === window.location.pathname) {
        note(words.no_page); // Django leads to the first page where there are fewer than there were
        return null;
      }
      if (error.final) {
        shown.show("refused");
      }
      throw error;
    }
  }

  /* ---- The form of one object. ---- */

  const KEPT = "pgsignals.stored";
  const kept = window.sessionStorage.getItem(KEPT);
  window.sessionStorage.removeItem(KEPT);

  // An inline form for what is not there yet, whose defaults may be other ones each time.
  function isNew(field) {
    const [, prefix, number] = /^(?:initial-)?(.+?)-(\d+|__prefix__)-/.exec(field.name) || [];
    const initial = field.form?.elements[prefix + "-INITIAL_FORMS"];
    return Boolean(initial) && !(Number(number) < Number(initial.value));
  }

  // What would be sent, as the server made it: not what somebody is typing.
  function contents(page) {
    const fields = Array.from(page.querySelectorAll("#content-main form :is(input, select, textarea)"));
    const stored = fields.filter((one) => one.name && one.name !== "csrfmiddlewaretoken" && one.type !== "submit" && !isNew(one));
    const values = stored.map((one) => [
      one.name, one.options ? Array.from(one.options).filter((each) => each.defaultSelected).map((each) => each.value)
        : /^(checkbox|radio)$/.test(one.type) ? [one.value, one.defaultChecked] : one.defaultValue]);
    const shown = Array.from(page.querySelectorAll("#content-main form .readonly"), (one) => one.textContent.trim());
    return { values: JSON.stringify(values), shown: JSON.stringify(shown) };
  }

  function changeForm() {
    const main = document.getElementById("content-main");
    // After a save that failed the form holds what was sent, not what is stored: that the page before knew.
    let stored = document.querySelector(".errornote") ? JSON.parse(kept) : contents(document);
    let told = false; // of the object; texts like "3 minutes ago" differ without that
    let leaving = false; // with a save, whose event may be here before the page that answers
    const place = main.querySelector("form") || main;
    const shown = sign(place);
    const warning = element("div", { className: "pg-warning", hidden: true });
    warning.setAttribute("role", "status");
    place.prepend(warning);

    function warn(sentence, link, href) {
      if (leaving) {
        return;
      }
      const a = element("a", { href: href, textContent: link });
      warning.replaceChildren(element("p", {}, [sentence + " ", a]));
      warning.hidden = false;
    }

    const news = pgsignals.refresher(async function () {
      let page;
      try {
        page = await pgsignals.page(window.location.href);
      } catch (error) {
        // Where the object is gone Django leads to the index, above this page; and where nobody is logged in, elsewhere.
        if (error.status === 404 || (error.redirected && window.location.pathname.startsWith(new URL(error.redirected).pathname))) {
          warn(words.gone, words.to_list, said.list);
        } else if (error.final) {
          shown.show("refused");
        }
        throw error;
      }
      const now = contents(page);
      stored = stored || now;
      warning.hidden = true;
      if (now.values !== stored.values || (told && now.shown !== stored.shown)) {
        warn(words.overtaken, words.reload, window.location.href.split("#")[0]); // with a hash it would not load
      }
    });
    listen(shown, {
      tell(message) {
        told = true;
        news.tell(message);
      },
      all: news.all,
    });

    window.addEventListener("submit", function (event) {
      if (main.contains(event.target) && !event.defaultPrevented) {
        leaving = true;
        window.sessionStorage.setItem(KEPT, JSON.stringify(stored));
      }
    });
    // The page stays, or is there again.
    for (const kind of ["input", "pageshow"]) {
      window.addEventListener(kind, function () {
        if (leaving) {
          leaving = false;
          news.all();
        }
      });
    }
  }

  if (form) {
    changelist();
  } else if (said.list) {
    changeForm();
  }
})();
