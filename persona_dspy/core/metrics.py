"""Accuracy, macro-F1, MAE, RMSE, chrF, ROUGE, METEOR: pure functions over answers.

Corpus metrics take ``golds`` and ``answers`` of one length, both as text, and follow LaMP's official evaluation
(arXiv 2304.11406, ``eval/evaluation.py`` of LaMP-Benchmark/LaMP); where they differ, ``official`` has its figures.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

import regex

from persona_dspy.core.plurals import plural
from persona_dspy.core.words import normalized, words_of
from persona_dspy.errors import InputError

__all__ = [
    "HIGHER_IS_BETTER",
    "accuracy",
    "chrf",
    "closeness",
    "exact_match",
    "macro_f1",
    "mae",
    "meteor",
    "metric_score",
    "parse_number",
    "parse_rating",
    "rmse",
    "rouge1",
    "rougeL",
    "rouge_scores",
    "text_overlap",
]

HIGHER_IS_BETTER = {
    "accuracy": True, "macro_f1": True, "mae": False, "rmse": False, "chrf": True, "rouge1": True, "rougeL": True,
    "meteor": True,
}  # fmt: skip
"""Direction of every corpus metric, by the name ``Task.evaluate`` reports it under."""


_MOST_WORDS = 20_000  # of a text in a longest common sequence: its time is quadratic, a tenth of a second for so many
_MOST_OFFICIAL_WORDS = 50_000  # of a text in the official figure, which has half a second


def _paired(golds: Sequence[str], answers: Sequence[str]) -> list[tuple[str, str]]:
    if len(golds) != len(answers):
        raise InputError(
            f"{plural(len(golds), 'gold')} and {plural(len(answers), 'answer')}: expected one answer for each gold"
        )
    if not golds:
        raise InputError("golds []: expected at least one gold and answer to score")
    return [(str(g).strip(), str(a).strip()) for g, a in zip(golds, answers, strict=True)]


def exact_match(gold: str, answer: str) -> float:
    """1.0 if answer and gold are equal but for surrounding space, else 0.0. Higher is better.

    Example:
        >>> exact_match("comedy", " comedy ")
        1.0
    """
    return float(gold.strip() == answer.strip())


def parse_number(text: str) -> float | None:
    """The number that a text is ("nan" and "inf" are numbers), or None.

    Example:
        >>> parse_number(" 4.5 "), parse_number("four")
        (4.5, None)
    """
    try:
        return float(text)
    except ValueError:
        return None


def parse_rating(text: object, low: float, high: float) -> float | None:
    """A rating in ``[low, high]`` from text, or None where it is no number of that range ("nan" and "9" included)."""
    value = parse_number(str(text))
    return value if value is not None and math.isfinite(value) and low <= value <= high else None


def closeness(gold: str, answer: str, low: float, high: float) -> float:
    """``1 - |gold - answer| / (high - low)`` in [0, 1], higher is better; 0.0 where the answer is no rating.

    Raises:
        InputError: the gold is no rating in ``[low, high]``, or ``low >= high``.

    Example:
        >>> closeness("5", "4", 1, 5)
        0.75
    """
    if low >= high:
        raise InputError(f"rating range ({low!r}, {high!r}): expected low < high, such as (1, 5)")
    rating = parse_rating(answer, low, high)
    return 0.0 if rating is None else 1.0 - abs(_gold_rating(gold, low, high) - rating) / (high - low)


def text_overlap(gold: str, answer: str) -> float:
    """ROUGE-L F1 of one answer against its gold, in [0, 1], in any script; equal texts score 1. Higher is better.
    Of a text of more than 20,000 words, the first and the last 10,000 count.

    Example:
        >>> text_overlap("a quiet film", "a quiet film"), text_overlap("тихий фильм", "тихий вечер")
        (1.0, 0.5)
    """
    gold, answer = gold.strip(), answer.strip()
    return float(bool(gold)) if gold == answer else _rouge("rougeL", gold, answer, any_script=True)


def metric_score(result: Any, name: str, example: str) -> tuple[float, str]:
    """The score in [0, 1] and the feedback text that a user's own metric gave.

    Args:
        result: a number (``bool`` too), or a mapping or ``dspy.Prediction`` with ``score`` and, if any, ``feedback``.
        name, example: the metric's name and the example's id, for the error.

    Raises:
        InputError: anything else; the message names metric and example, and what to return.

    Example:
        >>> metric_score({"score": 0.5, "feedback": "too long"}, "mine", "i1"), metric_score(True, "mine", "i1")
        ((0.5, 'too long'), (1.0, ''))
    """
    given, feedback = result, ""
    if isinstance(result, Mapping) or hasattr(result, "toDict"):
        fields: dict[str, Any] = dict(result.items())
        given, feedback = fields.get("score"), str(fields.get("feedback") or "")
        hint = "" if "score" in fields else f"it has {sorted(fields)!r} and no 'score'"
    else:
        hint = _slip(result)
    number = None
    if not hint and given is not None and not isinstance(given, str | bytes):
        try:
            number = float(given)
        except (TypeError, ValueError):
            number = None
    if number is None or not 0 <= number <= 1:  # nan is not
        told = f" ({hint})" if hint else ""
        raise InputError(
            f"metric {name!r} gave {given!r} on example {example!r}{told}: expected a score in [0, 1], or "
            "dspy.Prediction(score=..., feedback=...)"
        )
    return number, feedback


def _slip(result: Any) -> str:
    """What is wrong with a metric's result, where that can be told by its type."""
    if inspect.iscoroutine(result):
        result.close()
        return "a metric is called without await: make it a plain function"
    if result is None:
        return "does a branch end without return?"
    if isinstance(result, tuple | list):
        return "score and feedback go into one dspy.Prediction"
    return ""


