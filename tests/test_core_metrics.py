"""Our metrics on random predictions against LaMP's official formulas, written here from their description.

Official: labels are mapped to their index, what is no label to -1; F1 is macro over all labels; a rating that is no
number counts as the end of the scale farther from the gold, and one out of range as it is.
"""

import math
import random

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from persona_dspy.core import metrics
from persona_dspy.data import get_task

SEEDS = range(20)


def official_labels(labels, golds, answers):
    gold = [labels.index(g) for g in golds]
    answer = [labels.index(a.strip()) if a.strip() in labels else -1 for a in answers]
    f1 = []
    for label in range(len(labels)):
        hit = sum(g == a == label for g, a in zip(gold, answer, strict=True))
        shown, there = answer.count(label), gold.count(label)
        f1.append(2 * hit / (shown + there) if shown + there else 0.0)
    return sum(g == a for g, a in zip(gold, answer, strict=True)) / len(gold), sum(f1) / len(labels)


def official_ratings(golds, answers):
    def number(answer, gold):
        try:
            return float(answer)
        except ValueError:
            return 1.0 if abs(1 - float(gold)) > abs(5 - float(gold)) else 5.0

    errors = [float(g) - number(a, g) for g, a in zip(golds, answers, strict=True)]
    return float(np.mean(np.abs(errors))), math.sqrt(float(np.mean(np.square(errors))))


@pytest.mark.parametrize("name", ["lamp-1", "lamp-2m", "lamp-2n"])
@pytest.mark.parametrize("seed", SEEDS)
def test_accuracy_and_f1(name, seed):
    rng, task = random.Random(seed), get_task(name)
    golds = [rng.choice(task.labels) for _ in range(60)]
    noise = ["", "none of them", f" {task.labels[0]} ", task.labels[0].upper()]
    answers = [g if rng.random() < 0.4 else rng.choice([*task.labels, *noise]) for g in golds]
    accuracy, f1 = official_labels(list(task.labels), golds, answers)
    assert task.evaluate(golds, answers) == pytest.approx({"accuracy": accuracy, "macro_f1": f1})


@pytest.mark.parametrize("seed", SEEDS)
def test_mae_and_rmse(seed):
    rng, task = random.Random(seed), get_task("lamp-3")
    golds = [str(rng.randint(1, 5)) for _ in range(60)]
    answers = [rng.choice(["1", "2", "3", "4", "5", "4.5", "", "I can't say"]) for _ in golds]
    mae, rmse = official_ratings(golds, answers)
    assert task.evaluate(golds, answers) == pytest.approx({"mae": mae, "rmse": rmse})


def test_a_rating_out_of_range_is_where_ours_differs_from_the_official_script():
    assert official_ratings(["1"], ["9"])[0] == 8.0
    assert get_task("lamp-3").evaluate(["1"], ["9"])["mae"] == 4.0, "the far end of the scale, as any unreadable answer"


@pytest.mark.parametrize("seed", SEEDS)
def test_rouge_is_the_mean_that_the_official_bootstrap_scatters_about(seed):
    rng, task = random.Random(seed), get_task("lamp-4")
    words = ["court", "rules", "on", "trade", "after", "a", "long", "storm", "in", "the", "city"]
    golds, answers = ([" ".join(rng.choices(words, k=rng.randint(2, 9))) for _ in range(60)] for _ in range(2))
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    scores = [scorer.score(g, a) for g, a in zip(golds, answers, strict=True)]
    found = task.evaluate(golds, answers)
    draws = np.random.default_rng(seed)
    for name in ("rouge1", "rougeL"):
        values = np.array([s[name].fmeasure for s in scores])
        assert found[name] == pytest.approx(values.mean())
        median = np.median([draws.choice(values, len(values)).mean() for _ in range(1000)])  # the official figure
        assert found[name] == pytest.approx(median, abs=0.01)


@pytest.mark.parametrize("text", ["👍", "?!", "Ñé", "Привет, мир", "今日は", "สวัสดี", "नमस्ते दुनिया", "مرحبا"])
def test_a_text_in_any_script_scores_one_against_itself(text):
    assert metrics.rouge1([text], [text]) == metrics.rougeL([text], [text]) == metrics.text_overlap(text, text) == 1
