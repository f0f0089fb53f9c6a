/* The charts, in the colours of the admin's theme. */
"use strict";

flights.charts = (function () {
  const board = document.getElementById("board");
  const words = board.dataset;
  const ink = (name) => getComputedStyle(board).getPropertyValue(name).trim();
  const severity = (minutes) => ink(minutes >= 45 ? "--cancelled" : minutes >= 15 ? "--delayed" : "--arrived");

  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  Chart.defaults.font.size = 11;
  Chart.defaults.animation.duration = flights.still.matches ? 0 : 500;
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

  function show(numbers) {
    hours.data.labels = numbers.hours.labels;
    hours.data.datasets[0].data = numbers.hours.delay;
    hours.data.datasets[1].data = numbers.hours.departures;
    airlines.data.labels = numbers.airlines.labels;
    airlines.data.datasets[0].data = numbers.airlines.delay;
    paint();
  }

  new MutationObserver(paint).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

  return { show };
})();
