"""What a notebook shows of personas, differences and alignments; every text is escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from persona_dspy.core.plurals import plural

__all__ = ["alignment_html", "diff_html", "persona_html"]

_SOFT = "color:#6b7688;font-size:90%"


def persona_html(persona: Any) -> str:
    """Sections with their lines; behind each line its id, source and how often it was borne out.

    Example:
        >>> from persona_dspy import Persona
        >>> html = persona_html(Persona.from_text("Likes <b>tea</b>.", user_id="u1"))
        >>> "Likes &lt;b&gt;tea&lt;/b&gt;." in html, "<b>tea" in html
        (True, False)
    """
    parts = [f"<b>{escape(persona.user_id)}</b> {_soft(f'version {persona.version}')}"]
    for section in dict.fromkeys(bullet.section for bullet in persona.bullets):
        items = "".join(f"<li>{_line(b)} {_soft(_marks(b))}</li>" for b in persona.section(section))
        parts.append(f"<div style='margin-top:.5em'><i>{escape(section)}</i></div>")
        parts.append(f"<ul style='margin:.2em 0'>{items}</ul>")
    if not persona.bullets:
        parts.append("<div>no lines: answers are those of the program alone</div>")
    return "".join(parts)


def diff_html(difference: Any) -> str:
    """Lines that were added, dropped and revised, each with its sign."""
    rows = [("+", "#0b7560", f"[{b.section}] {b.sentence}") for b in difference.added]
    rows += [("-", "#b23636", f"[{b.section}] {b.sentence}") for b in difference.dropped]
    rows += [("~", "#3559b8", f"[{new.section}] {old.sentence} -> {new.sentence}") for old, new in difference.revised]
    if not rows:
        return "<div>no change</div>"
    shown = [f"<div style='color:{colour}'><code>{sign}</code> {escape(text)}</div>" for sign, colour, text in rows]
    return "".join(shown)


def alignment_html(record: Any) -> str:
    """The scores, then a row a challenger: what it would have changed, how it did, and the verdict."""
    known = {name: value for name, value in record.scores.model_dump().items() if value is not None}
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in known.items())
    head = f"{record.accepted} accepted, {plural(record.total.calls, 'LM call')}"
    rows = [
        f"<tr><td>{step.epoch}</td><td style='text-align:left'>{'<br>'.join(map(escape, trial.edits))}</td>"
        f"<td>{trial.incumbent_score:.2f}</td><td>{_score(trial.challenger_score)}</td>"
        f"<td style='text-align:left'>{'accepted' if trial.accepted else escape(trial.reason)}</td></tr>"
        for step in record.steps
        for trial in step.trials
    ]
    titles = "".join(f"<th>{t}</th>" for t in ("step", "edits", "in force", "challenger", "verdict"))
    table = f"<table><thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table>" if rows else ""
    over = f"held-out scores over {plural(record.gate_size, 'interaction')}: {scores or 'none'}"
    return f"<b>{escape(record.user_id)}</b> {head}; {escape(record.stopped)}<div>{over}</div>{table}"


def _soft(text: str) -> str:
    return f"<span style='{_SOFT}'>{escape(text)}</span>"


def _line(bullet: Any) -> str:
    return ("<b title='locked'>&#128274;</b> " if bullet.locked else "") + escape(bullet.sentence)


def _marks(bullet: Any) -> str:
    times = f", {plural(bullet.hits, 'time')}" if bullet.hits else ""
    return f"{bullet.id}: {bullet.source}{times}"


def _score(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
