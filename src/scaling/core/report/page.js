// What a page can do beyond being looked at: another axis, one value, a closer look, fewer runs, a logarithm.
// The page is complete without. The numbers are read back from the lines that are drawn.
"use strict";
(() => {
  const GRID = 10000, TOP = 300;
  const axes = JSON.parse(document.body.dataset.axes);
  const figures = [...document.querySelectorAll("figure.chart")].map(read);
  const hidden = new Set();
  let axis = "steps", zoom = null;

  function read(figure) {
    const [x0, x1] = JSON.parse(figure.dataset.x), [y0, y1, log] = JSON.parse(figure.dataset.y);
    const to = log ? (t) => y0 * Math.pow(y1 / y0, t) : (t) => y0 + (y1 - y0) * t;
    const paths = [...figure.querySelectorAll("path[data-run]")].map((path) => ({
      path, run: +path.dataset.run, name: path.dataset.name,
      full: path.classList.contains("restart"), bad: path.classList.contains("bad"),
      parts: (path.getAttribute("d") || "").split("M").slice(1).map((part) => {
        const numbers = part.trim().split(" ").map(Number), points = [];
        for (let i = 0; i < numbers.length; i += 2)
          points.push([x0 + (x1 - x0) * numbers[i] / GRID, to(1 - numbers[i + 1] / GRID)]);
        return points;
      }),
    }));
    return { figure, paths, x0, x1, y0, y1, log: !!log, plot: figure.querySelector(".plot"),
             svg: figure.querySelector("svg"), value: figure.querySelector(".value") };
  }

  // From a step of a run to the axis that is shown.
  function along(run, step) {
    if (axis === "steps") return step;
    const [steps, values] = axes[axis][run], last = steps.length - 1;
    if (last === 0) return values[0];
    let low = 0, high = last;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    return values[low] + (values[high] - values[low]) * (step - steps[low]) / (steps[high] - steps[low]);
  }

  function range() {
    if (zoom) return zoom;
    if (axis === "steps") return [figures[0].x0, figures[0].x1];
    const tables = axes[axis].filter((_, run) => !hidden.has(run));
    const ends = (tables.length ? tables : axes[axis]).map((table) => table[1][table[1].length - 1]);
    return [0, 1.01 * Math.max(...ends) || 1];
  }

  function short(value, unitFrom = 1e4) {
    const size = Math.abs(value);
    if (size >= 1e15 || (size > 0 && size < 1e-4)) return value.toExponential(2);
    for (const [unit, letter] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]])
      if (size >= unitFrom && size >= unit) return +(value / unit).toPrecision(4) + letter;
    return size >= 1000 ? Math.round(value).toLocaleString("en") : String(+value.toPrecision(4));
  }

  const UNITS = [[172800, 86400, "d"], [7200, 3600, "h"], [120, 60, "min"], [0, 1, "s"]];
  function units() {
    const [, high] = range(), [, unit, letter] = UNITS.find(([least]) => high >= least);
    return axis === "time" ? [unit, " " + letter] : [1, ""];
  }

  function ticks(low, high) {
    if (!(high > low)) return [low];
    const rough = (high - low) / 5, unit = Math.pow(10, Math.floor(Math.log10(rough)));
    const step = unit * [1, 2, 5, 10].find((factor) => unit * factor >= rough), found = [];
    for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i++) found.push(i * step);
    return found;
  }

  function powers(low, high) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
    if (last - first < 1) return ticks(low, high);
    const found = [], stride = Math.ceil((last - first + 1) / 6);
    for (let i = first; i <= last; i += stride) found.push(Math.pow(10, i));
    return found;
  }

  function draw(chart) {
    const [x0, x1] = range(), { y0, y1 } = chart;
    const up = (y) => chart.log ? Math.log(y / y0) / Math.log(y1 / y0) : (y - y0) / (y1 - y0);
    const px = (x) => Math.round(Math.min(Math.max((x - x0) / (x1 - x0), -9), 9) * GRID);
    const py = (y) => Math.round((1 - up(y)) * GRID);
    for (const { path, run, parts, full, bad } of chart.paths) {
      path.style.display = hidden.has(run) ? "none" : "";
      path.setAttribute("d", parts.map((points) => "M" + points.map(([step, y], i) => {
        const place = full ? i * GRID : bad ? TOP : py(y);
        return px(along(run, step)) + " " + place;
      }).join(" ")).join(""));
    }
    for (const old of chart.plot.querySelectorAll("span")) old.remove();
    for (const old of chart.svg.querySelectorAll(".rule")) old.remove();
    for (const y of chart.log ? powers(y0, y1) : ticks(y0, y1)) {
      label(chart, "y", "top", 1 - up(y), short(y, 1e3));
      const rule = document.createElementNS(chart.svg.namespaceURI, "path");
      rule.setAttribute("class", "rule");
      rule.setAttribute("d", `M0 ${py(y)} ${GRID} ${py(y)}`);
      chart.svg.prepend(rule);
    }
    const [unit, letter] = units();
    for (const x of ticks(x0 / unit, x1 / unit))
      label(chart, "x", "left", (x * unit - x0) / (x1 - x0), short(x, 1e3) + letter);
  }

  function label(chart, kind, side, place, words) {
    const span = document.createElement("span");
    span.className = kind;
    span.style[side] = place * 100 + "%";
    span.textContent = words;
    chart.plot.append(span);
  }

  function drawAll() { for (const chart of figures) draw(chart); }

  // What each run that is shown has nearest to a place on the axis; nothing of a run that is not there.
  function tell(chart, x) {
    const said = [], [x0, x1] = range(), several = new Set(chart.paths.map(({ run }) => run)).size > 1;
    for (const { path, run, name, parts } of chart.paths) {
      if (hidden.has(run) || !(path.classList.contains("line") || path.classList.contains("points"))) continue;
      let best = null;
      for (const points of parts) for (const [step, y] of points) {
        const distance = Math.abs(along(run, step) - x);
        if (!best || distance < best.distance) best = { distance, step, y };
      }
      if (!best || best.distance > (x1 - x0) / 20) continue;
      const who = several ? name + ": " : "", what = path.classList.contains("points") ? "evaluation " : "";
      said.push(`${who}${what}${short(best.y)} at step ${short(Math.round(best.step))}`);
    }
    chart.value.textContent = said.join(", ");
  }

  for (const chart of figures) {
    const clip = chart.plot.querySelector(".clip");
    const cursor = document.createElement("div"), zone = document.createElement("div");
    cursor.className = "cursor"; zone.className = "zone";
    cursor.hidden = zone.hidden = true;
    clip.append(cursor, zone);
    let from = null;
    const share = (event) => {
      const box = clip.getBoundingClientRect();
      return Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    };
    const value = (part) => { const [x0, x1] = range(); return x0 + (x1 - x0) * part; };
    clip.addEventListener("pointermove", (event) => {
      const part = share(event);
      cursor.hidden = false;
      cursor.style.left = part * 100 + "%";
      tell(chart, value(part));
      if (from !== null) {
        zone.hidden = false;
        zone.style.left = Math.min(from, part) * 100 + "%";
        zone.style.width = Math.abs(part - from) * 100 + "%";
      }
    });
    clip.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse") return;
      from = share(event);
      event.preventDefault();
    });
    clip.addEventListener("pointerup", (event) => {
      const until = share(event), begun = from;
      from = null; zone.hidden = true;
      if (begun !== null && Math.abs(until - begun) > .02) {
        zoom = [value(Math.min(begun, until)), value(Math.max(begun, until))];
        drawAll();
      }
    });
    clip.addEventListener("pointerleave", () => {
      cursor.hidden = zone.hidden = true;
      from = null;
      chart.value.textContent = "";
    });
    clip.addEventListener("dblclick", () => { zoom = null; drawAll(); });
    offerLogarithm(chart);
  }

  function offerLogarithm(chart) {
    let least = Infinity;
    for (const { parts, full, bad } of chart.paths)
      if (!full && !bad) for (const points of parts) for (const [, y] of points) least = Math.min(least, y);
    if (!(least > 0 && least < Infinity)) return;
    const box = document.createElement("input"), words = document.createElement("label");
    const linear = chart.log ? [0, chart.y1] : [chart.y0, chart.y1], lowest = chart.log ? chart.y0 : least * .98;
    box.type = "checkbox";
    box.checked = chart.log;
    box.addEventListener("change", () => {
      chart.log = box.checked;
      [chart.y0, chart.y1] = chart.log ? [lowest, chart.y1] : linear;
      draw(chart);
    });
    words.className = "note";
    words.append(box, " logarithmic");
    chart.value.after(words);
  }

  for (const box of document.querySelectorAll("input[data-toggle]")) {
    box.hidden = false;
    box.addEventListener("change", () => {
      if (box.checked) hidden.delete(+box.dataset.toggle); else hidden.add(+box.dataset.toggle);
      drawAll();
    });
  }
  for (const choice of document.querySelectorAll("input[name=axis]")) {
    choice.closest("fieldset").hidden = false;
    choice.addEventListener("change", () => { axis = choice.value; zoom = null; drawAll(); });
  }
})();
