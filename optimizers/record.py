"""Builds the record of a compile: every step, its scores and its cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from persona_dspy.core import Alignment, Scores, plural

if TYPE_CHECKING:
    from optimizers.run import Run

__all__ = ["record_of"]


def record_of(run: Run) -> Alignment:
    """The record of a run that has ended, whether by itself or by its budget."""
    notes, accepted, scores = list(run.notes), run.accepted, run.scores
    if run.leading:
        accepted += 1
        notes.append("the budget ended while the persona led, before it was compared on all held-out items")
    first = run.rounds[0].election
    if scores.initial is None:  # the budget ended before
        begun = run.incumbent if run.only_counts else run.initial
        scores = Scores(initial=first.mean(begun), final=first.mean(run.incumbent))
    if run.unread:
        notes.append(f"{plural(len(run.unread), 'answer')} of the reflecting LM could not be read: {run.unread[0]}")
    if len(run.rounds) > 1:
        notes.append(
            f"{len(run.rounds)} folds judged in turn: each edit was made without the fold that judged it; the "
            "scores are on the first fold, which edits judged by another could see"
        )
    if run.judge is not None and any(run.judge.needed(e) for round_ in run.rounds for e in round_.election.held):
        notes.append("drafts were compared by the reflecting LM with those written without a persona")
    by_role = {name: usage.rounded() for name, usage in sorted(run.ledger.by_role.items())}
    chosen = {"gate": type(run.gate).__name__, "proposer": type(run.proposer).__name__, "loss": run.loss.mode}
    return Alignment(
        user_id=run.program.user_id,
        scores=scores,
        gate_size=len(first.held),
        accepted=accepted,
        unread=len(run.unread),
        nothing_read=bool(run.unread) and not run.read,
        first_unread=run.unread[0] if run.unread else "",
        left_out=run.left_out,
        steps=tuple(run.steps),
        stopped=run.stopped,
        notes=tuple(notes),
        usage={**by_role, "total": run.ledger.usage.rounded()},
        options=run.options.get_params() | chosen,
    )