def accuracy(golds: Sequence[str], answers: Sequence[str]) -> float:
    """Share of answers equal to their gold but for surrounding space, in [0, 1]; higher is better (LaMP-1, LaMP-2).

    Example:
        >>> accuracy(["[1]", "[2]"], ["[1]", "[1]"])
        0.5
    """
    pairs = _paired(golds, answers)
    return sum(exact_match(g, a) for g, a in pairs) / len(pairs)


def macro_f1(golds: Sequence[str], answers: Sequence[str], labels: Sequence[str]) -> float:
    """Unweighted mean over ``labels`` of each label's F1, in [0, 1]; higher is better (LaMP-1, LaMP-2).

    As LaMP has it: an answer outside ``labels`` is wrong and counts for no label; a label in neither golds nor
    answers contributes 0, so the figure of a small sample is low by construction.

    Raises:
        InputError: a gold is not among ``labels``, no or repeated labels, or the lengths differ.

    Example:
        >>> macro_f1(["a", "b"], ["a", "neither"], ["a", "b"])
        0.5
    """
    pairs = _paired(golds, answers)
    index = {label.strip(): i for i, label in enumerate(labels)}
    if not index or len(index) != len(labels):
        raise InputError(f"labels {list(labels)!r}: expected one or more labels, each once")
    unknown = next((g for g, _ in pairs if g not in index), None)
    if unknown is not None:
        raise InputError(f"gold {unknown!r}: expected one of {', '.join(labels)}")
    from sklearn.metrics import f1_score

    value: Any = f1_score(
        [index[g] for g, _ in pairs],
        [index.get(a, -1) for _, a in pairs],
        labels=list(range(len(labels))),
        average="macro",
        zero_division=0.0,  # type: ignore[arg-type]  # the stub knows only the default
    )
    return float(value)


def mae(golds: Sequence[str], answers: Sequence[str], low: float = 1, high: float = 5) -> float:
    """Mean absolute error of ratings, in ``[0, high - low]``; lower is better (LaMP-3).

    An answer that is no rating in ``[low, high]`` counts as the end of the scale farthest from the gold, as LaMP does
    for what is no number.

    Raises:
        InputError: a gold is no rating in ``[low, high]``, or the lengths differ.

    Example:
        >>> mae(["5", "2"], ["4", "I can't say"])
        2.0
    """
    errors = _errors(golds, answers, low, high)
    return sum(errors) / len(errors)


