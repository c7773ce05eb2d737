"use strict";
// Figures come from Python; here they get the colours of the page's theme, again whenever that changes.
const drawn = new Set();
const config = { displayModeBar: false, responsive: true, displaylogo: false };

function themed(light) {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  return {
    "font.color": light ? "#1b2330" : colour("--ink"),
    "hoverlabel.bgcolor": colour("--card"),
    "hoverlabel.bordercolor": colour("--line"),
    "hoverlabel.font.color": colour("--ink"),
  };
}

function draw(node, figure) {
  const layout = structuredClone(figure.layout);
  layout.dragmode = node.dataset.figure === "map" ? "zoom" : false;
  for (const axis of ["xaxis", "yaxis"]) layout[axis].fixedrange = node.dataset.figure !== "map";
  for (const [path, value] of Object.entries(themed())) {
    const keys = path.split(".");
    const last = keys.pop();
    let at = layout;
    for (const key of keys) at = at[key] = at[key] || {};
    at[last] = value;
  }
  Plotly.newPlot(node, structuredClone(figure.data), layout, config);
  drawn.add(node);
}

function drop(node) {
  drawn.delete(node);
  Plotly.purge(node);
}

function recolour(light) {
  for (const node of drawn) Plotly.relayout(node, themed(light));
}

// One user's learning curve: the figure made in Python, without points, filled with this user's.
function drawCurve(node, points, without) {
  const figure = structuredClone(index.figures.curve);
  const [flat, line, accepted, refused] = figure.data;
  const last = points[points.length - 1].trial;
  if (without !== null) Object.assign(flat, { x: [-0.3, last + 0.3], y: [without, without] });
  Object.assign(line, { x: points.map((p) => p.trial), y: points.map((p) => p.score) });
  for (const [trace, kind] of [[accepted, true], [refused, false]]) {
    const chosen = points.filter((p) => p.tried !== null && p.accepted === kind);
    trace.x = chosen.map((p) => p.trial);
    trace.y = chosen.map((p) => p.tried);
    trace.customdata = chosen.map((p) => [...p.edits, `<i>${p.reason}</i>`].join("<br>"));
  }
  if (last <= 12) figure.layout.xaxis.dtick = 1;
  draw(node, figure);
}
