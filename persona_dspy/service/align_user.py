"""One alignment of one user of a service: from the current version to the next, or to the reason why there is none."""

from __future__ import annotations

import copy
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import dspy

from persona_dspy.agent import PersonalProgram, Recorder, answering
from persona_dspy.core import Persona, PersonaDocument, scrubbed
from persona_dspy.errors import InputError, PersonaError, StoreError, UnknownUser, UserForgotten, VersionConflict
from persona_dspy.lm import call_listeners
from persona_dspy.memory import SemanticMemory
from persona_dspy.service.alignments import Outcome
from persona_dspy.service.open_user import UserReader
from persona_dspy.service.tracked import TrackedAlignments
from persona_dspy.store import Lease, Store, UserState

__all__ = ["Aligner", "UserAlignment"]


class Aligner(Protocol):
    """What aligns one user's program: ``PersonaAlignment``, or anything with its ``compile``."""

    def compile(self, student: Any, *, trainset: Any) -> PersonalProgram: ...


class UserAlignment:
    """Aligns the user of a lease, writes the new version on top of the one it was made from, gives the lease back.

    Args:
        program: is bound to the user; it is not changed.
    """

    def __init__(
        self, reader: UserReader, program: PersonalProgram, optimizer: Aligner, tracked: TrackedAlignments
    ) -> None:
        self._reader, self._program, self._optimizer, self._tracked = reader, program, optimizer, tracked

    def __call__(self, lease: Lease) -> Outcome:
        """How the alignment ended; whatever an optimizer or an LM raises is in it.

        Raises:
            StoreError: the store cannot be used; what is due stays due.
        """
        user_id, store = lease.user_id, self._reader.store
        try:
            return self._aligned(lease)
        except UserForgotten:
            return Outcome(user_id=user_id, version=None, changed=False, note="the user was forgotten meanwhile")
        except VersionConflict as conflict:
            store.release(lease, aligned=True)
            return Outcome(user_id=user_id, version=store.state(user_id).version, changed=False, note=str(conflict))
        except StoreError:
            with suppress(StoreError):
                store.release(lease, aligned=False)
            raise
        except BaseException as failure:  # an optimizer, a program and an LM may raise anything, sys.exit included
            if not isinstance(failure, Exception) and threading.current_thread() is threading.main_thread():
                raise  # somebody stops the process; elsewhere whoever waits for this thread would wait for ever
            # Of what was given, the same again: it waits for more interactions. Anything else is tried again.
            there = store.release(lease, aligned=isinstance(failure, InputError | UnknownUser))
            if not there and store.due(user_id) is None:
                return Outcome(user_id=user_id, version=None, changed=False, note="the user was forgotten meanwhile")
            error = scrubbed(
                str(failure) if isinstance(failure, PersonaError) else f"{type(failure).__name__}: {failure}"
            )
            self._tracked.add(user_id, None, error)
            return Outcome(user_id=user_id, version=store.state(user_id).version, changed=False, error=error)

    def _aligned(self, lease: Lease) -> Outcome:
        user_id, store = lease.user_id, self._reader.store
        read = self._reader.read(user_id, None)
        assert read is not None  # nothing was known of the user
        state, current, memory = read
        before = current or Persona(user_id=user_id)
        student = self._program.for_user(user_id, memory, before)
        with _outside_of_answers():
            aligned = self._optimizer_for(state).compile(student, trainset=student.examples())
        new, alignment = aligned.persona.value, aligned.alignment
        unread = alignment is not None and alignment.nothing_read
        model = student.lm_name()

        def document(version: int, parent: int | None) -> PersonaDocument:
            numbered = new.model_copy(update={"version": version, "parent": parent})
            return PersonaDocument.of(numbered, alignment=alignment, model=model)

        if new.render() == before.render():
            store.release(lease, aligned=True)
            if store.state(user_id).life != state.life:
                raise UserForgotten(f"user {user_id!r}")
            self._tracked.add(user_id, document(before.version, before.parent))
            return Outcome(user_id=user_id, version=state.version, changed=False, unread=unread)
        stored = store.append_persona(
            state,
            lambda version, parent: document(version, parent).to_json(),
            alignment.model_dump(mode="json") if alignment is not None else None,
            first=PersonaDocument.of(before, model=model).to_json(),
            lease=lease,
        )
        self._tracked.add(user_id, document(stored.version, stored.parent))
        return Outcome(user_id=user_id, version=stored.version, changed=True, unread=unread)

    def _optimizer_for(self, state: UserState) -> Aligner:
        """The optimizer; where it makes a summary that the store keeps, not that of a user who was forgotten."""
        summary = getattr(self._optimizer, "summary", None)
        if not isinstance(summary, SemanticMemory):
            return self._optimizer
        optimizer: Any = copy.copy(self._optimizer)
        optimizer.summary = summary.keeping(_ProfilesSince(self._reader.store, state))
        return optimizer


class _ProfilesSince:
    """The store's profiles, for work that rests on a user's state."""

    def __init__(self, store: Store, state: UserState) -> None:
        self._store, self._state = store, state

    def profile(self, user_id: str) -> dict[str, Any] | None:
        return self._store.profile(user_id)

    def put_profile(self, user_id: str, profile: Mapping[str, Any]) -> None:
        self._store.put_profile(user_id, profile, since=self._state)


@contextmanager
def _outside_of_answers() -> Generator[None]:
    """Nothing of the answer during which an interaction was observed reaches the alignment."""
    callbacks = [c for c in dspy.settings.get("callbacks") or [] if not isinstance(c, Recorder)]
    listeners = tuple(listener for listener in call_listeners() if not isinstance(listener, Recorder))
    outer = dspy.context(
        callbacks=callbacks,
        persona_listeners=listeners,
        caller_modules=None,
        send_stream=None,
        stream_listeners=[],
        disable_history=True,
    )
    with answering(afresh=True), outer:
        yield
