"""One user of a service in this process: a program that is brought up to the store before each answer."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Protocol

from persona_dspy.agent import PersonalProgram
from persona_dspy.core import Interaction, Persona, parse_document
from persona_dspy.errors import InputError, StoreError, UnknownUser, UserForgotten
from persona_dspy.memory import EpisodicMemory, Retriever, StoredMemory
from persona_dspy.service.reach import StoreReach
from persona_dspy.store import Store, UserState

__all__ = ["OpenUser", "UserReader", "persona_of"]


class UserReader:
    """What of a user is in the store, as a program needs it."""

    def __init__(self, store: Store, *, retriever: Retriever | None = None, pause: float = 1.0) -> None:
        self.store, self.retriever, self.reach = store, retriever, StoreReach(pause)

    def memory(self, user_id: str) -> StoredMemory:
        """The user's episodic memory; empty, and filled as interactions are kept, where the user is new."""
        return self.store.memory(user_id, retriever=self.retriever, may_be_new=True)

    def read(
        self, user_id: str, known: UserState | None, persona: Persona | None = None
    ) -> tuple[UserState, Persona | None, StoredMemory] | None:
        """State, current persona (None = no version yet) and memory; None where ``known`` still holds.

        Args:
            persona: the one of ``known``: given back where only interactions were added.

        Raises:
            StoreError: the store cannot be read.
        """
        for _ in range(5):
            state = self.store.state(user_id)
            if state == known:
                return None
            if known is None or _version(known) != _version(state):
                try:
                    persona = persona_of(self.store, state)
                except (UnknownUser, InputError):  # forgotten since the state was read
                    continue
            return state, persona, self.memory(user_id)
        raise StoreError(f"user {user_id!r}: forgotten and back again and again while the persona was read")


def _version(state: UserState) -> tuple[int, int | None, int | None]:
    return state.life, state.uid, state.version


def persona_of(store: Store, state: UserState) -> Persona | None:
    """The persona that was current in ``state``; None where the user had none yet."""
    if state.version is None:
        return None
    stored = store.version(state.user_id, state.version)
    return parse_document(stored.document, f"version {stored.version} of {stored.user_id!r}").persona()


class Observer(Protocol):
    """Who keeps what users really answered: ``Personas``."""

    traces: Any

    def keep(self, user: OpenUser, interaction: Interaction) -> None: ...

    def keep_draft(self, draft: Interaction, since: UserState | None) -> None: ...

    def draft(self, user: OpenUser, trace_id: str) -> Interaction | None: ...

    def keep_feedback(self, user: OpenUser, said: Interaction) -> Interaction: ...


class OpenUser:
    """The ``Watcher`` of one user's program, and of the copies that DSPy makes of it.

    Attributes:
        program: the user's program.
        state: the store's word on the user at the last answer; None = never read.
        first: the persona where the store has no version.
    """

    def __init__(self, program: PersonalProgram, reader: UserReader, observer: Observer) -> None:
        self.program, self.user_id = program, program.user_id
        self.first: Persona = program.persona.value
        self.state: UserState | None = None
        self._persona, self._memory = self.first, program.memory
        self._kind = program.kind
        self._forgotten_at = 0.0  # seconds since 1970 when that was noticed here; 0 = never
        self._reader, self._observer = reader, observer
        self._lock = threading.Lock()
        program.online = self

    def __deepcopy__(self, memo: dict[int, Any]) -> OpenUser:
        return self  # copies of a program answer for the same user

    @property
    def memory(self) -> EpisodicMemory:
        return self._memory

    def refresh(self, program: PersonalProgram) -> None:
        """Brings ``program`` to the store's current version; where the store cannot be read, to the last one known."""
        with self._lock:
            try:
                with self._reader.reach.asking():
                    self._update()
            except StoreError:
                pass  # said by StoreReach, and by status()
            persona, memory, kind = self._persona, self._memory, self._kind
        if program.persona.value is not persona:
            program.persona.value = persona
        program.memory, program.kind = memory, kind

    async def arefresh(self, program: PersonalProgram) -> None:
        await asyncio.to_thread(self.refresh, program)

    def observed(self, program: PersonalProgram, interaction: Interaction) -> None:
        """Keeps an interaction of the user; see ``Personas.observe``."""
        self._observer.keep(self, interaction)
        program.memory = self._memory

    @property
    def traces(self) -> Any:
        """Where traces of answers and what users say of them are sent; None = nowhere."""
        return self._observer.traces

    def drafted(self, draft: Interaction, since: UserState | None) -> None:
        self._observer.keep_draft(draft, since)

    def draft(self, trace_id: str) -> Interaction | None:
        return self._observer.draft(self, trace_id)

    def commented(self, program: PersonalProgram, remark: Interaction) -> Interaction:
        """Keeps what the user says of a draft; see ``Personas.feedback``.

        Raises:
            UserForgotten: the draft was given before the user was forgotten.
        """
        self.refresh(program)
        before = remark.time is not None and remark.time.timestamp() < self._forgotten_at
        if before and self.draft(remark.id) is None:
            raise UserForgotten(f"user {self.user_id!r} was forgotten after this answer: nothing was kept of it")
        kept = self._observer.keep_feedback(self, remark)
        program.memory = self._memory
        return kept

    def remember(self, interaction: Interaction) -> None:
        """In memory alone, until the store takes it."""
        before = self._memory.get(interaction.id)
        if before is None:
            self._memory.append(interaction)
        elif interaction.signal is not None:
            self._memory.put(before.amended(interaction.signal, interaction.response))

    def _update(self) -> None:
        has_version = self.state is not None and self.state.version is not None
        changed = self._reader.read(self.user_id, self.state, self._persona if has_version else None)
        if changed is None:
            return
        state, persona, memory = changed
        before, self.state = self.state, state
        if before is not None and before.life != state.life:
            self._forgotten_at = time.time()
            if self.traces is not None:
                self.traces.drop(self.user_id)
            self.first = Persona(user_id=self.user_id)  # what was given or learned is gone with the user's past
            vars(self.program).pop("alignment", None)
        self._persona, self._memory = persona or self.first, memory
        if before is None or _version(before) != _version(state):
            self._kind = self._kind.anew(i.response for i in memory.interactions)
