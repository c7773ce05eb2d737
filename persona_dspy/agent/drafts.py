"""Drafts: answers that were given and that the user may still say something of."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from persona_dspy.agent.offered import OPTIONS
from persona_dspy.agent.prediction import trace_of
from persona_dspy.agent.trace import Trace
from persona_dspy.core import Interaction, Signal, one_line, says_disliked, thumbs_of
from persona_dspy.errors import InputError

__all__ = ["OUTCOME", "RecentDrafts", "as_given", "draft_of", "looked_up", "trace_id_of"]

_KEPT = 100
OUTCOME = "outcome"
"""Key of an interaction's metadata under which stands what was looked up and answered before the user answered."""
_SAYS_SOMETHING = ("comment", "thumbs", "thumb", "rating", "stars", "feedback")  # names under which people put signals


def draft_of(trace: Trace) -> Interaction:
    """The draft that was given, as an interaction that nobody has judged yet; its id is the trace's.

    Example:
        >>> trace = Trace(id="tr-1", user_id="u1", query="Alien", persona_version=3, persona="", response="sci-fi")
        >>> given = draft_of(trace)
        >>> given.id, given.signal.draft, given.signal.version, given.answered
        ('tr-1', 'sci-fi', 3, False)
    """
    offered: Any = trace.inputs.get(OPTIONS, ())
    return Interaction(
        user_id=trace.user_id,
        query=trace.query,
        time=datetime.fromtimestamp(trace.started, UTC) if trace.started else None,
        id=trace.id,
        metadata={name: value for name, value in trace.inputs.items() if name != OPTIONS},
        signal=Signal(draft=trace.response, version=trace.persona_version, trace=trace.id, options=offered),
    )


def looked_up(trace: Trace) -> str:
    """The tools that were called and their words, as a line; of recall by the query itself nothing."""
    steps = [s for s in trace.steps if not s.failed and s.query != one_line(trace.query)]
    return one_line("; ".join(f"{s.action}({s.query})" for s in steps), 80)


def as_given(known: Interaction) -> Interaction:
    """A draft without what was said of it since."""
    signal = known.signal or Signal()
    bare = Signal(draft=signal.draft, version=signal.version, trace=signal.trace, options=signal.options)
    return replace(known, response="", signal=bare)


def trace_id_of(prediction: Any) -> str:
    """The id of a prediction's trace; text is taken to be one.

    Raises:
        InputError: neither text nor a prediction with a trace.
    """
    return prediction if isinstance(prediction, str) else trace_of(prediction).id


class RecentDrafts:
    """The latest drafts of one program of one user, by trace id: what a program without a store can look up.

    Example:
        >>> drafts = RecentDrafts()
        >>> drafts.add(draft_of(Trace(id="tr-1", user_id="u", query="q", persona_version=0, persona="", response="a")))
        >>> drafts.find("tr-1").query, drafts.find("tr-2"), drafts.same("q", "a").id
        ('q', None, 'tr-1')
    """

    def __init__(self) -> None:
        self._drafts: deque[Interaction] = deque(maxlen=_KEPT)
        self._looked_up: deque[tuple[str, str]] = deque(maxlen=_KEPT)

    def __deepcopy__(self, memo: dict[int, Any]) -> RecentDrafts:
        return self  # copies of a program answer the same user

    def add(self, draft: Interaction, looked_up: str = "") -> None:
        self._drafts.append(draft)
        self._looked_up.append((draft.id, looked_up))

    def outcome(self, query: str) -> str:
        """What was looked up and answered when ``query`` was last asked; empty where it was not."""
        given = next((d for d in reversed(list(self._drafts)) if d.query == query and d.signal), None)
        if given is None or given.signal is None:
            return ""
        words = dict(list(self._looked_up)).get(given.id) or "nothing"
        return f"looked up {words}; answered {one_line(given.signal.draft, 60)}"

    def find(self, trace_id: str) -> Interaction | None:
        return next((draft for draft in list(self._drafts) if draft.id == trace_id), None)

    def same(self, query: str, text: str) -> Interaction | None:
        """The draft with this text that answered ``query``."""
        drafts = [d for d in list(self._drafts) if d.query == query and d.signal and d.signal.draft == text]
        return drafts[-1] if drafts else None

    def judged_in(self, query: str, response: str, metadata: Mapping[str, Any]) -> Signal | None:
        """The signal of a "response" that is our own draft, with the user's verdict on it among the metadata."""
        given = self.same(query, response) if any(metadata.get(name) is not None for name in _SAYS_SOMETHING) else None
        if given is None or given.signal is None:
            return None
        return given.signal.updated(_verdict(metadata))


def _verdict(metadata: Mapping[str, Any]) -> Signal:
    """What metadata say of a draft: a thumb, else stars from 1 to 5, and words."""
    comment, feedback = metadata.get("comment"), metadata.get("feedback")
    if not comment and isinstance(feedback, str) and _thumb(feedback) is None:
        comment = feedback
    said: dict[str, Any] = {"comment": comment if isinstance(comment, str) else ""}
    thumbs = next((t for name in ("thumbs", "thumb", "feedback") if (t := _thumb(metadata.get(name)))), None)
    stars = next((metadata[name] for name in ("rating", "stars") if metadata.get(name) is not None), None)
    if says_disliked(metadata) or thumbs:
        said["thumbs"] = "down" if says_disliked(metadata) else thumbs
    elif isinstance(stars, int | float) and not isinstance(stars, bool) and 1 <= stars <= 5:
        said["rating"] = stars
    return Signal(**said)


def _thumb(value: Any) -> str | None:
    with suppress(InputError):
        return thumbs_of(value)
    return None
