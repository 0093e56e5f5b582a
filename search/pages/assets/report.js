"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const jsonOf = (id) => JSON.parse(byId(id).textContent);
  const darkByLight = jsonOf("dark-colours");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const plots = [...document.querySelectorAll(".plot")];
  const hidden = new Set(); // "figure trace"
  let printing = false;

  function say(text) {
    byId("said").textContent = text;
  }

  // plotly, 5 MB of script, is kept compressed. The page is there before it is read.
  async function loadPlotly() {
    const bytes = Uint8Array.from(atob(byId("plotly").textContent), (character) => character.charCodeAt(0));
    const plain = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(plain).text();
    document.head.append(script);
  }
  const loaded = loadPlotly();

  function inColours(value) {
    if (typeof value === "string") return (dark.matches && !printing && darkByLight[value]) || value;
    if (Array.isArray(value)) return value.map(inColours);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, inColours(inner)]));
    }
    return value;
  }

  async function draw(plot) {
    await loaded;
    const name = plot.dataset.figure;
    const { data, layout } = inColours(jsonOf("figure-" + name));
    for (const trace of data) trace.visible = !hidden.has(name + " " + trace.name);
    // On a touch screen, dragging over a plot is how one gets past it.
    if (window.matchMedia("(pointer: coarse)").matches) layout.dragmode = false;
    if (!plot.dataset.drawn) plot.replaceChildren();
    plot.dataset.drawn = "true";
    window.Plotly.react(plot, data, layout, { displayModeBar: false, responsive: true });
  }

  function redraw() {
    for (const plot of plots) if (plot.dataset.drawn) draw(plot);
    document.querySelectorAll(".keys").forEach(makeKeys);
  }

  // A plot is drawn when it comes near the window.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher.unobserve(target);
        draw(target);
      }
    },
    { rootMargin: "300px" },
  );
  plots.forEach((plot) => watcher.observe(plot));
  dark.addEventListener("change", redraw);
  window.addEventListener("beforeprint", () => {
    printing = true;
    plots.forEach(draw);
  });
  window.addEventListener("afterprint", () => {
    printing = false;
    redraw();
  });

  // The legend: buttons, so that the keyboard reaches them.
  const SYMBOLS = { "circle-open": "○", x: "✕", "diamond-open": "◇", square: "■", star: "★" };
  const LINES = { dash: "╍╍", dot: "┅┅" };

  function swatch(trace) {
    const mark = document.createElement("span");
    mark.setAttribute("aria-hidden", "true");
    mark.style.color = trace.marker?.color || trace.line.color;
    if (trace.type === "bar") mark.textContent = "■";
    if (trace.mode?.includes("lines")) mark.textContent += LINES[trace.line.dash] || "━━";
    if (trace.mode?.includes("markers")) mark.textContent += SYMBOLS[trace.marker.symbol] || "●";
    return mark;
  }

  function makeKeys(keys) {
    const figures = keys.dataset.keys.split(" ");
    const traces = new Map();
    for (const figure of figures) {
      for (const trace of inColours(jsonOf("figure-" + figure)).data) if (trace.name) traces.set(trace.name, trace);
    }
    const buttons = [...traces].map(([name, trace]) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(swatch(trace), " ", trace.name);
      button.setAttribute("aria-pressed", String(!hidden.has(figures[0] + " " + name)));
      button.addEventListener("click", () => {
        const hide = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!hide));
        for (const figure of figures) {
          const key = figure + " " + name;
          if (hide) hidden.add(key);
          else hidden.delete(key);
          const plot = byId("plot-" + figure);
          if (!plot.dataset.drawn) continue;
          const places = plot.data.flatMap((one, i) => (one.name === name ? [i] : []));
          if (places.length) window.Plotly.restyle(plot, { visible: !hide }, places);
        }
      });
      return button;
    });
    keys.replaceChildren(...buttons);
  }
  document.querySelectorAll(".keys").forEach(makeKeys);

  // Arrow keys: left and right to the next point, up and down to the next line.
  const at = new WeakMap();

  function pointsOf(plot, curve) {
    const trace = plot.calcdata[curve];
    if (!trace || plot.data[curve].visible === false || plot.data[curve].hoverinfo === "skip") return [];
    return trace.flatMap((point, i) => (point.x === undefined && point.p === undefined ? [] : [point.i ?? i]));
  }

  function labelsOf(plot) {
    return [...plot.querySelectorAll(".hoverlayer text")].map((text) => text.textContent).join(", ");
  }

  function step(plot, byCurve, byPoint) {
    const walkable = plot.data.flatMap((trace, i) =>
      ["scatter", "bar"].includes(trace.type || "scatter") && pointsOf(plot, i).length ? [i] : [],
    );
    if (!walkable.length) return false;
    const last = walkable.length - 1;
    const before = at.get(plot) || { curve: last, point: byPoint > 0 ? -1 : 0 };
    const curve = Math.max(0, Math.min(last, before.curve + byCurve));
    const points = pointsOf(plot, walkable[curve]);
    const point = Math.max(0, Math.min(points.length - 1, before.point + byPoint));
    at.set(plot, { curve, point });
    window.Plotly.Fx.hover(plot, [{ curveNumber: walkable[curve], pointNumber: points[point] }]);
    // plotly shows labels 20 times a second at most.
    setTimeout(() => say(labelsOf(plot)), 100);
    return true;
  }

  const STEPS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [1, 0], ArrowDown: [-1, 0] };
  for (const plot of plots) {
    plot.addEventListener("keydown", (event) => {
      const move = STEPS[event.key];
      if (event.target === plot && plot.calcdata && move && step(plot, ...move)) event.preventDefault();
      if (event.key === "Escape" && plot.calcdata) window.Plotly.Fx.unhover(plot);
    });
    plot.addEventListener("blur", () => plot.calcdata && window.Plotly.Fx.unhover(plot));
  }

  // Tables are sorted by their headings; what has no value comes last.
  for (const table of document.querySelectorAll("table.sortable")) {
    table.tHead.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (!button) return;
      const head = button.closest("th");
      const opposite = { ascending: "descending", descending: "ascending" };
      const order = opposite[head.getAttribute("aria-sort")] || head.dataset.first;
      for (const other of table.tHead.querySelectorAll("th")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", order);
      const sign = order === "ascending" ? 1 : -1;
      const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: row.cells[head.cellIndex].dataset.key }));
      rows.sort((one, other) => {
        if (one.key === undefined || other.key === undefined) {
          return (one.key === undefined) - (other.key === undefined);
        }
        const difference = Number(one.key) - Number(other.key);
        return sign * (Number.isNaN(difference) ? one.key.localeCompare(other.key) : difference);
      });
      table.tBodies[0].append(...rows.map(({ row }) => row));
      say(`Sorted by ${button.textContent}, ${order}`);
    });
  }
})();
