"""What a user said of an answer, as assessments on the answer's trace in MLflow, and back. Imports no mlflow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from persona_dspy.core import FieldsKind, Interaction, ResponseKind, Signal, answer_text, thumbs_of
from persona_dspy.errors import InputError

__all__ = ["ODD", "OWN_MARK", "Assessed", "Drafted", "assessments_of", "drafted_in", "heard", "joined"]

ODD = (InputError, ValueError, TypeError, OverflowError, RecursionError)
"""What values of any shape, of whoever may write to MLflow, end reading one with."""


OWN_MARK = "persona_dspy.signal"
"""Metadata of the assessments that ``feedback()`` wrote: whoever keeps the signal knows it already."""

_LIKED = frozenset(
    [
        "accepted",
        "approved",
        "correct",
        "correctness",
        "feedback",
        "good",
        "helpful",
        "helpfulness",
        "like",
        "liked",
        "quality",
        "rating",
        "relevance",
        "relevant",
        "satisfaction",
        "satisfied",
        "score",
        "stars",
        "thumb",
        "thumbs",
        "thumbs_up",
        "useful",
        "user_feedback",
        "user_rating",
        "user_satisfaction",
    ]
)
_DISLIKED = frozenset(["dislike", "disliked", "thumbs_down"])
_COMMENT = frozenset(["comment", "comments", "feedback", "note", "user_comment", "user_feedback"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """What a trace says of an answer: the query, the answer, the other inputs, and the persona version."""

    query: str
    draft: str
    inputs: dict[str, Any]
    version: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessed:
    """What people said of one answer: a signal without the draft, the response they expected, which assessments that
    was (``id@milliseconds``), and why others were passed over."""

    signal: Signal
    response: str
    ids: tuple[str, ...]
    passed_over: tuple[str, ...] = ()


def assessments_of(said: Interaction) -> list[dict[str, Any]]:
    """What MLflow is told: ``kind`` ("feedback" or "expectation"), ``name``, ``value``, and the rest where it applies.

    Example:
        >>> said = Interaction(user_id="u", query="q", signal={"draft": "d", "thumbs": "down", "comment": "too long"})
        >>> [(a["kind"], a["name"], a["value"], a["rationale"]) for a in assessments_of(said)]
        [('feedback', 'thumbs', False, 'too long')]
    """
    signal = said.signal or Signal()
    told: list[dict[str, Any]] = []
    if signal.thumbs is not None:
        told.append({"kind": "feedback", "name": "thumbs", "value": signal.thumbs == "up"})
    if signal.rating is not None:
        scale = {"scale": json.dumps(signal.scale)}
        told.append({"kind": "feedback", "name": "rating", "value": signal.rating, "metadata": scale})
    if told and signal.comment:
        told[0]["rationale"] = signal.comment
    elif signal.comment:
        told.append({"kind": "feedback", "name": "comment", "value": signal.comment})
    if said.response:
        told.append({"kind": "expectation", "name": "response", "value": said.response})
    return [{"rationale": None, "metadata": {}, **one} for one in told]


def drafted_in(spans: Iterable[Any], fields: Sequence[str] | None = None) -> Drafted | None:
    """The answer in a trace's spans, outermost first: of our programs, or of any autologged DSPy program.

    Args:
        spans: with ``name``, ``inputs`` and ``outputs``.
        fields: names of the query and the response; by default the first input and the last output of the outermost
            span that has both by name. Of several responses each is the outermost span's that has it.
    """
    spans = list(spans)
    for span in spans:
        inputs, outputs = span.inputs, span.outputs
        if not isinstance(inputs, Mapping) or not isinstance(outputs, Mapping) or not inputs or not outputs:
            continue
        given: dict[str, Any] = {str(name): value for name, value in inputs.items()}
        answer: dict[str, Any] = {str(name): value for name, value in outputs.items()}
        if set(given) >= {"query", "persona"} and set(answer) == {"response"}:  # of our own programs
            others = given.get("inputs")
            return _drafted(given["query"], answer["response"], others if isinstance(others, dict) else {})
        query, *responses = fields or (next(iter(given)), list(answer)[-1])
        if query in given and any(name in answer for name in responses) and query not in ("args", "messages"):
            draft = answer[responses[0]] if len(responses) == 1 else _outputs(spans, responses)
            return _drafted(given.pop(query), draft, given)
    return None


def _outputs(spans: Iterable[Any], names: Sequence[str]) -> dict[str, Any]:
    """The values of these outputs, each of the outermost span that has it."""
    found: dict[str, Any] = {}
    for outputs in (span.outputs for span in spans if isinstance(span.outputs, Mapping)):
        found = {**{name: outputs[name] for name in names if name in outputs}, **found}
    return {name: answer_text(found[name]) for name in names if found.get(name) is not None}


def joined(names: Sequence[str], earlier: str, later: str) -> str:
    """A response with what was expected later of it: of several fields, what is known of others stays."""
    if len(names) < 2 or not (earlier and later):
        return later or earlier
    return FieldsKind.of_kinds(dict.fromkeys(names, ResponseKind(name="text"))).merged(earlier, later)


def heard(
    assessments: Iterable[Any], *, fields: Sequence[str], scale: tuple[float, float], seen: Iterable[str], known: bool
) -> Assessed:
    """What people - not judges that are programs - said, the latest word last.

    Args:
        fields: of an expected answer that is an object, which of its fields is the response, or which are. Where they
            are several, an expectation may have the name of one of them.
        scale: of ratings that do not say theirs.
        seen: assessments that were read before, as ``id@milliseconds``.
        known: whether the signals that ``feedback()`` wrote are kept already.
    """
    seen_ids, signal, response = set(seen), Signal(), ""
    comments: list[str] = []
    ids: list[str] = []
    passed_over: list[str] = []
    for one in sorted(assessments, key=lambda a: (a.last_update_time_ms or 0, a.assessment_id or "")):
        stamp = f"{one.assessment_id}@{one.last_update_time_ms}"
        own = OWN_MARK in (one.metadata or {})
        if stamp in seen_ids or one.valid is False or one.source.source_type != "HUMAN" or (own and known):
            continue
        try:
            if one.expectation is not None:
                response = joined(fields, response, _expected(one.name, one.expectation.value, fields))
            elif one.feedback is not None and one.feedback.error is None:
                said, comment = _said(one.name, one.feedback.value, one.metadata or {}, scale)
                signal = signal.updated(said)
                comments += [text for text in (comment, one.rationale or "") if text.strip()]
            ids.append(stamp)
        except ODD as refused:
            passed_over.append(f"assessment {one.name!r}: {str(refused)[:200]}")
    signal = signal.updated(Signal(comment="\n".join(dict.fromkeys(comments))))
    return Assessed(signal=signal, response=response, ids=tuple(ids), passed_over=tuple(passed_over))


def _drafted(query: Any, draft: Any, inputs: Mapping[str, Any]) -> Drafted | None:
    query, draft = answer_text(query), "" if draft is None else answer_text(draft)
    others = {name: value for name, value in inputs.items() if value is not None and name not in ("args", "kwargs")}
    return Drafted(query=query, draft=draft, inputs=others) if query.strip() and draft.strip() else None


def _said(name: str, value: Any, metadata: Mapping[str, str], scale: tuple[float, float]) -> tuple[Signal, str]:
    """A verdict where the assessment's name says that more of it is better, else the user's words."""
    key = "_".join(name.split()).casefold()
    verdict, against = key in _LIKED, key in _DISLIKED
    if value is None:
        return Signal(), ""
    if (verdict or against) and (isinstance(value, bool) or _is_thumb(value)):
        up = thumbs_of(value) == "up"
        return Signal(thumbs="up" if up != against else "down"), ""
    if verdict and isinstance(value, int | float):
        low, high = json.loads(metadata["scale"]) if "scale" in metadata else scale
        return Signal(rating=float(value), scale=(low, high)), ""
    text = ("yes" if value else "no") if isinstance(value, bool) else answer_text(value)
    return Signal(), text if key in _COMMENT else f"{name}: {text}"


def _is_thumb(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        return thumbs_of(value) is not None
    except InputError:
        return False


def _expected(name: str, value: Any, fields: Sequence[str]) -> str:
    if value is None:
        return ""
    several = len(fields) > 1
    if several and name in fields and not isinstance(value, Mapping):
        value = {name: value}
    if isinstance(value, Mapping):
        values: dict[str, Any] = {str(key): one for key, one in value.items()}
        own = {key: answer_text(values[key]) for key in fields if values.get(key) is not None}
        if own:
            return answer_text(own) if several else next(iter(own.values()))
        if several or len(values) != 1:
            raise InputError(f"expectation {values!r}: expected a text, or an object with the response's field")
        value = next(iter(values.values()))
    return "" if value is None else answer_text(value)
