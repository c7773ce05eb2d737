"""The figures of LaMP's and LongLaMP's own evaluation scripts, where they differ from ours (``metrics``).

LaMP: arXiv 2304.11406, ``eval/evaluation.py``. LongLaMP: arXiv 2407.11016. Formulas, not code, are theirs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from persona_dspy.core import metrics
from persona_dspy.errors import InputError

__all__ = ["official_figures"]

_RESAMPLES = 1000


def official_figures(
    names: Sequence[str],
    golds: Sequence[str],
    answers: Sequence[str],
    *,
    labels: Sequence[str] | None = None,
    low: float = 1,
    high: float = 5,
    seed: int = 0,
) -> dict[str, float]:
    """The metrics ``names`` as the official scripts have them. ``HIGHER_IS_BETTER`` has directions.

    - ``accuracy``, ``macro_f1``: as ours; so is ``chrf``, which no benchmark here has.
    - ``mae``, ``rmse``: a number out of range is taken as it is ("9" for "1" is 8 off); what is no number counts as the
      end of the scale farthest from the gold, and "nan" is an error there.
    - ``rouge1``, ``rougeL``: words of a-z and 0-9 only, and the median of 1,000 bootstrap means; the script draws
      without a seed, so two runs of it differ by about .0007 at 300 answers. Of a text of more than 50,000 words,
      ``rougeL`` counts the first and the last 25,000, and warns.
    - ``meteor``: with WordNet's synonyms; words of Latin script only, and a text against itself below 1.

    Raises:
        InputError: an unknown name, lengths that differ, a gold that is none, "nan" for a rating, or ``meteor`` without
            WordNet on this machine.

    Example:
        >>> official_figures(["mae"], ["1", "5"], ["9", "no idea"])
        {'mae': 6.0}
    """
    found: dict[str, float] = {}
    for name in names:
        if name in ("accuracy", "chrf"):
            found[name] = {"accuracy": metrics.accuracy, "chrf": metrics.chrf}[name](golds, answers)
        elif name == "macro_f1":
            found[name] = metrics.macro_f1(golds, answers, list(labels or ()))
        elif name in ("mae", "rmse"):
            errors = _errors(golds, answers, low, high)
            mean = sum(error**2 if name == "rmse" else error for error in errors) / len(errors)
            found[name] = math.sqrt(mean) if name == "rmse" else mean
        elif name in ("rouge1", "rougeL"):
            found[name] = _bootstrap_median(metrics.rouge_scores(name, golds, answers), seed)
        elif name == "meteor":
            found[name] = metrics.meteor(golds, answers, wordnet=_wordnet())
        else:
            raise InputError(f"metric {name!r}: expected one of {', '.join(metrics.HIGHER_IS_BETTER)}")
    return found


def _errors(golds: Sequence[str], answers: Sequence[str], low: float, high: float) -> list[float]:
    errors: list[float] = []
    for gold, answer in zip(golds, answers, strict=True):
        wanted, number = float(gold), metrics.parse_number(str(answer).strip())
        if number is None:
            number = low if abs(low - wanted) > abs(high - wanted) else high
        if not math.isfinite(number):
            raise InputError(f"answer {answer!r} to {gold!r}: the official script fails on it; expected a number")
        errors.append(abs(number - wanted))
    if not errors:
        raise InputError("golds []: expected at least one gold and answer to score")
    return errors


def _bootstrap_median(scores: Sequence[float], seed: int) -> float:
    import numpy as np

    values = np.array(scores)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(_RESAMPLES, len(values)))
    return float(np.percentile(values[draws].mean(axis=1), 50))


def _wordnet() -> Any:
    """WordNet by nltk, which LongLaMP's script downloads.

    Raises:
        InputError: it is not on this machine.
    """
    from nltk.corpus import wordnet

    try:
        wordnet.synsets("word")
    except LookupError:
        raise InputError(
            "metric 'meteor', official figure: expected WordNet, whose synonyms it counts; type: python -m "
            "nltk.downloader wordnet (Task.evaluate's 'meteor' counts equal words and stems, and needs nothing)"
        ) from None
    return wordnet
