"""What decides answers beside data, systems and LM: the options of an evaluation, checked and made into a setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypedDict

from persona_dspy.errors import InputError
from persona_dspy.judge.systems import Setting
from persona_dspy.judge.variant import Variant
from persona_dspy.lm import Sizes

if TYPE_CHECKING:
    from persona_dspy.agent import KnowledgeSource
    from persona_dspy.memory import Retriever

__all__ = ["EvaluationOptions", "checked_setting", "with_retrievers"]


class EvaluationOptions(TypedDict, total=False):
    """All that decides answers beside data, systems and LM; the defaults are those of ``Setting``, of ``k`` and
    ``turn_tokens`` what the LM's context has room for (``lm.Sizes``), the same for every system.

    ``knowledge``: texts to search (a folder, JSONL, ``"wikipedia:you@example.org"`` or a source object). ``retrieval``:
    ``"bm25"``, ``"dense"``, ``"hybrid"``, or a retriever object, for all systems; by default ``"bm25"``, and
    ``"dense"`` for ``as-in-paper``. ``ablations``, ``scale``, ``cold``: see ``variants``.
    ``program``: a ``dspy.Module`` of one's own, which ``persona`` personalizes and ``direct`` runs without a persona;
    the other systems answer its fields. ``metric``: ``metric(example, prediction)`` of one's own, in [0, 1], higher is
    better; it scores all systems, and alignment.
    """

    references: bool
    ablations: Sequence[str]
    scale: Sequence[str]
    cold: Sequence[int]
    k: int
    turn_tokens: int
    recent: int
    epochs: int
    gate: int | None
    optimizer_calls: int | None
    actions: str
    knowledge: str | KnowledgeSource | None
    retrieval: str | Retriever | None
    seed: int
    program: Any
    metric: Any


def checked_setting(
    options: EvaluationOptions, lm: Any, chosen: Sequence[Variant] = ()
) -> tuple[Setting, dict[str, Any]]:
    """The setting for an LM (or its name), and what a protocol says of it.

    Args:
        chosen: the systems: that of the paper can use knowledge whatever our agent's policy is.

    Raises:
        InputError: an option that is not known or out of range.
    """
    from persona_dspy.agent import LocalCorpus, Wikipedia

    unknown = sorted(set(options) - set(EvaluationOptions.__annotations__))
    if unknown:
        expected = ", ".join(EvaluationOptions.__annotations__)
        raise InputError(f"evaluate({unknown[0]}=...): expected options among {expected}")
    names = ("k", "turn_tokens", "recent", "epochs", "gate", "optimizer_calls", "seed")
    given: dict[str, Any] = dict(options)
    numbers = {name: given[name] for name in names if given.get(name) is not None}
    sizes = Sizes.of(lm)
    numbers = {"k": sizes.k, "turn_tokens": sizes.turn, **numbers}
    least = {"k": 0, "turn_tokens": 8, "recent": 1, "epochs": 1, "gate": 1, "optimizer_calls": 1}
    for name, lowest in least.items():
        value = numbers.get(name)
        if value is not None and (not isinstance(value, int) or value < lowest):
            raise InputError(f"{name} {value!r}: expected a whole number, {lowest} or more")
    actions, knowledge = options.get("actions", "fixed"), options.get("knowledge")
    if actions not in ("fixed", "plan", "react"):
        raise InputError(f"actions {actions!r}: expected fixed, plan or react")
    if knowledge is not None and actions == "fixed" and all(v.system != "as-in-paper" for v in chosen):
        raise InputError(
            f"knowledge {knowledge!r}: expected actions plan or react, which can call the tool,"
            " or the system as-in-paper"
        )
    found: Any = knowledge
    if isinstance(knowledge, str):
        kind, _, contact = knowledge.partition(":")
        found = Wikipedia(contact) if kind == "wikipedia" else LocalCorpus.from_path(knowledge)
    given_retrieval = options.get("retrieval")
    retrieval = "bm25" if given_retrieval is None else given_retrieval
    named = retrieval if isinstance(retrieval, str) else str(getattr(retrieval, "name", type(retrieval).__name__))
    setting = Setting(**numbers, actions=actions, knowledge=found, retrieval=named)  # type: ignore[arg-type]
    setting = replace(setting, paper_retrieval="dense" if given_retrieval is None else named)
    if not isinstance(retrieval, str):
        setting = replace(setting, retrievers={**setting.retrievers, named: retrieval})
    program, metric = options.get("program"), options.get("metric")
    setting = replace(setting, program=program, metric=metric)
    own = {"program": _named(program), "metric": _named(metric)}
    own = {name: value for name, value in own.items() if value is not None}
    known = knowledge if isinstance(knowledge, str | None) else type(knowledge).__name__
    return setting, {**{name: getattr(setting, name) for name in names}, "actions": actions, "knowledge": known,
                     "retrieval": named, "paper_retrieval": setting.paper_retrieval, **own}  # fmt: skip


def _named(value: Any) -> str | None:
    """What a protocol calls a program or a metric."""
    if value is None:
        return None
    return str(getattr(value, "spec", None) or getattr(value, "__name__", None) or type(value).__name__)


def with_retrievers(setting: Setting, chosen: Sequence[Variant]) -> Setting:
    """With a retriever for each name that a variant has; what is missing on this machine shows before any work."""
    from persona_dspy.memory import named_retriever

    names = dict.fromkeys([setting.retrieval, *(v.retrieval for v in chosen if v.retrieval)])
    if any(v.system == "as-in-paper" and not v.retrieval for v in chosen):
        names |= {setting.paper_retrieval: None}
    made = {name: setting.retrievers.get(name) or named_retriever(name) for name in names}
    return replace(setting, retrievers=made)
