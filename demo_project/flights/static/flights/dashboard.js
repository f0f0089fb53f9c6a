/* The dashboard: puts the numbers where they belong, and marks what is different from before. */
"use strict";

(function () {
  const board = document.getElementById("board");
  const words = board.dataset;
  const LONGEST_FEED = 16;
  const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", timeZone: "America/New_York" });
  const date = new Intl.DateTimeFormat("en-US", { weekday: "long", timeZone: "America/New_York" });

  function write(element, text) {
    if (element.textContent !== text) {
      element.textContent = text;
      return true;
    }
    return false;
  }

  // Tiles and clock.

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

  function showClock(numbers) {
    const clock = document.getElementById("clock");
    write(clock.querySelector(".time"), numbers.clock ? time.format(new Date(numbers.clock)) : "--:--");
    write(clock.querySelector(".weekday"), numbers.clock ? date.format(new Date(numbers.clock)) : words.before);
  }

  // The wall: a dot for each flight.

  const dots = new Map();
  for (const dot of document.querySelectorAll("#wall i")) {
    dots.set(Number(dot.dataset.pk), dot);
  }

  function newDot(pk, hour) {
    const dot = document.createElement("i");
    dot.dataset.pk = pk;
    document.querySelector('#wall [data-hour="' + hour + '"] .dots').append(dot);
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

  document.getElementById("wall").addEventListener("click", function (event) {
    const pk = event.target.dataset.pk;
    if (pk) {
      window.location.href = words.flight.replace("/0/", "/" + pk + "/");
    }
  });

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

  // The charts, in the colours of the admin's theme.

  const ink = (name) => getComputedStyle(board).getPropertyValue(name).trim();
  const still = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const severity = (minutes) => ink(minutes >= 45 ? "--cancelled" : minutes >= 15 ? "--delayed" : "--arrived");

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 11;
  Chart.defaults.animation.duration = still ? 0 : 500;
  Chart.defaults.maintainAspectRatio = false;
  Chart.defaults.plugins.legend.labels.boxWidth = 10;
  Chart.defaults.plugins.legend.labels.boxHeight = 10;

  const hours = new Chart(document.getElementById("hours"), {
    data: {
      labels: [],
      datasets: [
        { type: "line", label: words.delay, yAxisID: "delay", tension: 0.35, pointRadius: 2.5, borderWidth: 2.5, clip: false, data: [] },
        { type: "bar", label: words.departures, yAxisID: "departures", borderRadius: 3, categoryPercentage: 0.86, barPercentage: 1, data: [] },
      ],
    },
    options: {
      interaction: { mode: "index", intersect: false },
      plugins: { legend: { align: "end", reverse: true } },
      scales: {
        x: { grid: { display: false } },
        departures: { position: "left", beginAtZero: true, suggestedMax: 60, border: { display: false }, ticks: { maxTicksLimit: 5 } },
        delay: { position: "right", min: 0, suggestedMax: 120, border: { display: false }, grid: { drawOnChartArea: false }, ticks: { maxTicksLimit: 5, callback: (value) => value + "′" } },
      },
    },
  });

  const airlines = new Chart(document.getElementById("airlines"), {
    type: "bar",
    data: { labels: [], datasets: [{ label: words.delay, data: [], borderRadius: 3, categoryPercentage: 0.9, barPercentage: 0.86 }] },
    options: {
      indexAxis: "y",
      plugins: { legend: { display: false } },
      scales: {
        x: { min: -15, suggestedMax: 90, border: { display: false }, ticks: { stepSize: 15, callback: (value) => value + "′" } },
        y: { grid: { display: false }, ticks: { autoSkip: false } },
      },
    },
  });

  function paint() {
    const [line, bars] = hours.data.datasets;
    line.borderColor = line.backgroundColor = ink("--delayed");
    bars.backgroundColor = ink("--bars");
    airlines.data.datasets[0].backgroundColor = airlines.data.datasets[0].data.map(severity);
    for (const chart of [hours, airlines]) {
      chart.options.color = ink("--body-quiet-color");
      for (const scale of Object.values(chart.options.scales)) {
        scale.ticks.color = ink("--body-quiet-color");
        scale.grid.color = ink("--hairline-color");
      }
      chart.update();
    }
  }

  function showCharts(numbers) {
    hours.data.labels = numbers.hours.labels;
    hours.data.datasets[0].data = numbers.hours.delay;
    hours.data.datasets[1].data = numbers.hours.departures;
    airlines.data.labels = numbers.airlines.labels;
    airlines.data.datasets[0].data = numbers.airlines.delay;
    paint();
  }

  new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

  // All of it.

  function show(numbers, everything) {
    showTiles(numbers);
    showClock(numbers);
    showWall(numbers);
    showFeed(numbers, everything);
    showCharts(numbers);
  }

  show(JSON.parse(document.getElementById("numbers").textContent), true);
  flights.keepFresh(async function (news) {
    const keys = Array.from(news.changed.keys()).slice(-50).join();
    const response = await flights.get(words.numbers + "?changed=" + encodeURIComponent(keys));
    show(await response.json(), news.everything);
  });
})();
