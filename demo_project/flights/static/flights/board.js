/* The board: puts the numbers where they belong, and marks what is different from before. */
"use strict";

(function () {
  const board = document.getElementById("board");
  const words = board.dataset;
  const LONGEST_FEED = 16;
  const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "America/New_York" });

  function write(element, text) {
    if (element.textContent !== text) {
      element.textContent = text;
      return true;
    }
    return false;
  }

  // Tiles.

  function showTiles(numbers) {
    const values = { ...numbers.counts, on_time: numbers.on_time, delay: numbers.delay };
    for (const [name, value] of Object.entries(values)) {
      const tile = board.querySelector('[data-tile="' + name + '"]');
      if (write(tile.querySelector(".value"), value === null ? "–" : String(value))) {
        flights.mark(tile);
      }
    }
    for (const [name, count] of Object.entries(numbers.counts)) {
      board.querySelector('[data-share="' + name + '"]').style.flexGrow = String(count);
    }
  }

  // The wall: a dot for each flight, in a column for each hour in which one leaves.

  const wall = document.getElementById("wall");
  const place = (hour) => (Number(hour) + 20) % 24; // the day begins at four
  const dots = new Map();
  for (const dot of wall.querySelectorAll("i")) {
    dots.set(Number(dot.dataset.pk), dot);
  }

  function newColumn(hour) {
    const column = document.createElement("div");
    column.className = "hour";
    column.dataset.hour = hour;
    const inIt = document.createElement("div");
    inIt.className = "dots";
    column.append(inIt, part("quiet", String(hour)));
    const next = Array.from(wall.children).find((one) => place(one.dataset.hour) > place(hour));
    wall.insertBefore(column, next || null);
    return column;
  }

  function newDot(pk, hour) {
    const dot = document.createElement("i");
    dot.dataset.pk = pk;
    const column = wall.querySelector('[data-hour="' + hour + '"]') || newColumn(hour);
    column.querySelector(".dots").append(dot);
    dots.set(pk, dot);
    return dot;
  }

  function showWall(numbers) {
    const seen = new Set();
    for (const [pk, status, hour] of numbers.flights) {
      const dot = dots.get(pk) || newDot(pk, hour);
      seen.add(pk);
      if (!dot.classList.contains(status)) {
        dot.className = status;
        flights.mark(dot);
      }
    }
    for (const [pk, dot] of dots) {
      if (!seen.has(pk)) {
        dot.remove();
        dots.delete(pk);
      }
    }
  }

  // A dot and a plane lead to their flight.
  for (const shown of [wall, document.getElementById("map")]) {
    shown.addEventListener("click", function (event) {
      const pk = event.target.dataset.pk;
      if (pk) {
        window.location.href = words.flight.replace("/0/", "/" + pk + "/");
      }
    });
  }

  // The feed.

  function part(name, text) {
    const element = document.createElement("span");
    element.className = name;
    element.textContent = text;
    return element;
  }

  function delayText(item) {
    if (item.delay === null || item.status === "cancelled" || item.status === "scheduled") {
      return "";
    }
    return (item.delay < 0 ? "−" : "+") + Math.abs(item.delay) + " min";
  }

  function line(item) {
    const element = document.createElement("li");
    element.dataset.news = [item.pk, item.status, item.delay].join();
    element.append(
      part("at", item.at ? time.format(new Date(item.at)) : "--:--"),
      part("state " + item.status, item.label),
      part("flight", item.flight),
      part("route", item.route),
      part("late", delayText(item)),
    );
    return element;
  }

  function showFeed(numbers, everything) {
    const feed = document.getElementById("feed");
    if (everything) {
      feed.replaceChildren(...numbers.feed.map(line));
      return;
    }
    const shown = new Set(Array.from(feed.children, (element) => element.dataset.news));
    const fresh = numbers.changed.map(line).filter((element) => !shown.has(element.dataset.news));
    fresh.slice(0, LONGEST_FEED).forEach(flights.mark);
    feed.prepend(...fresh.slice(0, LONGEST_FEED));
    while (feed.children.length > LONGEST_FEED) {
      feed.lastChild.remove();
    }
  }

  // All of it.

  function show(numbers, everything) {
    showTiles(numbers);
    flights.clock.set(numbers.clock);
    flights.map.show(numbers.planes);
    showWall(numbers);
    showFeed(numbers, everything);
    flights.charts.show(numbers);
  }

  show(JSON.parse(document.getElementById("numbers").textContent), true);
  flights.keepFresh(async function (keys, everything) {
    const response = await flights.get(words.numbers + "?changed=" + encodeURIComponent(keys.slice(-50).join()));
    show(await response.json(), everything);
  });
})();
