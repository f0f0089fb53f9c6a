/* The changelist keeps itself up to date: it fetches the page that it is, and takes over the rows that differ.

   Rows stay the elements they were, so that ticked boxes stay ticked, the focus stays, and the page does not move.
*/
"use strict";

(function () {
  const boxOf = (row) => row.querySelector("input.action-select");
  const keyOf = (row) => (boxOf(row) ? boxOf(row).value : (row.querySelector("th a") || row).getAttribute("href"));

  function takeOver(row, fresh) {
    let different = false;
    Array.from(fresh.cells).forEach(function (cell, position) {
      const old = row.cells[position];
      if (!cell.classList.contains("action-checkbox") && old.innerHTML !== cell.innerHTML) {
        const focused = old.contains(document.activeElement);
        old.innerHTML = cell.innerHTML;
        if (focused && old.querySelector("a")) {
          old.querySelector("a").focus({ preventScroll: true });
        }
        different = true;
      }
    });
    if (different) {
      flights.mark(row);
    }
    return row;
  }

  function takeOverRows(body, fresh) {
    const known = new Map(Array.from(body.rows, (row) => [keyOf(row), row]));
    const rows = Array.from(fresh, (row) => (known.has(keyOf(row)) ? takeOver(known.get(keyOf(row)), row) : row));
    for (const row of body.querySelectorAll("tr")) {
      if (!rows.includes(row)) {
        row.remove();
      }
    }
    rows.forEach(function (row, position) {
      // Only what is not in its place moves: moving an element takes the focus from it.
      if (body.rows[position] !== row) {
        body.insertBefore(row, body.rows[position] || null);
        flights.mark(row);
      }
    });
  }

  function takeOverPages(page) {
    const [old, fresh] = [document, page].map((whole) => whole.querySelector("#changelist-form .paginator"));
    if (old && fresh && old.innerHTML !== fresh.innerHTML) {
      old.innerHTML = fresh.innerHTML;
    }
  }

  flights.keepFresh(async function () {
    const response = await flights.get(window.location.href);
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const body = document.querySelector("#result_list tbody");
    const fresh = page.querySelector("#result_list tbody");
    if (!body) {
      // The list was empty, so that there is no table yet, and nothing ticked to keep.
      if (fresh) {
        window.location.reload();
      }
      return;
    }
    takeOverRows(body, fresh ? fresh.rows : []);
    takeOverPages(page);
  });
})();
