"use strict";
// Figures come from Python in Plotly's form; what they use of it is drawn here as SVG, in 10 kB instead of 5 MB. Colours of
// text and grid are the page's own variables, so that they follow its theme and the printer.
const SVG = "http://www.w3.org/2000/svg";
const pen = document.createElement("canvas").getContext("2d");
pen.font = `13px ${getComputedStyle(document.body).fontFamily}`;
const wide = (text) => pen.measureText(text).width;
const drawn = new Map();
const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const known = drawn.get(target);
    if (known && Math.abs(known.width - target.clientWidth) > 1) draw(target, known.figure);
  }
});

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  if (text !== undefined) node.append(document.createTextNode(text));
  return node;
}

// Labels are escaped for Plotly, which reads them as markup; here they become text again.
function plain(label) {
  const named = { lt: "<", gt: ">", amp: "&", quot: '"', "#39": "'", "#x27": "'" };
  return String(label ?? "").replace(/<br\s*\/?>/g, "\n").replace(/<\/?[a-z]+>/g, "")
    .replace(/&(lt|gt|amp|quot|#39|#x27);/g, (_, name) => named[name]);
}

// As much of a text as there is room for, in pixels.
function fit(text, room) {
  if (wide(text) <= room) return text;
  let most = text.length;
  while (most > 0 && wide(text.slice(0, most) + "…") > room) most--;
  return text.slice(0, most) + "…";
}

function ticks(low, high, room, step) {
  const span = high - low || 1;
  if (!step) {
    const rough = span / Math.max(2, room);
    const power = 10 ** Math.floor(Math.log10(rough));
    step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  }
  const values = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9; n++) values.push(Math.round(n * step * 1e9) / 1e9 + 0);
  return values;
}

function extent(traces, name, axis) {
  if (axis.range) return axis.range;
  const values = traces.flatMap((t) => {
    const own = t[name] || [];
    const error = name === "x" && t.error_x ? [own[0] - t.error_x.arrayminus[0], own[0] + t.error_x.array[0]] : [];
    return [...own, ...error];
  }).filter((v) => typeof v === "number");
  let [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
  if (axis.rangemode === "tozero") low = Math.min(0, low);
  const pad = (high - low || 1) * 0.05;
  return [axis.rangemode === "tozero" ? low : low - pad, high + pad];
}

// Counts of a histogram's traces, stacked: traces of bars, and how high they come.
function histogram(traces) {
  const { start, end, size } = traces[0].xbins;
  const bins = Math.round((end - start) / size);
  const under = new Array(bins).fill(0);
  const bars = [];
  for (const trace of traces) {
    const counts = new Array(bins).fill(0);
    for (const x of trace.x || []) counts[Math.min(bins - 1, Math.max(0, Math.floor((x - start) / size)))]++;
    counts.forEach((n, at) => {
      if (n) bars.push({ from: start + at * size, to: start + (at + 1) * size, low: under[at], high: (under[at] += n), colour: trace.marker.color, count: n });
    });
  }
  return { bars, top: Math.max(1, ...under), range: [start, end] };
}

function marker(symbol, x, y, size, attributes) {
  const r = size / 2;
  const path = {
    square: `M${x - r} ${y - r}h${size}v${size}h${-size}z`,
    diamond: `M${x} ${y - r * 1.25}L${x + r * 1.25} ${y}L${x} ${y + r * 1.25}L${x - r * 1.25} ${y}z`,
    "triangle-up": `M${x} ${y - r * 1.15}L${x + r * 1.1} ${y + r * 0.8}H${x - r * 1.1}z`,
    "triangle-down": `M${x} ${y + r * 1.15}L${x + r * 1.1} ${y - r * 0.8}H${x - r * 1.1}z`,
    cross: `M${x - r} ${y}H${x + r}M${x} ${y - r}V${y + r}`,
    x: `M${x - r} ${y - r}L${x + r} ${y + r}M${x + r} ${y - r}L${x - r} ${y + r}`,
  }[symbol.replace("-thin", "")];
  return path ? shape("path", { d: path, ...attributes }) : shape("circle", { cx: x, cy: y, r, ...attributes });
}

const nth = (value, n) => (Array.isArray(value) ? value[n] : value);

// What stands in the little window over a mark: the trace's template with its numbers put in.
function told(trace, n) {
  if (trace.hoverinfo === "skip") return "";
  const values = { x: nth(trace.x, n), y: nth(trace.y, n), text: nth(trace.text, n), customdata: nth(trace.customdata, n) };
  const template = trace.hovertemplate || `${trace.name || ""} %{y:.2f}`;
  return plain(template.replace(/<extra><\/extra>/, "").replace(/%\{(\w+)(?::\.(\d)f)?\}/g,
    (_, name, digits) => (digits && typeof values[name] === "number" ? values[name].toFixed(digits) : values[name] ?? "")));
}

function legend(svg, traces, width) {
  const named = traces.filter((t) => t.name && t.showlegend !== false);
  let [x, y] = [2, 12];
  for (const trace of named) {
    const name = fit(plain(trace.name), width - 30);
    const room = 36 + wide(name);
    if (x > 2 && x + room > width) [x, y] = [2, y + 18];
    const colour = trace.marker?.color || trace.line?.color;
    if (trace.mode?.includes("lines") && !trace.mode.includes("markers")) {
      svg.append(shape("path", { d: `M${x} ${y - 4}h14`, stroke: colour, "stroke-width": trace.line.width, "stroke-dasharray": trace.line.dash ? "2 3" : null }));
    } else svg.append(dot(trace, 0, x + 7, y - 4, colour));
    svg.append(shape("text", { x: x + 20, y, class: "tick" }, name));
    x += room;
  }
  return named.length ? y + 10 : 4;
}

function dot(trace, n, x, y, colour) {
  const { symbol = "circle", size = 8, opacity = 1, line = {} } = trace.marker || {};
  const open = symbol.endsWith("-open") || symbol.endsWith("-thin");
  return marker(symbol.replace("-open", ""), x, y, size, {
    fill: open ? "none" : colour, stroke: open ? colour : "none", "stroke-width": open ? line.width || 2 : 0, opacity,
  });
}

function heatmap(svg, figure, width) {
  const [trace] = figure.data;
  const names = (figure.layout.yaxis.ticktext || []).map(plain);
  const n = trace.z.length;
  const left = names.length ? Math.min(width * 0.3, Math.max(...names.map(wide)) + 10) : 4;
  const cell = Math.max(2, Math.min((width - left - 4) / n, 56));
  const foot = names.length ? left : 4;
  const gap = n <= 30 ? 1 : 0;
  trace.z.forEach((row, i) => row.forEach((value, j) => {
    if (value === null) return;
    const square = shape("rect", { x: left + j * cell, y: i * cell, width: cell - gap, height: cell - gap, fill: "var(--accent)", "fill-opacity": 0.04 + 0.96 * (value / trace.zmax) });
    square.append(shape("title", {}, `${plain(trace.text[i][j])}: ${value.toFixed(2)}`));
    svg.append(square);
  }));
  names.forEach((name, i) => {
    const at = (i + 0.5) * cell + 4;
    svg.append(shape("text", { x: left - 6, y: at, class: "tick", "text-anchor": "end" }, fit(name, left - 8)));
    svg.append(shape("text", { x: 0, y: 0, class: "tick", "text-anchor": "end", transform: `translate(${left + at} ${n * cell + 8}) rotate(-60)` }, fit(name, left - 8)));
  });
  const strongest = Math.max(...trace.z.flat().filter((value) => value !== null));
  const bottom = n * cell + foot;
  svg.append(shape("text", { x: left, y: bottom + 16, class: "tick" }, `strongest: ${strongest.toFixed(2)}`));
  return bottom + 24;
}

function draw(node, figure) {
  const width = Math.max(200, node.clientWidth);
  const svg = shape("svg", { class: "main-svg", width, "aria-hidden": "true", role: "presentation" });
  const height = figure.data[0]?.type === "heatmap" ? heatmap(svg, figure, width) : plot(svg, figure, width, node);
  svg.setAttribute("height", height);
  node.replaceChildren(svg);
  drawn.set(node, { figure, width: node.clientWidth });
  watcher.observe(node);
}

function plot(svg, figure, width, node) {
  const { xaxis, yaxis, height } = figure.layout;
  const bins = figure.data[0]?.type === "histogram" ? histogram(figure.data) : null;
  const [x0, x1] = bins ? bins.range : extent(figure.data, "x", xaxis);
  const [y0, y1] = bins ? [0, bins.top * 1.05] : extent(figure.data, "y", yaxis);
  const bare = (axis) => axis.showticklabels === false;
  const yticks = bare(yaxis) ? [] : yaxis.tickvals || ticks(y0, y1, (height - 60) / 50);
  const names = yticks.map((value, n) => plain(yaxis.ticktext ? yaxis.ticktext[n] : value.toLocaleString("en")));
  const longest = Math.max(0, ...names.map(wide));
  const ytitle = yaxis.title?.text;
  const left = (bare(yaxis) ? 8 : Math.min(width * 0.42, longest + 12)) + (ytitle ? 18 : 0);
  const top = (figure.layout.showlegend === false ? 4 : legend(svg, figure.data, width)) + (bare(xaxis) ? 16 : 0);
  const bottom = height - (bare(xaxis) ? 8 : 24) - (xaxis.title?.text ? 20 : 0);
  const right = width - 14;
  const sx = (v) => left + ((v - x0) / (x1 - x0)) * (right - left);
  const sy = (v) => bottom - ((v - y0) / (y1 - y0)) * (bottom - top);
  const grid = (d) => svg.append(shape("path", { d, class: "grid" }));

  const xticks = bare(xaxis) ? [] : ticks(x0, x1, (right - left) / 70, xaxis.dtick);
  const every = Math.ceil((xticks.length * 28) / (right - left));
  xticks.forEach((value, n) => {
    if (xaxis.showgrid !== false) grid(`M${sx(value)} ${top}V${bottom}`);
    if (n % every === 0) svg.append(shape("text", { x: sx(value), y: bottom + 16, class: "tick", "text-anchor": "middle" }, value.toLocaleString("en")));
  });
  const room = left - (ytitle ? 18 : 0) - 8;
  yticks.forEach((value, n) => {
    if (yaxis.showgrid !== false) grid(`M${left} ${sy(value)}H${right}`);
    const name = fit(names[n], room);
    svg.append(shape("text", { x: left - 6, y: sy(value) + 4, class: "tick", "text-anchor": "end" }, name));
  });
  if (xaxis.title?.text) svg.append(shape("text", { x: (left + right) / 2, y: height - 4, class: "tick", "text-anchor": "middle" }, plain(xaxis.title.text)));
  if (ytitle) svg.append(shape("text", { class: "tick", "text-anchor": "middle", transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)` }, plain(ytitle)));

  for (const bar of bins ? bins.bars : []) {
    const box = shape("rect", { x: sx(bar.from) + 1, y: sy(bar.high), width: Math.max(1, sx(bar.to) - sx(bar.from) - 2), height: sy(bar.low) - sy(bar.high), fill: bar.colour });
    box.append(shape("title", {}, plural(bar.count, "user")));
    svg.append(box);
  }
  let before = null;
  for (const trace of bins ? [] : figure.data) {
    const points = (trace.x || []).map((x, n) => [sx(x), sy(trace.y[n])]);
    const steps = points.map(([x, y], n) => (n === 0 ? `M${x} ${y}` : trace.line?.shape === "hv" ? `H${x}V${y}` : `L${x} ${y}`)).join("");
    if (trace.fill === "tonexty" && before) {
      const back = [...before].reverse().map(([x, y]) => `L${x} ${y}`).join("");
      svg.append(shape("path", { d: `${steps}${back}z`, fill: trace.fillcolor, stroke: "none" }));
    }
    before = points;
    if (trace.mode.includes("lines") && trace.line?.width) {
      svg.append(shape("path", { d: steps, fill: "none", stroke: trace.line.color, "stroke-width": trace.line.width, "stroke-dasharray": trace.line.dash ? "2 3" : null }));
    }
    if (trace.error_x) {
      const [low, high, y, w] = [sx(trace.x[0] - trace.error_x.arrayminus[0]), sx(trace.x[0] + trace.error_x.array[0]), points[0][1], trace.error_x.width];
      svg.append(shape("path", { d: `M${low} ${y}H${high}M${low} ${y - w}v${2 * w}M${high} ${y - w}v${2 * w}`, stroke: trace.error_x.color, "stroke-width": trace.error_x.thickness }));
    }
    if (!trace.mode.includes("markers")) continue;
    points.forEach(([x, y], n) => {
      const mark = dot(trace, n, x, y, trace.marker?.color || trace.line?.color);
      mark.append(shape("title", {}, told(trace, n)));
      if (node.dataset.figure === "map") {
        mark.classList.add("pick", "point");
        mark.addEventListener("click", () => node.dispatchEvent(new CustomEvent("pick", { detail: trace.customdata[n] })));
      }
      svg.append(mark);
      if (trace.mode.includes("text")) {
        const name = fit(plain(nth(trace.text, n)), width / 3);
        const half = wide(name) / 2;
        svg.append(shape("text", { x: Math.max(half + 2, Math.min(width - half - 2, x)), y: y - 10, class: "tick", "text-anchor": "middle" }, name));
      }
    });
  }
  return height;
}

function drop(node) {
  drawn.delete(node);
  watcher.unobserve(node);
  node.replaceChildren();
}

// One user's learning curve: the figure made in Python, without points, filled with this user's.
function drawCurve(node, points, without) {
  const figure = structuredClone(index.figures.curve);
  const [flat, line, accepted, refused] = figure.data;
  const last = points[points.length - 1].trial;
  Object.assign(flat, without === null ? { x: [], y: [] } : { x: [-0.3, last + 0.3], y: [without, without] });
  Object.assign(line, { x: points.map((p) => p.trial), y: points.map((p) => p.score) });
  for (const [trace, kind] of [[accepted, true], [refused, false]]) {
    const chosen = points.filter((p) => p.tried !== null && p.accepted === kind);
    trace.x = chosen.map((p) => p.trial);
    trace.y = chosen.map((p) => p.tried);
    trace.customdata = chosen.map((p) => [...p.edits, p.reason].join("<br>"));
  }
  if (last <= 12) figure.layout.xaxis.dtick = 1;
  draw(node, figure);
}
