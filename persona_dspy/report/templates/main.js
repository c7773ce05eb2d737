"use strict";
// The table of users: search, filter, sort, and one sheet a user, made when it is opened.
const PAGE = 50;
const gain = (u) => (u.before === null || u.after === null ? null : u.after - u.before);
const grouped = index.groups.length > 1;
const COLUMNS = [
  { name: "user", value: (u) => u.id },
  { name: "group", value: (u) => u.group, show: (u) => (u.group === null ? "–" : groupName(u.group)), optional: true, hide: !grouped },
  { name: "version", value: (u) => u.version, number: true, optional: true },
  { name: "without persona", value: (u) => u.before, show: (u) => score(u.before), number: true, optional: true },
  { name: "aligned", value: (u) => u.after, show: (u) => score(u.after), number: true },
  { name: "gain", value: gain, show: showGain, number: true },
  { name: "accepted", value: (u) => u.accepted, show: (u) => count(u.accepted), number: true, optional: true },
  { name: "LM calls", value: (u) => u.calls, show: (u) => count(u.calls), number: true },
  { name: "tokens", value: (u) => u.tokens, show: (u) => count(u.tokens), number: true, optional: true },
  { name: "USD", value: (u) => u.usd, show: (u) => money(u.usd), number: true, optional: true, hide: !index.users.some((u) => u.usd !== null) },
].filter((c) => !c.hide);
const FILTERS = {
  all: () => true,
  better: (u) => gain(u) !== null && gain(u) > 1e-9,
  same: (u) => gain(u) !== null && Math.abs(gain(u)) <= 1e-9,
  worse: (u) => gain(u) !== null && gain(u) < -1e-9,
  changed: (u) => u.accepted > 0,
};
const state = { column: 0, descending: false, shown: PAGE, open: new Map() };

function groupName(group) {
  const trace = index.figures.map.data[group];
  const dot = el("span", { class: "dot", "aria-hidden": "true" });
  dot.style.background = trace.marker.color;
  return [dot, said(index.groups[group])];
}

function showGain(u) {
  const value = gain(u);
  if (value === null) return "–";
  return el("span", { class: value > 1e-9 ? "better" : value < -1e-9 ? "worse" : "" }, signed(value));
}

function chosen() {
  const words = byId("search").value.trim().toLowerCase();
  const keep = FILTERS[byId("filter").value];
  const found = index.users.map((u, n) => n).filter((n) => keep(index.users[n]) && index.users[n].id.toLowerCase().includes(words));
  const value = COLUMNS[state.column].value;
  const sign = state.descending ? -1 : 1;
  return found.sort((a, b) => {
    const [x, y] = [value(index.users[a]), value(index.users[b])];
    if (x === y) return a - b;
    if (x === null) return 1; // unknown comes last either way
    if (y === null) return -1;
    return sign * (typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y);
  });
}

function render() {
  const found = chosen();
  const visible = found.slice(0, state.shown);
  for (const [n, part] of state.open) if (!visible.includes(n)) close(n, part);
  byId("rows").replaceChildren(...visible.flatMap((n) => [row(n), ...(state.open.has(n) ? [state.open.get(n).row] : [])]));
  byId("count").textContent = found.length === index.users.length ? plural(found.length, "user") : `${count(found.length)} of ${plural(index.users.length, "user")}`;
  const rest = found.length - visible.length;
  byId("more").hidden = rest <= 0;
  byId("more").textContent = `Show ${Math.min(PAGE, rest)} more of ${count(rest)}`;
  headings();
}

function headings() {
  COLUMNS.forEach((column, n) => {
    const sorted = n === state.column ? (state.descending ? "descending" : "ascending") : "none";
    byId("headings").children[n].setAttribute("aria-sort", sorted);
  });
}

function row(n) {
  const user = index.users[n];
  const cells = COLUMNS.slice(1).map((c) => el("td", { class: [c.number && "n", c.optional && "optional"].filter(Boolean).join(" ") || null }, c.show ? c.show(user) : c.value(user)));
  const button = el("button", { type: "button", "aria-expanded": String(state.open.has(n)), "aria-controls": `sheet-${n}`, dir: "auto" }, user.id);
  return el("tr", { class: "user", id: `user-${n}`, onclick: () => toggle(n) }, el("th", { scope: "row" }, button), cells);
}

