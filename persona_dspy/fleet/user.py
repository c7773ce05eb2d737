"""Compiles one user of a fleet: history in, persona document or error out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import dspy

from persona_dspy.agent import PersonalProgram
from persona_dspy.core import Alignment, Interaction, PersonaDocument, parse_document, scrubbed
from persona_dspy.errors import BudgetExceeded, PersonaError
from persona_dspy.lm import CallLog, Ledger, UserCalls, lm_name, recorded, recording_calls, unshared
from persona_dspy.memory import Profiles, SemanticMemory

__all__ = ["History", "Optimizer", "Program", "UserResult", "UserWork", "made_from", "packed", "unpacked"]

_FORMAT = "fleet/1"
_CONNECTION_POOLS = 16  # few users then wait at one pool's lock; each pool costs 1 MB and 30 ms for TLS


class History(Protocol):
    """A user and the user's interactions, oldest first (``histories.UserHistory`` is one)."""

    @property
    def user_id(self) -> str: ...

    @property
    def interactions(self) -> tuple[Interaction, ...]: ...


class Optimizer(Protocol):
    """What aligns one user's program: ``PersonaAlignment`` or anything with its ``compile``."""

    def compile(self, student: Any, *, trainset: Any) -> PersonalProgram: ...


Program = PersonalProgram | Callable[[History], PersonalProgram]


@dataclass(frozen=True, slots=True, kw_only=True)
class UserResult:
    """One user's outcome: the document that was made, or the error that ended this user's work and no other's.

    ``kind`` is the type of the error alone, without the user's text. ``stopped``: the fleet's budget or an
    interruption ended the work early; the document, if any, is the best so far and ``--resume`` goes on.
    """

    user_id: str
    document: PersonaDocument | None
    error: str = ""
    seconds: float = 0.0
    kind: str = ""
    stopped: bool = False

    @property
    def alignment(self) -> Alignment | None:
        return self.document.alignment if self.document else None

    @property
    def nothing_read(self) -> bool:
        """Whether the LM that reflects was asked, and not one of its answers could be read: no feedback was learned
        from."""
        return self.alignment is not None and self.alignment.nothing_read and not self.stopped


@dataclass(frozen=True, kw_only=True)
class UserWork:
    """All that is the same for every user of a fleet. Made once; ``run`` is called from any thread.

    Args:
        program: to be bound to each user, or what makes a user's program from the history.
        lm: the LM of the context the fleet was started in.
        task: for the document; or a function of the history.
    """

    program: Program
    optimizer: Optimizer
    lm: Any = None
    task: str | Callable[[History], str] | None = None
    base: str = field(default="", init=False)
    _arguments: dict[str, Any] = field(default_factory=dict, init=False)
    _lm_copies: dict[int, Any] = field(default_factory=dict, init=False)
    _lm_number: Iterator[int] = field(default_factory=itertools.count, init=False)

    def arguments(self) -> dict[str, Any]:
        """The arguments this was made with, to make it again in another process."""
        arguments = dict(self._arguments)
        if isinstance(self.program, PersonalProgram):
            # binding to a user replaces the memory, whose locks cannot be pickled
            arguments["program"] = copy.copy(arguments["program"])
            arguments["program"].memory = None
        return arguments

    def __post_init__(self) -> None:
        names = ("program", "optimizer", "lm", "task")
        object.__setattr__(self, "_arguments", {name: getattr(self, name) for name in names})
        object.__setattr__(self, "base", json.dumps(_describe([self.program, self.optimizer, self.lm]), sort_keys=True))
        optimizer = self.optimizer
        if getattr(optimizer, "reflection_lm", None) is not None:
            optimizer = copy.copy(optimizer)
            optimizer.reflection_lm = recorded(optimizer.reflection_lm)  # type: ignore[attr-defined]
        program = _with_recorded_lms(self.program) if isinstance(self.program, PersonalProgram) else self.program
        for name, value in (("optimizer", optimizer), ("program", program), ("lm", recorded(self.lm))):
            object.__setattr__(self, name, value)

    def remembering(self, profiles: Profiles) -> UserWork:
        """The same work, but an LM's summaries of users last between runs: they grow by what is new."""
        summary = getattr(self.optimizer, "summary", None)
        if not isinstance(summary, SemanticMemory):
            return self
        work, optimizer = copy.copy(self), copy.copy(self.optimizer)
        optimizer.summary = summary.keeping(profiles)  # type: ignore[attr-defined]
        object.__setattr__(work, "optimizer", optimizer)
        return work

    def task_of(self, history: History) -> str | None:
        return self.task(history) if callable(self.task) else self.task

    def made_from(self, history: History) -> str:
        """A digest of all that decides this user's persona: the interactions, the task, and how it is made."""
        return made_from(history, f"{self.base}\0{self.task_of(history)}")

    def users_at_once(self, calls: int) -> int:
        """Users under way for so many calls in flight: a quarter more than calls, so that another user's call is ready
        whenever one is answered. As many where calls of the LM cannot be bounded by themselves."""
        return calls + calls // 4 if isinstance(self.lm, dspy.LM) else calls

    def run(
        self,
        history: History,
        *,
        fleet: Ledger,
        log: CallLog | None = None,
        in_flight: AbstractContextManager[Any] | None = None,
    ) -> UserResult:
        """Align one user. ``in_flight``: as of ``UserCalls``.

        Raises:
            StoreError: answers cannot be kept. Whatever else goes wrong is in the result.
        """
        began = time.monotonic()
        calls = UserCalls(history.user_id, log, in_flight)
        try:
            fleet.check(0)
            with self._context(), recording_calls(calls), fleet.recording():
                document, error, kind = self._document(history, self._aligned(history)), "", ""
        except BudgetExceeded as spent:
            document, error, kind = None, str(spent), type(spent).__name__
        except Exception as failure:  # noqa: BLE001 - one user's failure must not stop the fleet
            document, kind = None, type(failure).__name__
            error = scrubbed(str(failure) if isinstance(failure, PersonaError) else f"{kind}: {failure}")
        if calls.failed is not None:
            raise calls.failed
        reason = document.alignment.stopped.removeprefix("budget: ") if document and document.alignment else error
        return UserResult(
            user_id=history.user_id,
            document=document,
            error=error,
            kind=kind,
            seconds=time.monotonic() - began,
            stopped=bool(fleet.ended) and reason.startswith(("budget: ", "stopped: ")),
        )

    def _context(self) -> Any:
        """A DSPy context with the LM over one of several pools of connections, which stay open for the users after."""
        if self.lm is None:
            return dspy.context(trace=None)
        number = next(self._lm_number) % _CONNECTION_POOLS
        lm = self._lm_copies.get(number) or self._lm_copies.setdefault(number, unshared(self.lm))
        return dspy.context(trace=None, lm=lm)

    def _aligned(self, history: History) -> PersonalProgram:
        if isinstance(self.program, PersonalProgram):
            student = self.program.for_user(history.user_id, history.interactions)
        else:
            student = _with_recorded_lms(self.program(history))
        examples = student.examples()
        if not (examples or student.memory.signals):
            student.alignment = Alignment(user_id=history.user_id, stopped="no history: the initial persona stays")
            return student
        return self.optimizer.compile(student, trainset=examples)

    def _document(self, history: History, aligned: PersonalProgram) -> PersonaDocument:
        alignment = aligned.alignment or Alignment(user_id=history.user_id)
        alignment = alignment.model_copy(
            update={"options": {**alignment.options, "made_from": self.made_from(history)}}
        )
        model = lm_name(self.lm) or aligned.lm_name()
        return PersonaDocument.of(aligned.persona.value, alignment=alignment, task=self.task_of(history), model=model)


