"""Recent mistakes as a yardstick: edits written from them have to mend one, and to do past ones like it no harm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import dspy

from optimizers.loss import Simulated
from optimizers.simulation import Simulator
from persona_dspy.core import Persona

__all__ = ["Judge", "Mistakes", "mistakes_of"]

ALIKE = 2  # past interactions that a mended mistake is checked against

Judge = Callable[[Sequence[Simulated], Sequence[Simulated]], list[float]]
"""Scores answers against others to the same queries, in [0, 1]; 0.5 = as good."""


@dataclass(frozen=True, kw_only=True)
class Mistakes:
    """Recent mistakes that edits were written from, and what else they speak about.

    ``before``: the incumbent's scores on the mistakes. ``replayed``: a persona's scores on them. ``alike``: for the
    mistakes (by place) that were mended, the scores of (incumbent, challenger) on past interactions like these, which
    the writer was not shown.
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
        answers = simulator.run(as_then(persona), examples)
        return judge(answers, [s for _, s in wrong]) if judge else [s.score for s in answers]

    def alike(old: Persona, new: Persona, mended: Sequence[int]) -> tuple[list[float], list[float]]:
        others = _nearest(simulator, [examples[n] for n in mended], unseen)
        before, after = (simulator.run(as_now(persona), others) for persona in (old, new))
        if judge:
            return [0.5] * len(others), judge(after, before)
        return [s.score for s in before], [s.score for s in after]

    return Mistakes(before=[0.5 if judge else s.score for _, s in wrong], replayed=replayed, alike=alike)


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
