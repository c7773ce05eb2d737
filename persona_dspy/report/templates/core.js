"use strict";
// Texts of users reach the page through el() alone, which makes text nodes, never markup.
const byId = (id) => document.getElementById(id);
const index = JSON.parse(byId("index").textContent);
const view = (n) => JSON.parse(byId(`view-${n}`).textContent);

function el(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false || child === "") continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const said = (text, tag = "span", kind = "") => el(tag, { class: `said ${kind}`.trim(), dir: "auto" }, text);
const plural = (n, one, many) => `${n.toLocaleString("en")} ${n === 1 ? one : many || one + "s"}`;
const score = (value) => (value === null || value === undefined ? "–" : value.toFixed(2));
const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const signed = (value) => (value > 1e-9 ? "+" : value < -1e-9 ? "−" : "") + Math.abs(value).toFixed(2);
const money = (value) => (value === null || value === undefined ? "–" : "$" + value.toPrecision(2));
const day = (iso) => (iso || "").slice(0, 10);
