"""What kind of answers people give, decided over all of them: users of one product are never of different kinds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from persona_dspy.core.answers import MANY_LABELS, ResponseKind
from persona_dspy.core.scales import number_of, observed_scale, written
from persona_dspy.core.spelling import LONG_LABEL, bare

__all__ = ["AnswerSurvey"]

_MOST_KEPT = 10_000  # distinct answers; beyond it they are certainly text


class AnswerSurvey:
    """Answers of many users, added user by user; holds no more than ``_MOST_KEPT`` short ones.

    Example:
        >>> survey = AnswerSurvey()
        >>> survey.add(["yes", "no", "yes", "no"]), survey.add(["yes"])
        (None, None)
        >>> survey.kind().name, survey.kind().labels
        ('label', ())
    """

    def __init__(self) -> None:
        self._total = 0
        self._distinct: set[str] = set()
        self._numbers: set[float] | None = set()
        self._long = 0
        self._votes = {"label": 0, "rating": 0, "text": 0}

    def add(self, responses: Iterable[str]) -> None:
        """All answers of one user, or a part of them."""
        texts = [text.strip() for text in responses]
        if not texts:
            return
        self._total += len(texts)
        self._votes[ResponseKind.of_values(texts).name] += len(texts) if len(texts) >= 4 else 0
        for text in texts:
            number = number_of(text)
            if number is None or self._numbers is None or len(self._numbers) > _MOST_KEPT:
                self._numbers = None
            else:
                self._numbers.add(number)
            if len(text) > LONG_LABEL or "\n" in text:
                self._long += 1
            elif len(self._distinct) <= _MOST_KEPT:
                self._distinct.add(bare(text))

    def number_kind(self, annotation: Any) -> ResponseKind:
        """The kind of a bare ``int`` or ``float``: a rating where all answers lie on one scale, and else the whole
        numbers are labels; a rating from 1 to 5 where there are no answers.

        Example:
            >>> survey = AnswerSurvey()
            >>> survey.add(["4", "4", "4"]), survey.add(["4000", "9000"])
            (None, None)
            >>> survey.number_kind(int).name
            'label'
        """
        numbers = [written(n) for n in sorted(self._numbers or ())]
        return replace(ResponseKind.of(annotation, numbers, total=self._total), decided=True)

    def kind(self) -> ResponseKind:
        """Rating where all answers lie on one scale; labels where few answers come back, for all users together or for
        most of them; else text. Which labels is left open: one user's are not another's."""
        scale = observed_scale([written(n) for n in self._numbers], self._total) if self._numbers else None
        if scale is not None:
            return ResponseKind(
                name="rating", labels=scale.steps, low=scale.low, high=scale.high, step=scale.step, grows=True
            )
        few = len(self._distinct) <= MANY_LABELS and 2 * len(self._distinct) <= self._total
        repeated = self._votes["label"] + self._votes["rating"] > self._votes["text"]
        short = 50 * self._long <= self._total
        return ResponseKind(name="label" if short and (few or repeated) else "text", grows=True)
