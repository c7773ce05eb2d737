"""Compiling personas for many users: users stream in, results are saved and stream out."""

from __future__ import annotations

import contextvars
import copy
import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import dspy

from persona_dspy.agent import PersonalProgram
from persona_dspy.core import AnswerSurvey, PersonaDocument, parse_document
from persona_dspy.errors import InputError, ModelError, StoreError, UnknownUser, UserForgotten, VersionConflict
from persona_dspy.fleet.folder import FleetFolder, State
from persona_dspy.fleet.stream import UserStream, longest_first
from persona_dspy.fleet.user import History, Optimizer, Program, UserResult, UserWork
from persona_dspy.lm import Budget, CallLog, Ledger, check_price, current_ledger
from persona_dspy.tracking import NullTracker, Tracker

if TYPE_CHECKING:
    from persona_dspy.store import Store, UserState

__all__ = ["History", "Optimizer", "UserResult", "compile_users"]

Engine = Literal["local", "ray"]
_SURVEYED = 256  # users of a stream that is read once who decide what kind its answers are
# Failures that are the LM's, not the user's: the next user would meet them too.
_LM_IS_DOWN = frozenset(
    f"LM{kind}Error"
    for kind in ("Transport", "Timeout", "Server", "RateLimit", "Auth", "Billing", "NotConfigured", "UnsupportedModel")
)


