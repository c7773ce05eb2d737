import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.core.intervals import mean_interval, paired_difference
from persona_dspy.errors import InputError

values = st.dictionaries(
    st.text(min_size=1, max_size=3), st.lists(st.floats(0, 5), min_size=1, max_size=5), min_size=1, max_size=8
)


@settings(max_examples=25, deadline=None)
@given(values)
def test_the_value_is_the_mean_over_queries_and_lies_between_its_bounds(by_user):
    found = mean_interval(by_user, resamples=200)
    flat = [v for vs in by_user.values() for v in vs]
    assert found.value == pytest.approx(np.mean(flat))
    assert found.low <= found.high
    assert min(flat) - 1e-9 <= found.low and found.high <= max(flat) + 1e-9


def test_the_interval_is_over_users_not_queries():
    agreeing = {str(u): [float(u % 2)] * 50 for u in range(8)}  # 400 queries, but only 8 independent users
    spread = {str(n): [float(n % 2)] for n in range(400)}
    wide, narrow = mean_interval(agreeing), mean_interval(spread)
    assert wide.value == narrow.value == 0.5
    assert wide.high - wide.low > 4 * (narrow.high - narrow.low)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        users = {str(u): list(rng.random(4) < rng.beta(6, 4)) for u in range(40)}
        found = mean_interval({u: [float(x) for x in v] for u, v in users.items()}, seed=trial, resamples=300)
        covered += found.low <= 0.6 <= found.high
    assert 50 <= covered <= 60


def test_the_same_seed_gives_the_same_interval_and_one_user_has_no_width():
    data = {str(u): [u % 3 / 2.0, 1.0] for u in range(9)}
    assert mean_interval(data, seed=3) == mean_interval(data, seed=3)
    one = mean_interval({"a": [0.0, 1.0]})
    assert (one.low, one.value, one.high) == (0.5, 0.5, 0.5)
    with pytest.raises(InputError, match="at least one"):
        mean_interval({"a": []})


def test_pairing_uses_common_queries_only_and_turns_errors_round():
    mine = {("a", "1"): 0.0, ("a", "2"): 1.0, ("b", "1"): 2.0, ("c", "9"): 5.0}
    theirs = {("a", "1"): 1.0, ("a", "2"): 1.0, ("b", "1"): 1.0}
    lower = paired_difference(mine, theirs, higher_is_better=False)
    assert lower.difference.value == pytest.approx(0.0)
    assert (lower.won, lower.lost, lower.tied) == (1, 1, 0)
    higher = paired_difference(mine, theirs)
    assert higher.difference.value == pytest.approx(0.0)
    assert (higher.won, higher.lost) == (1, 1)
    assert paired_difference(mine, {("z", "1"): 1.0}) is None


def test_pairing_is_tighter_than_two_intervals_where_users_differ_from_each_other():
    base = {(str(u), "q"): u / 20 for u in range(20)}
    better = {key: value + 0.05 + 0.001 * int(key[0]) for key, value in base.items()}
    found = paired_difference(better, base)
    assert found.difference.low > 0.05
    assert found.won == 20
    alone = mean_interval({u: [v] for (u, _), v in better.items()})
    assert alone.high - alone.low > 10 * (found.difference.high - found.difference.low)
