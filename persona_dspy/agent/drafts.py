"""Drafts: answers that were given and that the user may still say something of."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from persona_dspy.agent.offered import OPTIONS
from persona_dspy.agent.prediction import trace_of
from persona_dspy.agent.trace import Trace
from persona_dspy.core import Interaction, Signal

__all__ = ["RecentDrafts", "as_given", "draft_of", "trace_id_of"]

_KEPT = 100
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

    def __deepcopy__(self, memo: dict[int, Any]) -> RecentDrafts:
        return self  # copies of a program answer the same user

    def add(self, draft: Interaction) -> None:
        self._drafts.append(draft)

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
        comment = metadata.get("comment")
        return given.signal.updated(Signal(comment=comment if isinstance(comment, str) else ""))