def compile_users(  # noqa: PLR0913 - keyword-only, each with a default
    program: Program,
    histories: Iterable[History],
    optimizer: Optimizer,
    *,
    store: Store | None = None,
    folder: FleetFolder | None = None,
    resume: bool = False,
    engine: Engine = "local",
    workers: int = 1,
    processes: int | None = None,
    budget: Budget | None = None,
    ledger: Ledger | None = None,
    tracker: Tracker | None = None,
    task: str | Callable[[History], str] | None = None,
    on_skip: Callable[[], None] | None = None,
) -> Generator[UserResult]:
    """Align users, ``workers`` at once, and give each result as soon as it is there, in no fixed order.

    Users stream in: at most ``2 * workers`` are held, and of those the longest histories are begun first. One user's
    failure becomes that user's ``error``. A result is given when all of it is kept: a new version in ``store``, the
    JSON in ``folder``, then the mark that the user is finished. The LM is the one of the ``dspy.context`` this is
    called in; with a folder, its answers are kept per user until the user is finished, and a fleet that is started
    again on the same users asks only for what is missing.

    Args:
        program: a PersonaAgent (or personalized program) to be bound to each user, or a function that makes the
            user's program from the history (where the answer's type is the user's own). Whether a response that is a
            bare ``int`` or ``float`` is a rating is decided over all users: where ``histories`` can be read once only,
            over the first 256.
        resume: pass over users who are finished in ``folder``, from the same interactions, options and LM.
        engine: ``"local"`` = this machine; ``"ray"`` = workers on a Ray cluster (``persona-dspy[ray]``).
        processes: the ``workers`` are shared out to so many processes, for an LM behind HTTP; each takes seconds to
            start and 120 MB. Engine local: None or 1 = threads of this process; more = POSIX only, and an optimizer
            whose LM summaries last in ``store`` stays on threads. Engine ray: actors of one CPU; None = one for each
            CPU of the cluster.
        budget: over the whole fleet. Once it is spent no user is begun; who was under way ends with the best persona so
            far and ``stopped``.
        ledger: the fleet's account, to watch or to ``stop``; by default a new one over ``budget``.
        task: what the documents say they were made for; or a function of the history.
        on_skip: called for each user that ``resume`` passes over.

    Raises:
        InputError: ``workers`` or ``processes`` below 1, an unknown engine, or what cannot be sent to a process. Also a
            user who comes twice (join such users with ``data.join_users``), after who is under way has been finished.
        ModelError: many users in a row failed for the LM's sake: it is down, or the key is wrong.
        StoreError: results cannot be kept.

    Example:
        >>> from optimizers import PersonaAlignment
        >>> from persona_dspy.agent import PersonaAgent
        >>> from persona_dspy.data import UserHistory
        >>> from persona_dspy.testing import SyntheticUser, rule_following_lm
        >>> people = [SyntheticUser(seed=seed, user_id=f"u{seed}") for seed in (1, 2)]
        >>> users = [UserHistory(user_id=p.user_id, interactions=tuple(p.interactions(12))) for p in people]
        >>> with dspy.context(lm=rule_following_lm()):
        ...     results = list(compile_users(PersonaAgent("title -> genre"), users, PersonaAlignment(), workers=2))
        >>> sorted(result.user_id for result in results)
        ['u1', 'u2']
    """
    if workers < 1 or (processes is not None and processes < 1) or engine not in ("local", "ray"):
        arguments = f"workers={workers!r}, processes={processes!r}, engine={engine!r}"
        raise InputError(f"{arguments}: expected 1 or more, and 'local' or 'ray'")
    program, histories = _of_one_kind(program, histories)
    tracker = tracker or NullTracker()
    fleet = ledger or Ledger(budget=budget, parent=current_ledger())
    work = UserWork(program=program, optimizer=optimizer, lm=dspy.settings.get("lm"), task=task)
    check_price(work.lm, fleet.usd_bound)
    done = folder if resume else None
    stream = UserStream(histories)
    unfinished = _unfinished(stream, work, done, store, on_skip) if done is not None else iter(stream)
    begun: dict[str, UserState] = {}
    if store is not None:
        unfinished = _noting_states(unfinished, store, begun)
    unfinished = longest_first(unfinished, max(1, 3 * workers // 4))

    def save_result(result: UserResult) -> UserResult:
        return save(result, store, folder, since=begun.pop(result.user_id, None))

    log = folder.calls if folder else None
    local_work = work if store is None else work.remembering(store)
    shared: dict[str, Any] = {"fleet": fleet, "workers": workers, "processes": processes, "log": log}
    if engine == "ray":
        from persona_dspy.fleet.on_ray import on_ray

        results = _save_each(on_ray(work, unfinished, **shared), save_result)
    elif min(processes or 1, workers) > 1 and local_work is work:
        from persona_dspy.fleet.processes import on_processes

        inherited = [folder.lock] if folder else []
        results = _save_each(on_processes(work, unfinished, **shared, inherited=inherited), save_result)
    else:
        results = _on_threads(local_work, unfinished, fleet, workers, save_result, log)
    return _monitored(results, stream, fleet, tracker, folder, max(10, 2 * workers))


def _of_one_kind(program: Program, histories: Iterable[History]) -> tuple[Program, Iterable[History]]:
    """The program with what kind its answers are decided over all users, where neither its type nor an answer has
    decided it: users of one product are never of different kinds."""
    if not isinstance(program, PersonalProgram) or program.kind.decided:
        return program, histories
    first = histories
    if iter(histories) is histories:
        users = iter(histories)
        first = list(itertools.islice(users, _SURVEYED))
        histories = itertools.chain(first, users)
    survey = AnswerSurvey()
    for history in first:
        survey.add(answer.response for answer in history.interactions if answer.answered)
    program = copy.copy(program)  # the student itself is not changed
    program.take_kind(survey.number_kind(program.kind.annotation))
    return program, histories


def _noting_states(histories: Iterable[History], store: Store, begun: dict[str, UserState]) -> Iterator[History]:
    """What the store says of each user when the user's work begins: whoever is forgotten after that stays so."""
    for history in histories:
        begun[history.user_id] = store.state(history.user_id)
        yield history


def _save_each(
    results: Generator[UserResult], save_result: Callable[[UserResult], UserResult]
) -> Generator[UserResult]:
    with closing(results):  # workers go when the results are no longer wanted, not when this is collected
        for result in results:
            yield save_result(result)


def _unfinished(
    histories: Iterable[History],
    work: UserWork,
    folder: FleetFolder,
    store: Store | None,
    on_skip: Callable[[], None] | None,
) -> Iterator[History]:
    for history in histories:
        made_from = work.made_from(history)
        if not folder.is_done(history.user_id, made_from) and not _stored(history.user_id, made_from, folder, store):
            yield history
        elif on_skip is not None:
            on_skip()


def _stored(user_id: str, made_from: str, folder: FleetFolder, store: Store | None) -> bool:
    """Whether the user's current version was made from just this: the run ended between keeping it in the store and
    noting it in the folder, which is made up for."""
    try:
        current = store.current(user_id) if store is not None else None
    except UnknownUser:
        return False
    if current is None or (current.alignment or {}).get("options", {}).get("made_from") != made_from:
        return False
    document = parse_document(current.document)
    folder.put(document)
    folder.note(user_id, made_from, "done", cost=document.alignment.total if document.alignment else None)
    return True


def _monitored(
    results: Generator[UserResult],
    stream: UserStream,
    fleet: Ledger,
    tracker: Tracker,
    folder: FleetFolder | None,
    patience: int,
) -> Generator[UserResult]:
    """Note and track each result; stop the fleet when the LM fails user after user."""
    in_a_row, last = 0, ""
    with closing(results):
        for result in results:
            if folder is not None and (result.document is not None or not result.stopped):
                _note(result, folder)
            if not result.stopped:
                tracker.user(result.user_id, result.document, result.error)
                in_a_row = in_a_row + 1 if result.kind in _LM_IS_DOWN else 0
            yield result
            if in_a_row >= patience and not last:
                last = result.error
                fleet.stop(f"the LM failed for {in_a_row} users in a row")
    if last:
        raise ModelError(
            f"the LM failed for {patience} users in a row, the last time with: {last}; expected one that answers. What "
            "was finished is kept: type the same command with --resume once it is back"
        )
    stream.raise_failure()


def _note(result: UserResult, folder: FleetFolder) -> None:
    state: State = "stopped" if result.stopped else "failed" if result.document is None else "done"
    cost = result.alignment.total if result.alignment else None
    made_from = str(result.alignment.options.get("made_from", "")) if result.alignment else ""
    folder.note(result.user_id, made_from, state, error=result.kind, cost=cost, seconds=result.seconds)


def _on_threads(
    work: UserWork,
    unfinished: Iterator[History],
    fleet: Ledger,
    workers: int,
    save: Callable[[UserResult], UserResult],
    log: CallLog | None,
) -> Generator[UserResult]:
    """One thread a user, sequential inside."""
    in_flight, threads = threading.Semaphore(workers), work.users_at_once(workers)

    def compile_user(history: History) -> UserResult:
        return save(work.run(history, fleet=fleet, log=log, in_flight=in_flight))

    pending: set[Future[UserResult]] = set()
    with ThreadPoolExecutor(threads, thread_name_prefix="fleet") as pool:
        try:
            for history in unfinished:
                pending.add(pool.submit(contextvars.copy_context().run, compile_user, history))
                if len(pending) > workers + workers // 4:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
                if fleet.ended:
                    break
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            if pending:  # interrupted, or results cannot be kept: who is under way ends before the next LM call
                fleet.stop("interrupted")
                for future in pending:
                    future.cancel()


def save(
    result: UserResult, store: Store | None, folder: FleetFolder | None, *, since: UserState | None = None
) -> UserResult:
    """The result with its document written to the store, numbered after what is there, and to the folder. Of a user who
    was forgotten after ``since`` was read nothing is written: that is the result's error then.

    Raises:
        StoreError: it could not be written.
    """
    document = result.document
    if document is None:
        return result
    if store is not None and not result.stopped:  # the best so far of a stopped user is no version: --resume goes on
        try:
            document = _next_version(document, store, since)
        except UserForgotten as forgotten:
            seconds, kind = result.seconds, type(forgotten).__name__
            return UserResult(user_id=result.user_id, document=None, error=str(forgotten), seconds=seconds, kind=kind)
    if folder is not None:
        folder.put(document)
    if document is result.document:
        return result
    values = {name: getattr(result, name) for name in ("user_id", "error", "seconds", "kind", "stopped")}
    return UserResult(document=document, **values)


def _next_version(
    document: PersonaDocument, store: Store, since: UserState | None = None, tries: int = 3
) -> PersonaDocument:
    """Put a document as the version after the current one; not again where it is the same as that.

    Raises:
        StoreError: it could not be put, not even after a version that somebody else put meanwhile.
        UserForgotten: the user was forgotten after ``since`` was read.
    """
    state = store.state(document.user_id)
    state = state if since is None else replace(state, life=since.life)
    try:
        versions = store.versions(document.user_id)
    except UnknownUser:
        versions = []
    current = next((v for v in versions if v.current), None)
    made_from = document.alignment.options.get("made_from") if document.alignment else None
    if current is not None and (current.alignment or {}).get("options", {}).get("made_from") == made_from:
        current_document = parse_document(current.document)
        if current_document.system_prompt == document.system_prompt:
            return current_document
    new = document if versions else document.model_copy(update={"parent": None})
    if versions:
        number = max(v.version for v in versions) + 1
        new = document.model_copy(update={"version": number, "parent": current.version if current else None})
    record = new.alignment.model_dump(mode="json") if new.alignment else None
    try:
        store.put_persona(new.user_id, new.to_json(), record, since=state)
    except (InputError, VersionConflict) as refused:
        if tries > 1:
            return _next_version(document, store, since, tries - 1)
        raise StoreError(f"persona of {new.user_id!r} could not be stored: {refused}") from refused
    return new
