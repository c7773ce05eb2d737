"""What the page shows of one user, as JSON-safe values.

A view is made from its own ``Subject`` alone, so no text of another user can reach it.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from persona_dspy.core import Alignment, AlignmentStep, Bullet, Interaction, Persona, PersonaDocument
from persona_dspy.report.figures import curve, label
from persona_dspy.report.sources import Subject

__all__ = ["alignment_of", "user_view", "word_diff"]

_TEXT = 400  # characters of an episode's query or response, and of feedback, that a page holds
_WORDS = 2  # examples of a tool's search words


def alignment_of(subject: Subject) -> Alignment | None:
    """The record behind the version in force, or, where that one was made without, the latest record before it."""
    records = [d.alignment for d in subject.versions if d.alignment and d.version <= subject.current]
    return subject.document.alignment or (records[-1] if records else None)


def user_view(subject: Subject) -> dict[str, Any]:
    """Everything the page shows of a user; short keys are not needed, unknown values are None."""
    document, alignment = subject.document, alignment_of(subject)
    return {
        "id": subject.user_id,
        "version": document.version,
        "created": document.created_at,
        "task": document.task,
        "model": document.model,
        "prompt": document.system_prompt,
        "sections": [
            {"name": section.name, "bullets": [_bullet(b) for b in section.bullets]} for section in document.sections
        ],
        "versions": _versions(subject.versions, subject.current),
        "alignment": None if alignment is None else _alignment(alignment, _sentences(subject.versions)),
        "actions": _actions(subject),
        "episodes": {key: _episode(i) for key, i in subject.episodes.items()},
    }


def _bullet(bullet: Bullet) -> dict[str, Any]:
    values = {"text": bullet.sentence, "source": bullet.source, "hits": bullet.hits, "locked": bullet.locked}
    return {**values, "evidence": list(bullet.evidence)}


def _episode(item: Interaction) -> dict[str, str | None]:
    time = item.time.date().isoformat() if item.time else None
    return {"query": _clip(item.query), "response": _clip(item.response), "time": time}


def _clip(text: str, most: int = _TEXT) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _versions(versions: Sequence[PersonaDocument], current: int) -> list[dict[str, Any]]:
    """Newest first, each with what it changed in its parent; where that is not at hand, in the version before it, or
    by the record of its alignment."""
    by_number, sentences = {d.version: d for d in versions}, _sentences(versions)
    views: list[dict[str, Any]] = []
    for place, document in enumerate(versions):
        base = by_number.get(document.parent) if document.parent is not None else None
        if base is None and document.parent is not None and place:
            base = versions[place - 1]
        about = {"version": document.version, "parent": document.parent, "created": document.created_at}
        has_parent = base is not None or document.parent is None
        changes = _changes(base, document) if has_parent else _recorded(document, sentences)
        views.append(
            {
                **about,
                "base": None if base is None else base.version,
                "current": document.version == current,
                "known": has_parent,
                "changes": changes,
            }
        )
    return views[::-1]


def _changes(base: PersonaDocument | None, document: PersonaDocument) -> list[dict[str, Any]]:
    diff = (_persona(base) if base else Persona(user_id=document.user_id)).diff(_persona(document))
    changes = [{"op": "-", "section": b.section, "parts": [["-", b.sentence]]} for b in diff.dropped]
    for old, new in diff.revised:
        parts = word_diff(old.sentence, new.sentence)
        if old.locked != new.locked:
            parts.append(["+", " (locked)" if new.locked else " (unlocked)"])
        changes.append({"op": "~", "section": new.section, "parts": parts})
    changes += [{"op": "+", "section": b.section, "parts": [["+", b.sentence]]} for b in diff.added]
    return changes


def _recorded(document: PersonaDocument, sentences: dict[str, str]) -> list[dict[str, Any]]:
    """What alignment changed, by its own record: for a version whose parent is not at hand."""
    steps = document.alignment.steps if document.alignment else ()
    edits = [_edit(e, sentences) for step in steps for trial in step.trials if trial.accepted for e in trial.edits]
    return [{"op": e["op"], "section": "", "parts": [["=", e["text"]]]} for e in edits]


def _persona(document: PersonaDocument) -> Persona:
    bullets = tuple(b for s in document.sections for b in s.bullets)
    return Persona(user_id=document.user_id, bullets=bullets, version=document.version)


def word_diff(old: str, new: str) -> list[list[str]]:
    """A revised sentence as ``[kind, text]`` pieces: ``=`` kept, ``-`` gone, ``+`` new. Pieces of ``=`` and ``+`` join
    to ``new``, of ``=`` and ``-`` to ``old``.

    Example:
        >>> word_diff("Likes short films.", "Likes long films.")
        [['=', 'Likes '], ['-', 'short'], ['+', 'long'], ['=', ' films.']]
    """
    one, other = re.findall(r"\w+|\W", old), re.findall(r"\w+|\W", new)
    parts: list[list[str]] = []
    for op, a, b, c, d in difflib.SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if op == "equal":
            parts.append(["=", "".join(one[a:b])])
            continue
        parts += [["-", "".join(one[a:b])]] if b > a else []
        parts += [["+", "".join(other[c:d])]] if d > c else []
    return parts


def _sentences(versions: Iterable[PersonaDocument]) -> dict[str, str]:
    """Bullet id -> sentence, over all known versions: a record's ``drop`` names the id only."""
    return {b.id: b.sentence for d in versions for s in d.sections for b in s.bullets}


