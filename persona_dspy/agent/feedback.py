"""What a user says of an answer, checked and kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import dspy

from persona_dspy.agent.drafts import RecentDrafts, as_given, draft_of, trace_id_of
from persona_dspy.agent.prediction import trace_of
from persona_dspy.agent.responses import Responses
from persona_dspy.agent.watcher import Watcher
from persona_dspy.core import FieldsKind, Interaction, Signal
from persona_dspy.errors import InputError
from persona_dspy.memory import EpisodicMemory

__all__ = ["Remark", "TakesFeedback"]


class Remark:
    """What a user said, checked: a signal, and the response where the user gave or chose one.

    Args:
        written: what the user wrote or chose -> the response as text; see ``written_text``.

    Raises:
        InputError: nothing was said, or a value that cannot be.
    """

    def __init__(
        self, written: Callable[[Any], str], *, edited: Any, preferred: Any, rejected: Any, **said: Any
    ) -> None:
        self.edited = "" if edited is None else written(edited)
        chosen = "" if preferred is None else written(preferred)
        others: Sequence[Any] = rejected if isinstance(rejected, list | tuple) else [rejected] if rejected else []
        self.signal = Signal(preferred=chosen, rejected=tuple(written(one) for one in others), **said)
        if not (self.signal or self.edited):
            raise InputError(
                "feedback that says nothing: expected one or more of comment=, edited=, thumbs=, rating=, preferred=, "
                "rejected=, such as program.feedback(prediction, comment='too long')"
            )

    def on(self, draft: str) -> Signal:
        """The signal; a draft that the user passed over for another one is rejected."""
        signal = self.signal
        if signal.preferred and draft and draft not in (signal.preferred, *signal.rejected):
            return signal.updated(Signal(rejected=(draft, *signal.rejected)))
        return signal


class TakesFeedback(Responses):
    """The part of a program with a persona that is told what the user says of its answers."""

    memory: EpisodicMemory
    online: Watcher | None
    _user_id: str
    _drafts: RecentDrafts

    def feedback(  # noqa: PLR0913 - keyword-only, each with a default
        self,
        prediction: Any,
        *,
        comment: str = "",
        edited: Any = None,
        thumbs: Any = None,
        rating: float | None = None,
        scale: tuple[float, float] | None = None,
        preferred: Any = None,
        rejected: Any = (),
        options: Sequence[str] = (),
    ) -> Interaction:
        """What the user said of an answer of this program; learned from by the next alignment.

        Feedback on the same answer adds up: what is said later of it stands beside what was said before, or in its
        place. An edited or chosen text becomes the user's response; a comment, thumbs or a rating never make the draft
        one. Under ``MlflowTracker.tracing()`` it becomes an assessment of the answer's trace too.

        Args:
            prediction: what this program returned, or its ``.trace.id``: also days later and in another process, where
                the program is a service's (``Personas.for_user``); else one of the program's latest 100 answers.
            comment: the user's own words about it.
            edited: what the user made of it; of several response fields those that the user changed, by name.
            thumbs: "up" or "down"; True or False.
            rating: on ``scale``, by default from 1 to 5.
            preferred: of several answers, the one that the user chose: a text or a prediction. Where it is another one,
                this one was rejected.
            rejected: answers that the user passed over.
            options: what could be chosen for this query.

        Returns:
            The interaction as it is kept now, with all that was said of this answer; its id is the trace's.

        Raises:
            InputError: nothing was said, a value that cannot be, an answer to another user, or one that is not known.

        Example:
            >>> from persona_dspy import PersonaAgent
            >>> from persona_dspy.testing import FakeLM
            >>> agent = PersonaAgent("question -> reply", user_id="ana")
            >>> with dspy.context(lm=FakeLM(lambda prompt: {"reply": "We are so sorry!"})):
            ...     prediction = agent(question="Where is my parcel?")
            >>> kept = agent.feedback(prediction, comment="do not apologise", thumbs="down")
            >>> kept.answered, kept.signal.draft, len(agent.memory), len(agent.memory.signals)
            (False, 'We are so sorry!', 0, 1)
            >>> agent.feedback(prediction.trace.id, edited="It arrives on Friday.").response
            'It arrives on Friday.'
        """
        said: dict[str, Any] = {"comment": comment, "thumbs": thumbs, "rating": rating, "scale": scale}
        remark = Remark(
            self.written_text, edited=edited, preferred=preferred, rejected=rejected, options=options, **said
        )
        given = self._draft(prediction)
        draft = given.signal.draft if given.signal else ""
        signal = remark.on(self.kind.beside(draft, remark.signal.preferred))
        response = remark.edited or signal.preferred
        if response:
            response = self.kind.response(response)
            self.kind = self.kind.observing([response])
            if isinstance(self.kind, FieldsKind):  # what the user made of another field before stays
                response = self.kind.merged(self._answered(given.id), response)
        if self.online is not None:
            kept = self.online.commented(self, given.amended(signal, response))
        else:
            kept = (self.memory.get(given.id) or given).amended(signal, response)
            self.memory.put(kept)
        send = (self.online.traces if self.online is not None else None) or dspy.settings.get("persona_traces")
        if send is not None:
            send.assess(replace(kept, response=response, signal=signal))
        return kept

    async def afeedback(self, prediction: Any, **said: Any) -> Interaction:
        """``feedback`` for asyncio: writing to a store does not hold up the loop."""
        return await asyncio.to_thread(self.feedback, prediction, **said)

    def _draft(self, prediction: Any) -> Interaction:
        """The draft of an answer to this user, by the answer or the id of its trace."""
        trace_id = trace_id_of(prediction)
        given = None
        if not isinstance(prediction, str):
            given = draft_of(trace_of(prediction))
        elif self.online is not None:
            given = self.online.draft(trace_id)
        else:
            given = self._drafts.find(trace_id) or self.memory.get(trace_id)
        if given is None or given.signal is None or not given.signal.draft:
            known = "drafts of this user that are still kept" if self.online is not None else "its latest 100 answers"
            raise InputError(
                f"feedback on {trace_id!r}: expected the trace id of one of {known}, or the prediction itself; where "
                "neither is at hand, type: program.observe(query, response), or give the store an "
                "Interaction(query=..., signal=Signal(draft=..., comment=...))"
            )
        if given.user_id != self._user_id:
            raise InputError(f"feedback of user {self._user_id!r} on an answer to another user: expected an own one")
        return as_given(given)

    def _answered(self, trace_id: str) -> str:
        """What the user answered so far in place of that draft."""
        if self.online is not None:
            self.online.refresh(self)
        known = self.memory.get(trace_id)
        return known.response if known is not None else ""