function toggle(n) {
  if (state.open.has(n)) {
    close(n, state.open.get(n));
    byId(`user-${n}`).querySelector("button").setAttribute("aria-expanded", "false");
    if (location.hash === `#user=${encodeURIComponent(index.users[n].id)}`) history.replaceState(null, "", " ");
  } else open(n, false);
}

function close(n, part) {
  if (part.sheet.plot) drop(part.sheet.plot);
  part.row.remove();
  state.open.delete(n);
}

function open(n, go) {
  if (!chosen().includes(n)) {
    byId("search").value = "";
    byId("filter").value = "all";
  }
  state.shown = Math.max(state.shown, chosen().indexOf(n) + 1);
  if (!state.open.has(n)) {
    const made = sheet(n, open);
    state.open.set(n, { sheet: made, row: el("tr", { class: "open", id: `sheet-${n}` }, el("td", { colspan: COLUMNS.length }, made.node)) });
    render();
    made.ready();
  } else render();
  history.replaceState(null, "", `#user=${encodeURIComponent(index.users[n].id)}`);
  const button = byId(`user-${n}`).querySelector("button");
  button.focus({ preventScroll: true });
  if (go) byId(`user-${n}`).scrollIntoView({ block: "start" });
}

function fromAddress() {
  const wanted = /^#user=(.*)$/.exec(location.hash);
  if (!wanted) return;
  let id = wanted[1];
  try { id = decodeURIComponent(id); } catch { return; }
  const n = index.users.findIndex((u) => u.id === id);
  if (n >= 0) open(n, true);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  byId("theme").textContent = name === "dark" ? "Light" : "Dark";
}

// What the page is about, on its first screen: a few personas whole, those that changed most first.
function cards() {
  byId("cards").replaceChildren(...index.cards.map(({ user: n, lines, more }) => {
    const user = index.users[n];
    const scores = user.before === null || user.after === null ? "" : `${score(user.before)} → ${score(user.after)}`;
    return el("article", { class: "card persona" },
      el("h3", {}, said(user.id), el("span", { class: "soft" }, ` version ${user.version}`), el("b", { class: "after" }, scores)),
      el("ul", {}, lines.map((line) => el("li", {}, said(line)))),
      el("button", { type: "button", class: "quiet", onclick: () => open(n, true) }, more ? `${plural(more, "more line")}, evidence and history` : "evidence and history"));
  }));
}

function start() {
  cards();
  byId("headings").replaceChildren(...COLUMNS.map((column, n) =>
    el("th", { scope: "col", class: [column.number && "n", column.optional && "optional"].filter(Boolean).join(" ") || null },
      el("button", { type: "button", onclick: () => {
        state.descending = state.column === n ? !state.descending : Boolean(column.number);
        state.column = n;
        render();
      } }, column.name))));
  for (const [id, event] of [["search", "input"], ["filter", "change"]]) {
    byId(id).addEventListener(event, () => { state.shown = PAGE; render(); });
  }
  byId("more").addEventListener("click", () => { state.shown += PAGE; render(); });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const current = () => document.documentElement.dataset.theme || (dark.matches ? "dark" : "light");
  byId("theme").hidden = false;
  byId("theme").textContent = current() === "dark" ? "Light" : "Dark";
  byId("theme").addEventListener("click", () => theme(current() === "dark" ? "light" : "dark"));
  addEventListener("beforeprint", () => { for (const [node, { figure }] of drawn) draw(node, figure); });
  addEventListener("hashchange", fromAddress);
  render();
  for (const node of document.querySelectorAll("[data-figure]")) if (node.dataset.figure !== "each") draw(node, index.figures[node.dataset.figure]);
  fill(document.querySelector('[data-figure="each"]'));
  const map = document.querySelector('[data-figure="map"]');
  if (map) map.addEventListener("pick", (event) => open(event.detail, true));
  fromAddress();
}

// The figure of each user takes the height that the cards beside it leave.
function fill(node) {
  if (!node) return;
  const figure = index.figures.each;
  const room = node.closest(".card").getBoundingClientRect().bottom - node.getBoundingClientRect().top - 20;
  figure.layout.height = Math.max(figure.layout.height, room);
  draw(node, figure);
}

start();
