"""Checks edits against recent mistakes: each has to mend one and break no similar past interaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import dspy

from optimizers.loss import Simulated
from optimizers.simulation import Simulator
from persona_dspy.core import Persona

__all__ = ["SAME", "Judge", "Mistakes", "compared", "mistakes_of"]

ALIKE = 2  # past interactions that a mended mistake is checked against

SAME = 0.5


class Judge(Protocol):
    """Scores answers where their own scores do not tell: against others to the same queries."""

    def needed(self, example: dspy.Example) -> bool:
        """Whether answers to this example have to be compared."""
        ...

    def __call__(self, drafts: Sequence[Simulated], references: Sequence[Simulated]) -> list[float]:
        """In [0, 1], higher is better; 0.5 = as good as the reference."""
        ...


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Recent mistakes that edits were written from, and what else they speak about.

    ``before``: the incumbent's scores on the mistakes. ``replayed``: a persona's scores on them. ``alike``: for the
    mistakes (by place) that were mended, the scores of (incumbent, challenger) on past interactions like these, which
    the writer was not shown and the challenger did not answer right.
    """

    before: Sequence[float]
    replayed: Callable[[Persona], list[float]]
    alike: Callable[[Persona, Persona, Sequence[int]], tuple[list[float], list[float]]]


def mistakes_of(
    simulator: Simulator,
    batch: Sequence[dspy.Example],
    simulated: Sequence[Simulated],
    unseen: Sequence[dspy.Example],
    *,
    as_then: Callable[[Persona], Persona],
    as_now: Callable[[Persona], Persona],
    judge: Judge | None,
) -> Mistakes:
    """The mistakes among ``simulated``, answers to ``batch``.

    Args:
        unseen: past interactions from which no edit was written.
        as_then, as_now: a persona as it would have been before the batch, and before what judges.
        judge: compares free text; None = scores are the simulator's.
    """
    wrong = [(e, s) for e, s in zip(batch, simulated, strict=True) if not s.right]
    examples = [e for e, _ in wrong]

    def replayed(persona: Persona) -> list[float]:
        return compared(judge, examples, simulator.run(as_then(persona), examples), [s for _, s in wrong])

    def alike(old: Persona, new: Persona, mended: Sequence[int]) -> tuple[list[float], list[float]]:
        others = _nearest(simulator, [examples[n] for n in mended], unseen)
        after = simulator.run(as_now(new), others)
        # What the challenger answers right cannot have got worse: the incumbent is asked the rest.
        asked = [n for n, (e, s) in enumerate(zip(others, after, strict=True)) if not s.right or _judged(judge, e)]
        others, after = [others[n] for n in asked], [after[n] for n in asked]
        before = simulator.run(as_now(old), others)
        return compared(judge, others, before, before), compared(judge, others, after, before)

    before = compared(judge, examples, [s for _, s in wrong], [s for _, s in wrong])
    return Mistakes(before=before, replayed=replayed, alike=alike)


def compared(
    judge: Judge | None, examples: Sequence[dspy.Example], drafts: Sequence[Simulated], references: Sequence[Simulated]
) -> list[float]:
    """Scores of ``drafts``: their own, and those of the judge where it is needed; 0.5 for what is its own reference."""
    scores = [draft.score for draft in drafts]
    at = [n for n, example in enumerate(examples) if _judged(judge, example)]
    if judge is None or not at:
        return scores
    if all(drafts[n] is references[n] for n in at):
        verdicts = [SAME] * len(at)
    else:
        verdicts = judge([drafts[n] for n in at], [references[n] for n in at])
    for n, verdict in zip(at, verdicts, strict=True):
        scores[n] = verdict
    return scores


def _judged(judge: Judge | None, example: dspy.Example) -> bool:
    return judge is not None and judge.needed(example)


def _nearest(
    simulator: Simulator, examples: Sequence[dspy.Example], unseen: Sequence[dspy.Example]
) -> list[dspy.Example]:
    """Of ``unseen`` the nearest to each of ``examples``, ``ALIKE`` of them."""
    program, by_id = simulator.program, {e.interaction_id: e for e in unseen}
    hidden = {i.id for i in program.memory.interactions} - set(by_id)
    chosen: dict[str, dspy.Example] = {}
    for example in examples:
        query = str(example.get(program.query_field, ""))
        chosen |= {e.id: by_id[e.id] for e in program.memory.recall(query, ALIKE, exclude=hidden)}
    return list(chosen.values())