def packed(result: UserResult) -> dict[str, Any]:
    """A result as plain values, to cross processes."""
    names = ("user_id", "error", "seconds", "kind", "stopped")
    document = result.document.model_dump(mode="json", by_alias=True) if result.document else None
    return {**{name: getattr(result, name) for name in names}, "document": document}


def unpacked(plain: dict[str, Any]) -> UserResult:
    """The result that ``packed`` made plain values of.

    Example:
        >>> unpacked(packed(UserResult(user_id="u1", document=None, error="no answer"))).error
        'no answer'
    """
    values: dict[str, Any] = dict(plain)
    if values["document"] is not None:
        values["document"] = parse_document(values["document"])
    return UserResult(**values)


def made_from(history: History, base: str) -> str:
    """A digest of a user's interactions and of ``base``: 32 hexadecimal digits.

    Example:
        >>> from persona_dspy.data import UserHistory
        >>> one = UserHistory(user_id="u", interactions=(Interaction(user_id="u", query="Alien", response="horror"),))
        >>> made_from(one, "options") == made_from(one, "other options")
        False
    """
    digest = hashlib.blake2b(f"{_FORMAT}\0{base}\0{history.user_id}".encode("utf-8", "surrogatepass"), digest_size=16)
    for i in history.interactions:
        timestamp = i.time.isoformat() if i.time else ""
        metadata = json.dumps(dict(i.metadata), sort_keys=True, default=str) if i.metadata else ""
        parts = ["", i.id, i.query, i.response, timestamp, metadata, *([i.signal.to_json()] if i.signal else [])]
        digest.update("\0".join(parts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _with_recorded_lms(program: PersonalProgram) -> PersonalProgram:
    """The program with the LMs of single predictors recorded too; itself where no predictor has its own."""
    if not any(p.lm for p in program.predictors()):
        return program
    program = program.deepcopy()
    for predictor in program.predictors():
        predictor.lm = recorded(predictor.lm)
    return program


# the user's data, observers and pacing, and what DSPy draws at random or collects
_IGNORED_ATTRIBUTES = frozenset(
    {"memory", "persona", "observers", "history", "callbacks", "concurrency", "stage", "traces", "train"}
)
_CONNECTION_OPTIONS = frozenset({"api_key", "api_base", "base_url", "headers", "extra_headers", "timeout"})


def _describe(value: Any, depth: int = 5) -> Any:
    """What of an object decides results, as JSON: options yes; a user's data, observers, keys and addresses no."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dspy.BaseLM):
        return [lm_name(value), _describe({k: v for k, v in value.kwargs.items() if k not in _CONNECTION_OPTIONS}, 2)]
    if isinstance(value, type) and issubclass(value, dspy.Signature):
        return [value.instructions, [f"{n}: {f.annotation!r} {f.json_schema_extra!r}" for n, f in value.fields.items()]]
    if isinstance(value, Mapping):
        return {str(k): _describe(v, depth - 1) for k, v in value.items()} if depth else len(value)
    if isinstance(value, list | tuple | set | frozenset):
        items = [_describe(v, depth - 1) for v in value] if depth else [len(value)]
        return sorted(map(str, items)) if isinstance(value, set | frozenset) else items
    name = getattr(value, "__qualname__", None) or type(value).__qualname__
    attributes = getattr(value, "__dict__", None)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        attributes = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if not depth or not attributes or isinstance(value, type):
        return name
    attributes = {k: v for k, v in attributes.items() if not k.startswith("_") and k not in _IGNORED_ATTRIBUTES}
    return [name, {k: _describe(v, depth - 1) for k, v in sorted(attributes.items())}]
