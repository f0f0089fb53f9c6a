/* The map: every flight that is in the air, on its way, by the day's clock. */
"use strict";

flights.map = (function () {
  const FRAME = 45; // milliseconds, at least, between two pictures
  const SVG = "http://www.w3.org/2000/svg";
  const svg = document.getElementById("map");
  const [lines, layer] = [svg.querySelector(".ways"), svg.querySelector(".planes")];
  const planes = new Map();
  let drawn = 0;

  const severity = (delay) => (delay >= 45 ? "very" : delay >= 15 ? "late" : "ok");

  function make(name, attributes, parent) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) {
      element.setAttribute(key, value);
    }
    parent.append(element);
    return element;
  }

  function takeOff(pk, way) {
    const [x, y, controlX, controlY, endX, endY] = way;
    const line = make("path", { class: "way", d: "M" + [x, y] + "Q" + [controlX, controlY, endX, endY] }, lines);
    const mark = make("path", { class: "plane", d: "M6 0L-4 3.6L-2.2 0L-4-3.6Z", "data-pk": pk }, layer);
    return { way, line, mark, left: 0, lands: 1 };
  }

  function place(plane, now) {
    const [x, y, controlX, controlY, endX, endY] = plane.way;
    const part = Math.min(Math.max((now - plane.left) / (plane.lands - plane.left), 0.004), 0.996);
    const rest = 1 - part;
    const alongX = rest * (controlX - x) + part * (endX - controlX);
    const alongY = rest * (controlY - y) + part * (endY - controlY);
    const atX = rest * rest * x + 2 * rest * part * controlX + part * part * endX;
    const atY = rest * rest * y + 2 * rest * part * controlY + part * part * endY;
    const turn = (Math.atan2(alongY, alongX) * 180) / Math.PI;
    plane.mark.setAttribute("transform", `translate(${atX.toFixed(1)} ${atY.toFixed(1)}) rotate(${turn.toFixed(0)})`);
  }

  function show(given) {
    const now = flights.clock.now();
    const seen = new Set();
    for (const [pk, way, left, lands, delay] of given) {
      seen.add(pk);
      if (!planes.has(pk)) {
        planes.set(pk, takeOff(pk, way));
      }
      const plane = planes.get(pk);
      Object.assign(plane, { left, lands });
      plane.mark.setAttribute("class", "plane " + severity(delay));
      plane.line.setAttribute("class", "way " + severity(delay));
      place(plane, now);
    }
    for (const [pk, plane] of planes) {
      if (!seen.has(pk)) {
        plane.mark.remove();
        plane.line.remove();
        planes.delete(pk);
      }
    }
  }

  function fly(at) {
    if (at - drawn >= FRAME && !flights.still.matches) {
      drawn = at;
      const now = flights.clock.now();
      planes.forEach((plane) => place(plane, now));
    }
    requestAnimationFrame(fly);
  }
  requestAnimationFrame(fly);

  return { show };
})();
