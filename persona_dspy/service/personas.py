"""Personas: the program of each user of a service, up to date in every process."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dspy

from persona_dspy.agent import PersonalProgram, personalize
from persona_dspy.core import Erasure, Forgets, Interaction, Persona, Signal
from persona_dspy.errors import InputError, RunError, StoreError, UnknownUser, UserForgotten
from persona_dspy.fleet import forget_user
from persona_dspy.memory import Retriever
from persona_dspy.service.align_user import Aligner, UserAlignment
from persona_dspy.service.alignments import Alignments, Outcome, Pace
from persona_dspy.service.drafts import DraftKeeper
from persona_dspy.service.observed import keep_observed
from persona_dspy.service.open_user import OpenUser, UserReader
from persona_dspy.service.queue import ObservationQueue, QueuedObservation
from persona_dspy.service.tracked import TrackedAlignments
from persona_dspy.store import Observed, Store, StoredPersona, UserState, checked_key
from persona_dspy.tracking import TraceSender, TracesRead, Tracker, learn_from_traces

__all__ = ["Personas", "ServiceOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions:
    """How a service works in one process.

    Args:
        workers: users aligned at once.
        open_users: how many users' programs are kept ready.
        queue: a folder where observed interactions wait while the store cannot be written; None = ``observe`` fails
            then, and nothing is kept.
        retriever: how recall measures nearness; ``BM25()`` by default.
        drafts: how many of a user's latest answers the store keeps, so that feedback finds them by the id of their
            trace; 0 = none.
        traces: of ``MlflowTracker.tracing()``: where each answer's trace goes, and what users say of it.
        pace: seconds between looks at the store, of a lease, before a retry.
        on_done: called with each ``Outcome``, in the thread that aligned; must not raise.
    """

    workers: int = 1
    open_users: int = 1024
    queue: str | os.PathLike[str] | None = None
    retriever: Retriever | None = None
    drafts: int = 200
    traces: TraceSender | None = None
    pace: Pace = field(default_factory=Pace)
    on_done: Callable[[Outcome], None] | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or self.open_users < 1:
            raise InputError(f"workers={self.workers!r}, open_users={self.open_users!r}: expected 1 or more of each")
        if self.drafts < 0:
            raise InputError(f"drafts={self.drafts!r}: expected how many drafts are kept of a user, 0 or more")


class Personas:
    """Gives a service the program of each of its users, under the persona that is current in the store, and aligns
    users in the background. Make one in each process; any number of processes and machines may share a store.

    Each answer begins with one read of the store by keys: a version that was aligned, rolled back to, edited or
    forgotten anywhere rules the next answer everywhere. Observed interactions are counted in the store; after
    ``every`` new ones of a user, one process aligns that user, while all go on answering. A new version is written
    only on top of the version that it was made from, and never of a user who was forgotten meanwhile.

    While the store cannot be reached, answers go on under the personas last known here (none, for users not seen
    before); ``status()["store"]`` says so. While the LM fails, alignments wait and are tried again.

    Args:
        store: keeps interactions and versions. It is not closed here.
        program: a ``PersonaAgent``, or any ``dspy.Module`` (made personal by ``personalize``); its own user and
            persona do not matter.
        optimizer: such as ``PersonaAlignment()``. It runs in the context of the ``observe`` that made a user due,
            else in that in which this object was made: so with their LM.
        tracker: alignments become its runs; where it fails, the service goes on and logs it.
        every: interactions from one alignment of a user to the next.
        options: the rest.

    Raises:
        InputError: ``every`` below 1, or a program that no persona reaches.

    Example:
        >>> import tempfile
        >>> from optimizers import PersonaAlignment
        >>> from persona_dspy import PersonaAgent
        >>> from persona_dspy.store import Store
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = Store.open(f"{folder.name}/personas.db")
        >>> with Personas(store, PersonaAgent("film -> tag"), PersonaAlignment(), every=3) as personas:
        ...     _ = personas.observe("ana", "Alien (1979)", "horror")
        ...     agent = personas.for_user("ana")
        ...     len(agent.memory), agent.persona.value.version
        (1, 0)
        >>> store.close()
        >>> folder.cleanup()
    """

    def __init__(
        self,
        store: Store,
        program: dspy.Module,
        optimizer: Aligner,
        *,
        tracker: Tracker | None = None,
        every: int = 3,
        options: ServiceOptions | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"Personas(every={every!r}): expected 1 or more interactions")
        self.store, self.optimizer, self.every = store, optimizer, every
        self.options = options or ServiceOptions()
        self.program = _personal(program)
        self._tracker, self._tracked = tracker, TrackedAlignments(tracker, every)
        self._reader = UserReader(store, retriever=self.options.retriever, pause=self.options.pace.poll)
        self._queue: ObservationQueue | None = None
        if self.options.queue is not None:
            self._queue = ObservationQueue(self.options.queue, store=store.id)
        self.traces = self.options.traces
        self._drafts = DraftKeeper(store, self._reader.reach, most=self.options.drafts, pause=self.options.pace.poll)
        self._open: OrderedDict[str, OpenUser] = OrderedDict()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._alignments = Alignments(
            store,
            UserAlignment(self._reader, self.program, optimizer, self._tracked),
            every=every,
            workers=self.options.workers,
            pace=self.options.pace,
            chores=self._deliver_queued,
            on_done=self.options.on_done,
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Personas:
        return self  # a service: copies of a program share it

    def __enter__(self) -> Personas:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Personas:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def start(self) -> None:
        """Look for due users and deliver queued interactions from now on, those that a killed process left included;
        else that begins with the first call. Typed in each worker, after the fork; again it changes nothing.

        Raises:
            InputError: this object was made in another process.
        """
        self._check_process()

    def for_user(self, user_id: str) -> Any:
        """The user's program, at its current version; a new user's has no persona yet. It may be kept: each of its
        answers is given under the version that is current then.

        Raises:
            InputError: an id that no store could keep.
        """
        user = self._user(user_id)
        user.refresh(user.program)
        return user.program

    def observe(
        self,
        user_id: str,
        query: str,
        response: str = "",
        *,
        time: datetime | str | None = None,
        id: str = "",
        metadata: Mapping[str, Any] | None = None,
        signal: Signal | Mapping[str, Any] | None = None,
    ) -> Interaction:
        """What the user really answered, or made of our draft: in the store, or in the queue, when this returns.

        Arguments are those of ``PersonaAgent.observe``.

        Raises:
            InputError: blank, or its id is taken by other content.
            StoreError: neither the store nor a queue could keep it.
        """
        program = self._user(user_id).program
        return program.observe(query, response, time=time, id=id, metadata=metadata, signal=signal)

    def feedback(self, user_id: str, prediction: Any, **said: Any) -> Interaction:
        """What the user said of an answer: a comment, thumbs, a rating, an edit, a choice; see
        ``PersonaAgent.feedback``, whose arguments these are. In the store, or in the queue, when this returns.

        Args:
            prediction: the answer, or the id of its trace: any process may be told, also days later, as long as the
                answer is among the user's latest ``ServiceOptions.drafts``.

        Raises:
            InputError: nothing was said, a value that cannot be, or no such answer to this user.
            StoreError: neither the store nor a queue could keep it.
        """
        return self._user(user_id).program.feedback(prediction, **said)

    def learn_from_traces(self, uri: str, **options: Any) -> TracesRead:
        """Bring what people said on MLflow's traces into the store; users who are due by that are aligned in the
        background. Arguments are those of ``persona_dspy.tracking.learn_from_traces``; where the program has several
        responses, ``fields`` are its own."""
        self._check_process()
        if len(self.program.response_fields) > 1:
            options = {"fields": (self.program.query_field, *self.program.response_fields), **options}
        return learn_from_traces(self.store, uri, **options)

    def align_now(self, user_id: str, *, timeout: float = 600.0) -> Outcome:
        """Align a user in this thread, however little is new.

        Args:
            timeout: seconds to wait for another thread or process that is aligning the same user.

        Raises:
            UnknownUser: nothing is kept of the user.
            RunError: another was still aligning the user after ``timeout`` seconds.
            StoreError: the store cannot be used.
        """
        self._user(user_id)
        if self.store.state(user_id).uid is None:
            self.store.versions(user_id)  # raises UnknownUser
        outcome = self._alignments.align_now(user_id, timeout)
        if outcome is None:
            raise RunError(f"user {user_id!r} was still being aligned after {timeout:g} s: expected it to end; wait")
        return outcome

    def forget(self, user_id: str) -> list[Erasure]:
        """Remove everything kept of a user, from store, queue and tracker; what was removed, place by place. Every
        process obeys at its next answer; alignments that are under way anywhere are thrown away.

        Raises:
            InputError: an id that no store could keep.
            StoreError: the store cannot be written: the user is not forgotten.
        """
        checked_key(user_id, "user_id")
        with self._lock:
            user = self._open.pop(user_id, None)
        caches: dict[str, Forgets] = {"queue": self._queue} if self._queue is not None else {}
        tracker: Any = self._tracker if hasattr(self._tracker, "forget") else None
        if self.traces is not None:
            caches["traces on their way"] = self.traces
            of_traces: Any = self.traces.tracker
            if tracker is None:
                tracker = of_traces
            elif of_traces is not None and of_traces.uri != tracker.uri:
                caches["MLflow of the traces"] = of_traces
        done = forget_user(user_id, store=self.store, tracker=tracker, caches=caches)
        self._drafts.forget(user_id)
        self._alignments.forget(user_id)
        if user is not None:
            user.refresh(user.program)
        return done

    def rollback(self, user_id: str, version: int | None = None) -> StoredPersona:
        """Make an earlier version current, by default the parent; it rules the next answer and the next alignment.

        Raises:
            UnknownUser: nothing is kept of the user.
            InputError: there is no such version.
        """
        return self.store.rollback(user_id, version)

    def history(self, user_id: str) -> list[StoredPersona]:
        """Every version of the user's persona, lowest number first; none for a new user."""
        checked_key(user_id, "user_id")
        try:
            return self.store.versions(user_id)
        except UnknownUser:
            return []

    def export(self, user_id: str) -> dict[str, Any]:
        """Everything the store holds of a user, JSON-safe: interactions, oldest first, and every persona version.

        Raises:
            UnknownUser: nothing is kept of the user.
        """
        interactions = [
            {
                "id": one.id,
                "query": one.query,
                "response": one.response,
                "time": one.time.isoformat() if one.time else None,
                "metadata": dict(one.metadata),
                **({"signal": one.signal.to_dict()} if one.signal else {}),
            }
            for one in self.store.episodes(user_id)
        ]
        versions = [
            {"current": one.current, "created": one.created, "persona": one.document} for one in self.history(user_id)
        ]
        return {"user_id": user_id, "interactions": interactions, "versions": versions}

    def last(self, user_id: str) -> Outcome | None:
        """How the user's latest alignment in this process ended; None before the first."""
        return self._alignments.last(user_id)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until this process aligns nobody; False where ``timeout`` seconds were not enough."""
        return self._alignments.wait(timeout)

    def status(self) -> dict[str, Any]:
        """How this process is: ``store`` and ``tracker`` say what is wrong with them (empty: nothing), ``queued`` how
        many interactions wait for the store, ``lost_drafts`` how many answers are not kept for feedback, ``aligning``
        and ``waiting`` how many users, ``open_users`` how many programs are ready."""
        counts = self._alignments.counts()
        return {
            "store": self._reader.reach.trouble,
            "tracker": self._tracked.trouble,
            "queued": len(self._queue) if self._queue is not None else 0,
            "lost_drafts": self._drafts.lost,
            "aligning": counts["running"],
            "waiting": counts["waiting"],
            "open_users": len(self._open),
        }

    def close(self, timeout: float | None = None) -> bool:
        """Align nobody any more and wait for the alignments under way; answers go on. False where ``timeout`` seconds
        were not enough: those alignments are left to another process, or to the next start."""
        ended = self._alignments.close(timeout)
        self._drafts.close()
        self._tracked.close()
        return ended

    async def afor_user(self, user_id: str) -> Any:
        return await asyncio.to_thread(self.for_user, user_id)

    async def aobserve(self, user_id: str, query: str, response: str, **options: Any) -> Interaction:
        return await asyncio.to_thread(self.observe, user_id, query, response, **options)

    async def afeedback(self, user_id: str, prediction: Any, **said: Any) -> Interaction:
        return await asyncio.to_thread(self.feedback, user_id, prediction, **said)

    async def aalign_now(self, user_id: str, *, timeout: float = 600.0) -> Outcome:
        return await asyncio.to_thread(self.align_now, user_id, timeout=timeout)

    async def aforget(self, user_id: str) -> list[Erasure]:
        return await asyncio.to_thread(self.forget, user_id)

    async def arollback(self, user_id: str, version: int | None = None) -> StoredPersona:
        return await asyncio.to_thread(self.rollback, user_id, version)

    async def ahistory(self, user_id: str) -> list[StoredPersona]:
        return await asyncio.to_thread(self.history, user_id)

    async def aclose(self, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.close, timeout)

    def keep(self, user: OpenUser, interaction: Interaction) -> None:
        """For programs of this service: what ``observe`` of one of them is told."""
        self._keep(user, interaction, lambda: keep_observed(self.store, interaction))

    def keep_feedback(self, user: OpenUser, said: Interaction) -> Interaction:
        """For programs of this service: what ``feedback`` of one of them is told; all that was said of the draft."""
        self._keep(user, said, lambda: self.store.feedback(user.user_id, said))
        return user.memory.get(said.id) or said

    def keep_draft(self, draft: Interaction, since: UserState | None) -> None:
        """For programs of this service: an answer that was just given."""
        self._drafts.add(draft, since)

    def draft(self, user: OpenUser, trace_id: str) -> Interaction | None:
        """For programs of this service: the answer of that trace."""
        self._check_process()
        return self._drafts.find(user.user_id, trace_id)

    def _keep(self, user: OpenUser, interaction: Interaction, write: Callable[[], Observed]) -> None:
        self._check_process()
        with self._alignments.observing(user.user_id):
            try:
                with self._reader.reach.asking():
                    due = write().due
            except StoreError:
                if self._queue is None:
                    raise
                self._queue.add(interaction, life=user.state.life if user.state is not None else None)
                user.remember(interaction)
                return
            if due >= self.every:
                self._alignments.request(user.user_id, context=contextvars.copy_context())
        user.refresh(user.program)

    def _user(self, user_id: str) -> OpenUser:
        """The user, ready to answer; the least recently used of too many is closed."""
        self._check_process()
        with self._lock:
            user = self._open.get(user_id)
            if user is None:
                checked_key(user_id, "user_id")
                program = self.program.for_user(user_id, (), Persona(user_id=user_id))
                user = self._open[user_id] = OpenUser(program, self._reader, self)
            self._open.move_to_end(user_id)
            while len(self._open) > self.options.open_users:
                self._open.popitem(last=False)
            return user

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise InputError(
                "Personas was made in another process, whose connections and threads are not this one's: expected one "
                "made after the fork, in each worker (in a lifespan or post_fork hook)"
            )
        self._alignments.start()

    def _deliver_queued(self) -> None:
        """Brings what waits on disk into the store; looks whether a store that failed answers again."""
        if self._reader.reach.trouble:
            try:
                with self._reader.reach.asking():
                    self.store.state("nobody")
            except StoreError:
                return
        if self._queue is not None:
            self._queue.drain(self._deliver)

    def _deliver(self, waiting: QueuedObservation) -> None:
        """Keeps an interaction that was queued, but not one from before its user was forgotten."""
        user_id = waiting.interaction.user_id
        with self._reader.reach.asking():
            state = self.store.state(user_id)
            if state.life != (waiting.life or 0):
                raise UserForgotten(f"user {user_id!r} was forgotten after the interaction was queued")
            due = keep_observed(self.store, waiting.interaction, since=state).due
        if due >= self.every:
            self._alignments.request(user_id)


def _personal(program: dspy.Module) -> PersonalProgram:
    return program if isinstance(program, PersonalProgram) else personalize(program)
