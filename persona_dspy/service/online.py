"""Learning as one goes: responses are remembered, personas aligned in the background. Owns: ``OnlineAlignment``.

Not here: alignment itself (optimizers), storage (store.py). Paper section 3: alignment runs off the answer path.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import dspy

from persona_dspy.agent import PersonalProgram, Recorder, answering
from persona_dspy.core import Interaction, Persona, PersonaDocument
from persona_dspy.errors import InputError, UnknownUser
from persona_dspy.lm import call_listeners

__all__ = ["OnlineAlignment", "Outcome"]

_log = logging.getLogger(__name__)
Program = TypeVar("Program", bound=PersonalProgram)


class Aligner(Protocol):
    """What aligns one user's program: ``PersonaAlignment``, or anything with its ``compile``."""

    def compile(self, student: Any, *, trainset: Any) -> PersonalProgram: ...


class Keeper(Protocol):
    """What keeps episodes and versions: ``Store``."""

    def add_episodes(self, user_id: str, interactions: Iterable[Interaction]) -> int: ...

    def put_persona(
        self, user_id: str, persona: str | Mapping[str, Any], alignment: Mapping[str, Any] | None = None
    ) -> Any: ...

    def versions(self, user_id: str) -> list[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one alignment in the background ended. ``version``: in force since; ``error``: why it failed, or empty."""

    user_id: str
    version: int
    changed: bool
    error: str = ""


@dataclass(slots=True)
class _User:
    new: int = 0
    working: bool = False
    forgotten: bool = False
    last: Outcome | None = None
    writing: threading.Lock = field(default_factory=threading.Lock)


class OnlineAlignment:
    """One for a whole service: watches programs of many users and aligns each after ``every`` new responses.

    Answers go on under the old version while a user's persona is being aligned; the new version is written to the
    store first and then put in force at once, for the next answer. A version that somebody else set meanwhile (a
    rollback) stays. One alignment a user at a time; responses that come meanwhile count for the next.

    Args:
        optimizer: such as ``PersonaAlignment()``; it runs in the context of the ``observe`` call that set it off, so
            with that call's LM and ledger.
        every: new responses until the next alignment.
        store: keeps responses and versions; None = memory alone.
        workers: users aligned at once.
        on_done: called with each ``Outcome``, in a worker's thread; must not raise.

    Example:
        >>> from optimizers import PersonaAlignment
        >>> from persona_dspy import PersonaAgent
        >>> with OnlineAlignment(PersonaAlignment(), every=3) as online:
        ...     agent = online.watch(PersonaAgent("film -> tag", user_id="u1"))
        ...     _ = agent.observe("Alien (1979)", "horror")
        ...     len(agent.memory)
        1
    """

    def __init__(
        self,
        optimizer: Aligner,
        *,
        every: int = 3,
        store: Keeper | None = None,
        workers: int = 1,
        on_done: Callable[[Outcome], None] | None = None,
    ) -> None:
        if every < 1 or workers < 1:
            raise InputError(f"OnlineAlignment(every={every!r}, workers={workers!r}): expected 1 or more")
        self.optimizer, self.every, self.store, self.on_done = optimizer, every, store, on_done
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="persona-alignment")
        self._users: dict[str, _User] = {}
        self._state = threading.Condition()
        self._closed = False

    def __deepcopy__(self, memo: dict[int, Any]) -> OnlineAlignment:
        return self  # a service: copies of a program share it

    def __enter__(self) -> OnlineAlignment:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def watch(self, program: Program) -> Program:
        """``program`` itself, whose ``observe`` from now on comes here."""
        program.online = self
        return program

    def observed(self, program: PersonalProgram, interaction: Interaction) -> None:
        """Remember a response, in the store first, and schedule alignment where enough are new. Does not wait for it.

        Raises:
            StoreError: it could not be kept; then it is not remembered either.
        """
        if self.store is not None:
            self.store.add_episodes(interaction.user_id, [interaction])
        if program.memory.position(interaction.id) is None:  # a memory of the store's knows it by now
            program.memory.append(interaction)
        with self._state:
            user = self._users.setdefault(interaction.user_id, _User())
            user.new += 1
            self._schedule(program, user)

    def last(self, user_id: str) -> Outcome | None:
        """How the user's latest alignment ended; None before the first."""
        with self._state:
            user = self._users.get(user_id)
            return user.last if user else None

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no alignment is running or scheduled; False where ``timeout`` seconds were not enough."""
        until = None if timeout is None else time.monotonic() + timeout
        with self._state:
            while any(user.working for user in self._users.values()):
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._state.wait(left)
        return True

    def forget(self, user_id: str) -> int:
        """Drop what is known of a user here; an alignment under way is thrown away when it ends. Call it before the
        store's ``forget``, so that nothing is written afterwards. Returns 1 where something was known, else 0."""
        with self._state:
            user = self._users.pop(user_id, None)
        if user is None:
            return 0
        with user.writing:  # what is being written is finished first
            user.forgotten = True
        return 1

    def close(self) -> None:
        """Finish what is running, drop what is scheduled, take no more."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _schedule(self, program: PersonalProgram, user: _User) -> None:
        if user.working or user.new < self.every or self._closed or user.forgotten:
            return
        user.new, user.working = 0, True
        job = self._pool.submit(contextvars.copy_context().run, self._work, program, user)
        job.add_done_callback(lambda done: self._done(program, user, done))

    def _work(self, program: PersonalProgram, user: _User) -> Outcome:
        callbacks = [c for c in dspy.settings.get("callbacks") or [] if not isinstance(c, Recorder)]
        listeners = tuple(listener for listener in call_listeners() if not isinstance(listener, Recorder))
        outer = dspy.context(
            callbacks=callbacks,
            persona_listeners=listeners,
            caller_modules=None,
            send_stream=None,
            stream_listeners=[],
        )
        with answering(afresh=True), outer:  # nothing of the answer during which the response was observed
            before = program.persona.value
            aligned = self.optimizer.compile(program, trainset=program.examples())
            with user.writing:
                return self._put_in_force(program, user, before, aligned)

    def _put_in_force(
        self, program: PersonalProgram, user: _User, before: Persona, aligned: PersonalProgram
    ) -> Outcome:
        new, user_id = aligned.persona.value, program.user_id
        now = program.persona.value
        same = new.render() == before.render()
        # Forgetting a user empties the memory: what was learned from it must not come back.
        if now is not before or same or user.forgotten or not len(program.memory):
            return Outcome(user_id=user_id, version=now.version, changed=False)
        new = self._numbered(program, before, new)
        if self.store is not None:
            document = PersonaDocument.of(new, alignment=aligned.alignment, model=program.lm_name())
            record = aligned.alignment.model_dump(mode="json") if aligned.alignment is not None else None
            self.store.put_persona(user_id, document.to_json(), record)
        program.persona.value, program.alignment = new, aligned.alignment
        return Outcome(user_id=user_id, version=new.version, changed=True)

    def _numbered(self, program: PersonalProgram, before: Persona, new: Persona) -> Persona:
        """``new`` as the version after ``before``, under a number that is free; facts alone may have changed it. The
        store gets ``before`` too where it has no such version: the history of a user is a chain."""
        taken = {before.version}
        if self.store is not None:
            try:
                known = {kept.version for kept in self.store.versions(before.user_id)}
            except UnknownUser:
                known = set[int]()
            if before.version not in known:
                document = PersonaDocument.of(before, model=program.lm_name())
                self.store.put_persona(before.user_id, document.to_json())
            taken |= known
        version = new.version if new.version not in taken else max(taken) + 1
        return new.model_copy(update={"version": version, "parent": before.version})

    def _done(self, program: PersonalProgram, user: _User, done: Future[Outcome]) -> None:
        if done.cancelled():
            outcome = None
        elif (failure := done.exception()) is not None:
            version, told = program.persona.value.version, f"{type(failure).__name__}: {failure}"
            outcome = Outcome(user_id=program.user_id, version=version, changed=False, error=told)
            _log.warning("alignment of user %r failed, version %s stays: %s", program.user_id, version, told)
        else:
            outcome = done.result()
        with self._state:
            user.working, user.last = False, outcome or user.last
            self._schedule(program, user)
            self._state.notify_all()
        if outcome is not None and self.on_done is not None:
            self.on_done(outcome)
