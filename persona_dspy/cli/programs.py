"""Which program the command line runs for a task."""

from __future__ import annotations

import csv
import hashlib
import importlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from persona_dspy.data import Task
from persona_dspy.errors import InputError

__all__ = [
    "OwnMetric",
    "OwnProgram",
    "agent_for",
    "forgettable",
    "knowledge_source",
    "named_users",
    "paper_agent_for",
    "which_users",
]


def agent_for(task: Task, **options: Any) -> Any:
    """A PersonaAgent on the task's signature."""
    from persona_dspy.agent import PersonaAgent

    return PersonaAgent(task.signature(), **options)


def paper_agent_for(task: Task, **options: Any) -> Any:
    """The paper's agent on the task's signature."""
    from persona_dspy.agent import PersonaAgent

    return PersonaAgent.as_in_paper(task.signature(), **options)


@lru_cache(maxsize=4)
def knowledge_source(spec: str | None) -> Any:
    """The source that ``--knowledge`` names, read once a process; None for none.

    Raises:
        DataError: no such path, or nothing in it.
    """
    from persona_dspy.agent import LocalCorpus, Wikipedia

    if not spec:
        return None
    return Wikipedia(spec.removeprefix("wikipedia:")) if spec.startswith("wikipedia:") else LocalCorpus.from_path(spec)


def forgettable() -> None:
    """Keep DSPy's LM cache of this process in memory only: the one on disk knows no user, so nobody could be forgotten
    from it."""
    import dspy

    dspy.configure_cache(enable_disk_cache=False)


def which_users(users: str | None) -> tuple[int | None, list[str] | None]:
    """``--users`` as (how many at most, which ids); None = no bound, everybody.

    An id with a comma goes into double quotes, as in CSV; one of digits alone gets a comma after it.

    Example:
        >>> which_users("3"), which_users("3,"), which_users('ana, "a,b"')
        ((3, None), (None, ['3']), (None, ['ana', 'a,b']))
    """
    if users is None:
        return None, None
    if users.isdecimal():
        return int(users), None
    return None, named_users(users)


def named_users(users: str) -> list[str]:
    """Ids separated by commas; one with a comma, or a blank at its end, in double quotes, as in CSV.

    Raises:
        InputError: a line break between ids.
    """
    try:
        named = next(csv.reader([users], skipinitialspace=True), [])
    except csv.Error:
        raise InputError(f"--users {users!r}: expected ids with commas between them, such as ana,bram") from None
    return list(dict.fromkeys(user if '"' in users else user.strip() for user in named if user.strip()))


class OwnProgram:
    """A user's own program, named ``module:object``: a ``dspy.Module``, one that is personal already, or what makes
    one when called. It crosses processes by its name; modules of the working folder can be named.

    Raises:
        InputError: there is no such module or object, or it is no program.

    Example:
        >>> OwnProgram("dspy:nothing")
        Traceback (most recent call last):
            ...
        persona_dspy.errors.InputError: --program 'dspy:nothing': module 'dspy' has no 'nothing'; expected module:object
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        program = self()  # what is wrong with it shows before any work
        self.source = _source_digest(spec)
        self.fields = f"{program.query_field} -> {program.response_field}"

    def __call__(self, history: Any = (), user_id: str | None = None, persona: Any = None) -> Any:
        """The program of one user, with the user's memory and persona."""
        import dspy

        from persona_dspy.agent import PersonalProgram, memory_of, personalize

        program = _named("--program", self.spec, "object")
        if not isinstance(program, dspy.Module) and callable(program):
            program = program()
        if isinstance(program, PersonalProgram):
            return program.for_user(user_id, history, persona) if user_id is not None else program
        if not isinstance(program, dspy.Module):
            raise InputError(
                f"--program {self.spec!r}: {type(program).__name__}; expected a dspy.Module, or a function that "
                "returns one"
            )
        return personalize(program, history=memory_of(history, user_id), user_id=user_id, persona=persona)


class OwnMetric:
    """A user's own metric, named ``module:function``; crosses processes by its name.

    Raises:
        InputError: there is no such module or function.
    """

    def __init__(self, spec: str) -> None:
        self._function(spec)
        self.spec, self.source = spec, _source_digest(spec)
        self.__name__ = spec.partition(":")[2]

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        return self._function(self.spec)(example, prediction)

    @staticmethod
    def _function(spec: str) -> Any:
        function = _named("--metric", spec, "function")
        if not callable(function):
            raise InputError(
                f"--metric {spec!r}: {type(function).__name__}; expected a function of (example, prediction)"
            )
        return function


def _named(option: str, spec: str, what: str) -> Any:
    """The object of ``module:object``; the working folder is looked in first, as with ``python -m``."""
    module_name, colon, name = spec.partition(":")
    if not (module_name and colon and name):
        raise InputError(f"{option} {spec!r}: expected module:{what}, such as my_app:{what}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name != module_name.partition(".")[0] and missing.name != module_name:
            raise InputError(f"{option} {spec!r}: importing it failed: {missing}") from missing
        raise InputError(
            f"{option} {spec!r}: no module {module_name!r} in {here} or installed; expected module:{what}"
        ) from None
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise InputError(f"{option} {spec!r}: module {module_name!r} has no {name!r}; expected module:{what}")
        found = getattr(found, part)
    return found


def _source_digest(spec: str) -> str:
    """What changes when the module's text does, so that --resume learns anew under other code."""
    file = sys.modules[spec.partition(":")[0]].__file__
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:12] if file else ""
