"""The record of an alignment: every step, its scores and its cost, as frozen, JSON-safe values. Written into the
persona JSON, MLflow artifacts and the store.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from persona_dspy.core.html import alignment_html
from persona_dspy.core.interactions import Usage

__all__ = ["Alignment", "AlignmentStep", "Scores", "Trial"]


Outcome = Literal["", "accepted", "worse", "no difference", "untested"]
"""What came of a challenger: answers got worse, stayed the same, or got better here and worse there. Empty in records
of before there were outcomes."""


class Trial(BaseModel):
    """One challenger before the gate: its edits, mean scores in [0, 1] on the held-out items, and the verdict.

    ``challenger_score`` is None where it was given up before all items were scored; ``incumbent_score`` is then over
    those on which the incumbent was scored by then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    edits: tuple[str, ...]
    incumbent_score: float
    challenger_score: float | None
    accepted: bool
    reason: str
    outcome: Outcome = ""


class AlignmentStep(BaseModel):
    """One step: which past interactions were simulated, how well, what the textual loss said, what was tried; and how
    many answers of the reflecting LM could not be read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    simulated: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    feedback: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    unread: int = Field(default=0, ge=0, description="answers of the reflecting LM that could not be read")
    usage: Usage = Usage()


class Scores(BaseModel):
    """Mean scores on the held-out interactions, in [0, 1], higher is better; None where none were held out, or the
    budget ended before all were scored.

    ``without_persona``: the same program and memory with an empty persona. ``initial``: the persona it began with, an
    empty one where nothing but counts was known of the user. ``final``: the one it ended with. Of free text that an LM
    compares: how often a draft is nearer to the user's own text than one without a persona, which itself has 0.5. None
    of them was fitted on these interactions, but where folds judge in turn (a note says so): edits that another fold
    judged could see them.

    Example:
        >>> Scores(without_persona=0.25, final=0.75).gain, Scores(final=0.75).gain
        (0.5, None)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    without_persona: float | None = None
    initial: float | None = None
    final: float | None = None

    @property
    def gain(self) -> float | None:
        """``final`` over ``without_persona``; None where one of them is not known."""
        if self.final is None or self.without_persona is None:
            return None
        return self.final - self.without_persona


class Alignment(BaseModel):
    """What alignment did for one user. ``stopped`` says why it ended; ``gate_size`` how many items decided.

    Example:
        >>> Alignment(user_id="u1", gate_size=6, stopped="nothing wrong left").accepted
        0
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    user_id: str
    scores: Scores = Scores()
    gate_size: int = 0
    accepted: int = Field(default=0, description="challengers accepted")
    unread: int = Field(default=0, ge=0, description="answers of the reflecting LM that could not be read, in all")
    nothing_read: bool = Field(
        default=False, description="the reflecting LM was asked, and not one of its answers could be read"
    )
    first_unread: str = Field(
        default="", description="what was wrong with the first of them; empty where all were read"
    )
    left_out: int = Field(
        default=0,
        ge=0,
        description="drafts only commented on, rated or given a thumb, from which a small LM did not learn",
    )
    steps: tuple[AlignmentStep, ...] = ()
    stopped: str = ""
    notes: tuple[str, ...] = ()
    usage: dict[str, Usage] = Field(default_factory=dict, description="by role, and 'total'")
    options: dict[str, Any] = Field(default_factory=dict)

    def _repr_html_(self) -> str:
        return alignment_html(self)

    @property
    def total(self) -> Usage:
        """Usage over all roles."""
        return self.usage.get("total", Usage())