def rmse(golds: Sequence[str], answers: Sequence[str], low: float = 1, high: float = 5) -> float:
    """Root of the mean squared error of ratings, in ``[0, high - low]``; lower is better (LaMP-3). See ``mae``.

    Example:
        >>> rmse(["5", "5"], ["5", "3"]) ** 2
        2.0000000000000004
    """
    errors = _errors(golds, answers, low, high)
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def chrf(golds: Sequence[str], answers: Sequence[str]) -> float:
    """Mean chrF of each answer (Popović, 2015; sacrebleu's chrF2), in [0, 1]; higher is better. The F-score, recall
    weighing twice, of shared runs of 1 to 6 characters, white space left out: it needs no words, so it reads every
    script, and a word in another form counts in part. Equal texts score 1. Two unlike texts of one language share
    letters: some 0.1 to 0.2.

    Example:
        >>> chrf(["тихий фильм"], ["тихий фильм"]), round(chrf(["тихий фильм"], ["тихие фильмы"]), 2)
        (1.0, 0.47)
    """
    scores = [_chrf(gold, answer) for gold, answer in _paired(golds, answers)]
    return sum(scores) / len(scores)


def _chrf(gold: str, answer: str) -> float:
    gold, answer = (" ".join(normalized(text, "NFC").split()) for text in (gold, answer))
    if gold == answer:
        return float(bool(gold))
    return min(1.0, float(_character_scorer().sentence_score(answer, [gold]).score) / 100)


@lru_cache(maxsize=1)
def _character_scorer() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def rouge1(golds: Sequence[str], answers: Sequence[str]) -> float:
    """Mean F1 of shared single words, in [0, 1]; higher is better (LaMP-4 to LaMP-7). No stemming, as in LaMP.

    Example:
        >>> round(rouge1(["the cat sat"], ["the dog sat"]), 3)
        0.667
    """
    pairs = _paired(golds, answers)
    return sum(_rouge("rouge1", g, a) for g, a in pairs) / len(pairs)


def rougeL(golds: Sequence[str], answers: Sequence[str]) -> float:
    """Mean F1 of the longest common word sequence, in [0, 1]; higher is better (LaMP-4 to LaMP-7). No stemming. Of a
    text of more than 20,000 words, the first and the last 10,000 count; ``official_figures`` counts 50,000.

    Example:
        >>> round(rougeL(["the cat sat"], ["sat the cat"]), 3)
        0.667
    """
    pairs = _paired(golds, answers)
    return sum(_rouge("rougeL", g, a) for g, a in pairs) / len(pairs)


def rouge_scores(kind: str, golds: Sequence[str], answers: Sequence[str]) -> list[float]:
    """ROUGE F1 of each answer by the official tokenizer, which knows a-z and 0-9 only; ``kind``: ``"rouge1"``,
    ``"rougeL"``. Of a text of more than 50,000 words, ``rougeL`` counts the first and the last 25,000, and warns."""
    pairs = _paired(golds, answers)
    return [_f1(kind, g, a, any_script=False, most_words=_MOST_OFFICIAL_WORDS, warn=True) for g, a in pairs]


def meteor(golds: Sequence[str], answers: Sequence[str], *, wordnet: Any = None) -> float:
    """Mean METEOR (Banerjee and Lavie, 2005), in [0, 1]; higher is better (LongLaMP). Equal words and stems match;
    words are those of LongLaMP's script, in other scripts than Latin those of ``words_of``.

    Args:
        wordnet: ``nltk.corpus.wordnet``: to the letter as in LongLaMP's script, where synonyms match too, only Latin
            script is cut into words, and a text against itself scores 0.5 (one word) to 1 (many). None = equal texts
            score 1, in any script, and no corpus is needed on this machine.

    Example:
        >>> round(meteor(["a quiet film about cats"], ["quiet film of cat"]), 3), meteor(["静かな映画"], ["静かな映画"])
        (0.522, 1.0)
    """
    scores = [_meteor(gold, answer, wordnet) for gold, answer in _paired(golds, answers)]
    return sum(scores) / len(scores)


