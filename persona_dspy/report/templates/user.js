"use strict";
// The sheet of one user: persona, learning curve, versions, what was tried, actions, cost.
const SIGNS = { "+": ["add", "added"], "-": ["drop", "dropped"], "~": ["revise", "revised"] };

function sheet(n, open) {
  const user = view(n);
  const record = user.alignment;
  const plot = record && record.curve.length ? el("div", { class: "plot", role: "img", "aria-label": curveInWords(record) }) : null;
  const left = el("div", {}, el("h3", {}, "Persona"), persona(user), prompt(user));
  const right = el("div", {},
    plot && [el("h3", {}, "Learning curve"), el("p", { class: "soft small" }, curveInWords(record)), plot],
    similar(n, open), actions(user), cost(record));
  const node = el("div", { class: "sheet" },
    el("p", { class: "soft" }, facts(user)),
    el("div", { class: "columns" }, left, right,
      el("div", { class: "wide" }, versions(user), tried(user))));
  return { node, plot, ready: () => plot && drawCurve(plot, record.curve, record.scores.without_persona) };
}

function facts(user) {
  const known = [`version ${user.version}`, day(user.created), user.task, user.model, user.alignment && user.alignment.stopped];
  return known.filter(Boolean).flatMap((fact, i) => [i ? " · " : "", said(fact)]);
}

function curveInWords(record) {
  const { without_persona: without, initial, final } = record.scores;
  const tried = record.curve.length - 1;
  const before = without === null ? "" : `${score(without)} without a persona, `;
  return `${before}${score(initial)} with the initial one, ${score(final)} with the aligned one, on ` +
    `${plural(record.gate_size, "held-out interaction")}; ${plural(tried, "challenger")} tried, ${record.accepted} accepted.`;
}

function persona(user) {
  if (!user.sections.length) return el("p", { class: "soft" }, "The persona is empty.");
  return user.sections.map((section) => [
    el("h4", {}, section.name),
    el("ul", { class: "bullets" }, section.bullets.map((bullet) => el("li", {}, said(bullet.text, "div"), about(user, bullet)))),
  ]).flat();
}

function about(user, bullet) {
  const SOURCES = { fact: "counted", summary: "summarised", learned: "learned", given: "given by a person" };
  const line = el("div", { class: "about" }, el("span", {}, SOURCES[bullet.source]),
    bullet.hits ? el("span", {}, plural(bullet.hits, "interaction"), bullet.hits === 1 ? " bears it out" : " bear it out") : null,
    bullet.locked ? el("span", {}, "locked by the user") : null);
  if (!bullet.evidence.length) return line;
  const list = el("ul", { class: "episodes", hidden: true }, bullet.evidence.map((id) => episode(user, id)));
  const first = user.episodes[bullet.evidence[0]];
  const button = el("button", {
    type: "button", class: "link evidence", "aria-expanded": "false",
    title: bullet.evidence.slice(0, 3).map((id) => (user.episodes[id] ? `${user.episodes[id].query} → ${user.episodes[id].response}` : id)).join("\n"),
    onclick: () => {
      list.hidden = !list.hidden;
      button.setAttribute("aria-expanded", String(!list.hidden));
    },
  }, `${first ? "evidence" : "evidence ids"} (${bullet.evidence.length})`);
  line.append(button);
  return [line, list];
}

function episode(user, id, extra) {
  const item = user.episodes[id];
  if (!item) return el("li", {}, said(id, "span", "id"), extra);
  return el("li", { title: id }, said(item.query), " → ", said(item.response, "span", "response"),
    item.time ? [" ", el("time", { datetime: item.time }, item.time)] : null, extra);
}

function prompt(user) {
  if (!user.prompt) return null;
  return el("details", { style: "margin-top: 1.2rem" }, el("summary", {}, "System prompt, as a model gets it"), said(user.prompt, "pre"));
}

function similar(n, open) {
  const near = index.users[n].near;
  if (!near.length) return null;
  return [el("h3", {}, "Most similar personas"),
    el("p", {}, near.map(([other, value], i) => [i ? ", " : "",
      el("button", { type: "button", class: "link", onclick: () => open(other, true) }, said(index.users[other].id)), ` ${value.toFixed(2)}`]).flat())];
}

