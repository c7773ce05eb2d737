"""Golden tests: our figures against the official scripts' formulas, written here by us, on random predictions."""

import math
import random

import pytest

from persona_dspy.core import official_figures
from persona_dspy.core.metrics import accuracy, macro_f1, mae, meteor, rmse, rouge1, rougeL
from persona_dspy.data import get_task
from persona_dspy.errors import InputError

WORDS = ["the", "a", "quiet", "film", "heist", "of", "lost", "moon", "ghost", "Ghost,", "don't", "stop.", "1999"]


def test_labels_are_the_official_figures():
    dice, task = random.Random(0), get_task("lamp-2m")
    golds = [dice.choice(task.labels) for _ in range(200)]
    answers = [dice.choice([g, " " + g + " ", dice.choice(task.labels), "not a tag", ""]) for g in golds]
    pairs = [(g, a.strip()) for g, a in zip(golds, answers, strict=True)]
    right = sum(g == a for g, a in pairs) / 200
    f1 = []
    for label in task.labels:
        hit = sum(g == a == label for g, a in pairs)
        of = sum(g == label for g, _ in pairs) + sum(a == label for _, a in pairs)
        f1.append(2 * hit / of if of else 0.0)
    for found in (task.official(golds, answers), task.evaluate(golds, answers)):
        assert found == pytest.approx({"accuracy": right, "macro_f1": sum(f1) / len(f1)})
    assert accuracy(golds, answers) == right and macro_f1(golds, answers, task.labels) == found["macro_f1"]


def test_ratings_differ_from_the_official_figures_only_out_of_range():
    dice, task = random.Random(1), get_task("lamp-3")
    golds = [str(dice.randint(1, 5)) for _ in range(300)]
    answers = [dice.choice([g, str(dice.randint(1, 5)), "4.5", "I'd say 4", "", "9", "-2"]) for g in golds]

    def script(gold, answer):
        try:
            return abs(float(answer) - float(gold))
        except ValueError:  # no number: the end of the scale farthest from the gold
            return max(float(gold) - 1, 5 - float(gold))

    errors = [script(g, a) for g, a in zip(golds, answers, strict=True)]
    root = math.sqrt(sum(e * e for e in errors) / 300)
    assert task.official(golds, answers) == pytest.approx({"mae": sum(errors) / 300, "rmse": root})
    assert mae(golds, answers) < sum(errors) / 300, "ours: what is out of range is no rating"
    inside = [(g, a) for g, a in zip(golds, answers, strict=True) if a not in ("9", "-2")]
    ours, theirs = task.evaluate(*zip(*inside, strict=True)), task.official(*zip(*inside, strict=True))
    assert ours == pytest.approx(theirs) and rmse(*zip(*inside, strict=True)) == ours["rmse"]
    with pytest.raises(InputError, match="fails on it"):
        task.official(["1"], ["nan"])


def longest_common(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


def test_rouge_is_the_formula_and_officially_the_median_of_a_bootstrap():
    dice, task = random.Random(2), get_task("lamp-4")
    golds, answers = ([" ".join(dice.choices(WORDS, k=dice.randint(3, 9))) for _ in range(60)] for _ in range(2))
    ones, longs = [], []
    for gold, answer in zip(golds, answers, strict=True):
        g, a = ("".join(c if c.isalnum() else " " for c in t.lower()).split() for t in (gold, answer))
        both = sum(min(g.count(w), a.count(w)) for w in set(g))
        for scores, common in ((ones, both), (longs, longest_common(g, a))):
            scores.append(2 * common / (len(g) + len(a)))
    assert rouge1(golds, answers) == pytest.approx(sum(ones) / 60)
    assert rougeL(golds, answers) == pytest.approx(sum(longs) / 60)
    found = task.official(golds, answers)
    assert found == task.official(golds, answers) != task.official(golds, answers, seed=1)
    assert found == pytest.approx(task.evaluate(golds, answers), abs=0.01)
    russian = ["тихий фильм"]
    assert task.evaluate(russian, russian)["rouge1"] == 1 and task.official(russian, russian)["rouge1"] == 0


def test_meteor_is_the_formula_for_equal_words_and_stems():
    precision, recall, chunks, matches = 3 / 4, 3 / 5, 2, 3  # quiet film | cats, whose stem is cat
    mean = 10 * precision * recall / (recall + 9 * precision)
    found = meteor(["a quiet film about cats"], ["quiet film of cat"])
    assert found == pytest.approx(mean * (1 - 0.5 * (chunks / matches) ** 3))
    assert meteor(["a film"], ["rivers"]) == 0 and meteor(["a film"], ["a film"]) == 1


def test_meteor_with_synonyms_needs_wordnet_and_says_what_to_type():
    from nltk.corpus import wordnet

    try:
        wordnet.synsets("word")
    except LookupError:
        with pytest.raises(InputError, match=r"nltk\.downloader wordnet"):
            official_figures(["meteor"], ["a car"], ["an automobile"])
    else:
        assert official_figures(["meteor"], ["car"], ["automobile"])["meteor"] > meteor(["car"], ["automobile"]) == 0


def test_an_unknown_metric_is_named():
    with pytest.raises(InputError, match=r"'bleu'.*accuracy"):
        official_figures(["bleu"], ["a"], ["a"])