def _alignment(record: Alignment, sentences: dict[str, str]) -> dict[str, Any]:
    return {
        "scores": record.scores.model_dump(),
        "gate_size": record.gate_size,
        "accepted": record.accepted,
        "stopped": record.stopped,
        "notes": list(record.notes),
        "options": {key: str(value) for key, value in record.options.items() if value is not None},
        "curve": [
            {
                **asdict(point),
                "edits": [label(_edit(e, sentences)["text"]) for e in point.edits],
                "reason": label(point.reason),
            }
            for point in curve(record)
        ],
        "steps": [_step(step, sentences) for step in record.steps],
        "usage": [{"role": role, **usage.to_dict()} for role, usage in record.usage.items()],
    }


def _step(step: AlignmentStep, sentences: dict[str, str]) -> dict[str, Any]:
    scores, feedback = list(step.scores), list(step.feedback)
    simulated = [
        {
            "id": name,
            "score": scores[n] if n < len(scores) else None,
            "feedback": _clip(feedback[n]) if n < len(feedback) else "",
        }
        for n, name in enumerate(step.simulated)
    ]
    trials = [{**t.model_dump(exclude={"edits"}), "edits": [_edit(e, sentences) for e in t.edits]} for t in step.trials]
    return {"epoch": step.epoch, "simulated": simulated, "trials": trials, "calls": step.usage.calls}


def _edit(sentence: str, sentences: dict[str, str]) -> dict[str, str]:
    """An edit of the record (``add ...``, ``revise ...``, ``drop <id>``) as a sign and what it is about."""
    op, _, rest = sentence.partition(" ")
    sign = {"add": "+", "revise": "~", "drop": "-"}.get(op)
    if sign is None:
        return {"op": "~", "text": _clip(sentence)}
    return {"op": sign, "text": _clip(sentences.get(rest, rest) if sign == "-" else rest)}


def _actions(subject: Subject) -> list[dict[str, Any]]:
    """Tools by how often they were called in the user's traces, with the words they were called with last."""
    steps = [step for trace in subject.traces for step in trace.steps]
    counts = Counter(step.action for step in steps)
    return [
        {
            "name": name,
            "times": times,
            "failed": sum(s.failed for s in steps if s.action == name),
            "steered": sum(bool(s.steered_by) for s in steps if s.action == name),
            "words": list(dict.fromkeys(_clip(s.query, 80) for s in steps[::-1] if s.action == name and s.query))[
                :_WORDS
            ],
        }
        for name, times in counts.most_common()
    ]
