"""Tests over users, against scipy's own and against what is known by hand."""

import math
import random
from itertools import product

import numpy as np
import pytest
from scipy.stats import ttest_rel

from persona_dspy.errors import InputError
from persona_dspy.judge.significance import compare, holm, power, smallest_difference


def scores(name, users, queries, chance, seed):
    rng = random.Random(f"{name}{seed}")
    return {(f"u{u}", f"q{q}"): float(rng.random() < chance) for u in range(users) for q in range(queries)}


def test_the_exact_p_is_that_of_all_ways_to_flip_users():
    values = {"a": scores("a", 9, 3, 0.7, 1), "b": scores("b", 9, 3, 0.4, 1)}
    found = compare("a", "b", values)
    sums = [sum(values["a"][f"u{u}", f"q{q}"] - values["b"][f"u{u}", f"q{q}"] for q in range(3)) for u in range(9)]
    seen = abs(sum(sums))
    flips = [abs(sum(s * x for s, x in zip(signs, sums, strict=True))) for signs in product((1, -1), repeat=9)]
    assert found.p == pytest.approx(sum(f >= seen - 1e-9 for f in flips) / len(flips))
    assert found.users == 9
    means = [s / 3 for s in sums]
    assert found.effect == pytest.approx(np.mean(means) / np.std(means, ddof=1))


def test_many_users_agree_with_the_t_test_and_the_seed_decides():
    rng = random.Random(2)
    values = {
        name: {(f"u{u}", f"q{q}"): rng.gauss(mean, 1) for u in range(60) for q in range(4)}
        for name, mean in (("a", 0.2), ("b", 0.0))
    }
    found = compare("a", "b", values, seed=3)
    assert found == compare("a", "b", values, seed=3)
    means = {name: [np.mean([v[f"u{u}", f"q{q}"] for q in range(4)]) for u in range(60)] for name, v in values.items()}
    assert found.p == pytest.approx(ttest_rel(means["a"], means["b"]).pvalue, abs=0.02)


def test_for_errors_lower_is_better_and_ties_show_nothing():
    values = {"a": {("u", "1"): 1.0, ("v", "1"): 0.0}, "b": {("u", "1"): 2.0, ("v", "1"): 0.0}}
    assert compare("a", "b", values, higher_is_better=False).difference.value == 0.5
    same = compare("a", "a", values)
    assert (same.p, same.effect, same.difference.value) == (1.0, 0.0, 0.0)
    assert compare("a", "c", {**values, "c": {("w", "9"): 1.0}}) is None


@pytest.mark.slow
def test_noise_is_called_a_difference_at_the_level_and_no_oftener():
    alarms = 0
    for seed in range(120):
        values = {"a": scores("a", 12, 2, 0.5, seed), "b": scores("b", 12, 2, 0.5, seed)}
        alarms += compare("a", "b", values).p <= 0.05
    assert alarms <= 13  # 6 expected; 14 or more happen one time in 300


def test_holm_by_hand():
    zero = {(f"u{n}", "q"): 0.0 for n in range(8)}
    others = {f"s{k}": {(f"u{n}", "q"): float(n < k) for n in range(8)} for k in (8, 7, 2)}
    found = [compare(name, "z", {**others, "z": zero}) for name in others]
    p = [c.p for c in found]
    assert p == sorted(p)
    adjusted = [c.p_adjusted for c in holm(list(reversed(found)))]
    assert adjusted == [max(3 * p[0], 2 * p[1], p[2]), max(3 * p[0], 2 * p[1]), 3 * p[0]]
    assert holm([]) == []


def test_power_is_what_simulation_sees():
    rng, seen, users = np.random.default_rng(1), 0, 26
    for _ in range(2000):
        drawn = rng.normal(0.05, 0.17, users)
        t = drawn.mean() / (drawn.std(ddof=1) / math.sqrt(users))
        seen += abs(t) > 2.0595  # t at .975 with 25 degrees of freedom
    assert power(0.05, 0.17, users) == pytest.approx(seen / 2000, abs=0.03)
    assert power(smallest_difference(0.17, users), 0.17, users) == pytest.approx(0.8)
    assert power(-0.05, 0.17, users) == power(0.05, 0.17, users)
    assert 0.79 < power(smallest_difference(0.2, 2), 0.2, 2) < 0.81
    with pytest.raises(InputError, match="2 users"):
        power(0.1, 0.1, 1)
