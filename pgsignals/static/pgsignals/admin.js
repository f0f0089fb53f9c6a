/* LiveModelAdmin's pages. What they need to know stands in the script element: data-socket, data-topics, data-words.

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
  const box = (row) => row.querySelector("input.action-select");
  const keyOf = (row, place) => (box(row) ? box(row).value : (row.querySelector("th a[href], td a[href]") || { href: place }).href);
  const form = document.getElementById("changelist-form");
  const served = new WeakMap(); // each cell as the server made it, before scripts of widgets came
  const boxes = []; // what Django's own script takes for the list's checkboxes

  const table = () => form.querySelector(TABLE);
  const rowsOf = (whole) => Array.from(whole ? whole.tBodies[0].rows : []);
  const html = (cell) => served.get(cell) || cell.innerHTML;
  const isBox = (cell) => cell.classList.contains("action-checkbox");
  const differs = (row, fresh) => Array.from(fresh.cells).some(
    (cell, place) => !row.cells[place] || (!isBox(cell) && html(row.cells[place]) !== cell.innerHTML));

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

  function takeOver(row, fresh) {
    const focused = row.contains(document.activeElement) ? document.activeElement : null;
    Array.from(fresh.cells).forEach(function (cell, place) {
      const old = row.cells[place];
      if (isBox(cell) || html(old) === cell.innerHTML) {
        return;
      }
      const held = focused && old.contains(focused) ? Array.from(old.querySelectorAll("a, button")).indexOf(focused) : -1;
      served.set(old, cell.innerHTML);
      old.className = cell.className;
      old.replaceChildren(...cell.childNodes);
      if (held >= 0 && old.querySelectorAll("a, button")[held]) {
        old.querySelectorAll("a, button")[held].focus({ preventScroll: true });
      }
    });
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
    const known = new Map(rowsOf(table()).map((row, position) => [keyOf(row, position), row]));
    const across = Array.from(form.querySelectorAll("input.select-across")).some((one) => one.value === "1");
    const changed = [];
    const rows = rowsOf(page.querySelector(TABLE)).map(function (fresh, position) {
      const key = keyOf(fresh, position);
      const row = known.get(key);
      if (row && row.cells.length === fresh.cells.length) {
        if (differs(row, fresh)) {
          takeOver(row, fresh);
          changed.push([key, row]);
        }
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
    return changed.length;
  }

  function takeOverRest(page) {
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
    const across = page.querySelector(".actions .question a");
    document.querySelectorAll(".actions .question a").forEach(function (question) {
      question.textContent = across ? across.textContent : question.textContent;
    });
    count();
    if (boxes.length && document.getElementById("action-toggle")) {
      window.dispatchEvent(new Event("pageshow")); // on which Django's script counts again
    }
  }

  // What is shown while somebody edits: which rows are not what they were.
  function holdBack(page, shown) {
    const fresh = new Map(rowsOf(page.querySelector(TABLE)).map((row, position) => [keyOf(row, position), row]));
    const stale = rowsOf(table()).filter(function (row, position) {
      const now = fresh.get(keyOf(row, position));
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
      waits = isBusy();
      if (waits) {
        holdBack(page, shown);
        return;
      }
      note("");
      rowsOf(table()).forEach((row) => row.classList.remove("pg-stale"));
      if (!table() || !page.querySelector("#changelist-form")) {
        replaceAll(page);
        return;
      }
      const changed = takeOverRows(page, told);
      takeOverRest(page);
      if (changed) {
        shown.speak(fill(words.changed, changed));
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
    const fresh = page.querySelector("#changelist-form");
    if (!fresh || !page.querySelector(TABLE)) {
      return;
    }
    form.replaceChildren(...fresh.childNodes);
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

  // What would be sent, as the server made it: not what somebody is typing.
  function contents(page) {
    const fields = Array.from(page.querySelectorAll("#content-main form :is(input, select, textarea)"));
    const values = fields.filter((one) => one.name && one.name !== "csrfmiddlewaretoken" && one.type !== "submit").map((one) => [
      one.name, one.options ? Array.from(one.options).filter((each) => each.defaultSelected).map((each) => each.value)
        : /^(checkbox|radio)$/.test(one.type) ? [one.value, one.defaultChecked] : one.defaultValue]);
    const shown = Array.from(page.querySelectorAll("#content-main form .readonly"), (one) => one.textContent.trim());
    return JSON.stringify([values, shown]);
  }

  function changeForm() {
    const main = document.getElementById("content-main");
    // After a save that failed the form holds what was sent, not what is stored.
    let stored = document.querySelector(".errornote") ? null : contents(document);
    const place = main.querySelector("form") || main;
    const shown = sign(place);
    const warning = element("div", { className: "pg-warning", hidden: true });
    warning.setAttribute("role", "status");
    place.prepend(warning);

    function warn(sentence, link, href) {
      const a = element("a", { href: href, textContent: link });
      warning.replaceChildren(element("p", {}, [sentence + " ", a]));
      warning.hidden = false;
    }

    const news = pgsignals.refresher(async function () {
      let page;
      try {
        page = await pgsignals.page(window.location.href);
      } catch (error) {
        if (error.redirected || error.status === 404) {
          warn(words.gone, words.to_list, said.list);
        }
        throw error;
      }
      const now = contents(page);
      warning.hidden = true;
      if (stored !== null && now !== stored) {
        warn(words.overtaken, words.reload, window.location.href);
      }
      stored = stored === null ? now : stored;
    });
    listen(shown, news);
  }

  if (form) {
    changelist();
  } else if (said.list) {
    changeForm();
  }
})();