function actions(user) {
  if (!user.actions.length) return null;
  const rows = user.actions.map((a) => el("tr", {}, el("th", { scope: "row" }, said(a.name)), el("td", { class: "n" }, count(a.times)),
    el("td", { class: "n" }, count(a.steered)), el("td", { class: "n" }, count(a.failed)), el("td", {}, said(a.words.join(" · ")))));
  return [el("h3", {}, "Actions used"), el("table", { class: "small" },
    el("thead", {}, el("tr", {}, ["action", "times", "steered", "failed", "words"].map((h, i) => el("th", { scope: "col", class: i > 0 && i < 4 ? "n" : null }, h)))),
    el("tbody", {}, rows))];
}

function cost(record) {
  if (!record || !record.usage.length) return null;
  const priced = record.usage.some((u) => u.usd !== null);
  const heads = ["calls", "tokens", "cached", "seconds", ...(priced ? ["USD"] : [])];
  const roles = [...record.usage].sort((a, b) => (a.role === "total") - (b.role === "total"));
  const rows = roles.map((u) => el("tr", {}, el("th", { scope: "row" }, said(u.role)),
    [count(u.calls), count(u.input_tokens + u.output_tokens), count(u.cached_tokens), u.seconds.toFixed(1), ...(priced ? [money(u.usd)] : [])]
      .map((cell) => el("td", { class: "n" }, cell))));
  return [el("h3", {}, "What alignment cost"), el("table", { class: "small" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "LM calls to"), heads.map((h) => el("th", { scope: "col", class: "n" }, h)))),
    el("tbody", {}, rows))];
}

function line(sign, content) {
  const [kind, word] = SIGNS[sign];
  return el("li", { class: kind }, el("span", { class: "sign" }, el("span", { "aria-hidden": "true" }, sign), el("span", { class: "hidden" }, word)), el("span", {}, content));
}

function versions(user) {
  const shown = user.versions.map((v) => {
    const many = (sign) => v.changes.filter((c) => c.op === sign).length;
    const sums = [["+", "+"], ["~", "~"], ["-", "−"]].map(([op, sign]) => (many(op) ? `${sign}${many(op)}` : "")).filter(Boolean).join(" ");
    const what = !v.known ? `from version ${v.parent}, by the record` : v.base === null ? "the first" : `from version ${v.base}`;
    return el("details", { class: "version" },
      el("summary", {}, `Version ${v.version}`, el("span", { class: "soft" }, [v.current ? "in force" : "", what, sums, day(v.created)].filter(Boolean).join(" · "))),
      v.changes.length
        ? el("ul", { class: "diff" }, v.changes.map((c) => line(c.op, [c.parts.map(([kind, text]) => said(text, { "+": "ins", "-": "del", "=": "span" }[kind])), c.section && el("span", { class: "soft small" }, ` ${c.section}`)].flat())))
        : el("p", { class: "soft" }, v.known ? (v.base === null ? "It has no bullets." : "Same bullets.") : "Its parent is not in this report, and its record names no edit."));
  });
  return [el("h3", {}, "Versions"), shown].flat();
}

function tried(user) {
  const record = user.alignment;
  if (!record || !record.steps.length) return null;
  const steps = record.steps.map((step) => {
    const won = step.trials.filter((t) => t.accepted).length;
    const sums = [step.simulated.length ? `${plural(step.simulated.length, "interaction")} simulated` : "", step.trials.length ? plural(step.trials.length, "challenger") : "no challenger", won ? `${won} accepted` : ""];
    return el("details", { class: "step" },
      el("summary", {}, step.epoch ? `Step ${step.epoch}` : "Before the first step", el("span", { class: "soft" }, sums.filter(Boolean).join(" · "))),
      step.simulated.length ? [el("h4", {}, "Simulated, and what the mistakes showed"), el("ul", { class: "episodes" },
        step.simulated.map((s) => episode(user, s.id, [" ", el("span", { class: "soft" }, `score ${score(s.score)}`), s.feedback ? said(s.feedback, "div", "soft") : null])))] : null,
      step.trials.length ? [el("h4", {}, "Challengers"), step.trials.map(trial)].flat() : null);
  });
  return [el("h3", {}, "What was tried, and why it was kept or not"), record.notes.length ? el("p", { class: "soft" }, said(record.notes.join("; "))) : null, steps].flat();
}

function trial(t) {
  const verdict = t.accepted ? el("span", { class: "verdict better" }, "accepted") : el("span", { class: "verdict soft" }, "refused");
  const scores = t.challenger_score === null ? ` at ${score(t.incumbent_score)}` : ` ${score(t.incumbent_score)} → ${score(t.challenger_score)}`;
  return el("div", { class: "trial" }, verdict, scores, el("span", { class: "soft" }, " · ", said(t.reason)),
    el("ul", { class: "diff" }, t.edits.map((e) => line(e.op, said(e.text)))));
}