def _meteor(gold: str, answer: str, wordnet: Any) -> float:
    from nltk.tokenize import NLTKWordTokenizer
    from nltk.translate.meteor_score import single_meteor_score

    if wordnet is None and gold == answer:
        return float(bool(gold))
    tokenizer: Any = NLTKWordTokenizer() if wordnet is not None or _is_latin(gold) else _Words()
    source: Any = _NoSynonyms() if wordnet is None else wordnet
    return float(single_meteor_score(tokenizer.tokenize(gold), tokenizer.tokenize(answer), wordnet=source))


class _NoSynonyms:
    def synsets(self, word: str) -> list[Any]:
        return []


def _gold_rating(gold: str, low: float, high: float) -> float:
    value = parse_rating(gold, low, high)
    if value is None:
        raise InputError(f"gold {gold!r}: expected a number from {low} to {high}")
    return value


def _errors(golds: Sequence[str], answers: Sequence[str], low: float, high: float) -> list[float]:
    errors: list[float] = []
    for gold, answer in _paired(golds, answers):
        wanted, rating = _gold_rating(gold, low, high), parse_rating(answer, low, high)
        errors.append(max(wanted - low, high - wanted) if rating is None else abs(wanted - rating))
    return errors


class _Words:
    """Words of any script, and signs such as emoji; of a text that has neither, what stands between spaces."""

    def tokenize(self, text: str) -> list[str]:
        found = [word for part in regex.split(r"(\p{S})", text) for word in (words_of(part) or [part] * _is_sign(part))]
        return found or text.split()


def _is_sign(part: str) -> bool:
    return regex.fullmatch(r"\p{S}", part) is not None


def _is_latin(text: str) -> bool:
    """Whether LaMP's official tokenizer, which knows a-z and 0-9 only, reads nearly all of a text."""
    letters = regex.findall(r"\p{L}", text)
    return bool(regex.search("[A-Za-z0-9]", text)) and 10 * sum(c.isascii() for c in letters) >= 9 * len(letters)


@cache
def _scorer(kind: str, any_script: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([kind], use_stemmer=False, tokenizer=_Words() if any_script else None)


def _rouge(kind: str, gold: str, answer: str, *, any_script: bool = False) -> float:
    """The official figure where the official tokenizer reads the gold and can tell the two texts apart."""
    if not any_script and _is_latin(gold):
        score = _f1(kind, gold, answer, any_script=False)
        if score < 1 or f"{gold}{answer}".isascii():
            return score
    return _f1(kind, gold, answer, any_script=True)


def _f1(
    kind: str, gold: str, answer: str, *, any_script: bool, most_words: int = _MOST_WORDS, warn: bool = False
) -> float:
    if kind != "rougeL":
        return float(_scorer(kind, any_script).score(gold, answer)[kind].fmeasure)
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer: Any = _Words() if any_script else DefaultTokenizer(use_stemmer=False)
    golds, answers = tokenizer.tokenize(gold), tokenizer.tokenize(answer)
    if warn and (longest := max(len(golds), len(answers))) > most_words:
        warnings.warn(
            f"rougeL of a text of {longest:,} words: its first and its last {most_words // 2:,} count; the official "
            "script counts all, in quadratic time",
            stacklevel=2,
        )
    golds, answers = _both_ends(golds, most_words), _both_ends(answers, most_words)
    if not golds or not answers:
        return 0.0
    common = _common_length(golds, answers)
    return float(fmeasure(common / len(answers), common / len(golds)))


def _both_ends(words: list[str], most: int) -> list[str]:
    return words if len(words) <= most else words[: most // 2] + words[-(most // 2) :]


def _common_length(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common sequence, bit by bit in whole numbers (Hyyrö, 2004): rouge_score's table of every
    word against every word takes half a minute for two texts of 10,000 words, this some hundredths of a second."""
    places: dict[str, int] = {}
    for place, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << place
    every = unmatched = (1 << len(one)) - 1
    for word in other:
        if matched := unmatched & places.get(word, 0):
            unmatched = ((unmatched + matched) | (unmatched - matched)) & every
    return len(one) - unmatched.bit_count()
