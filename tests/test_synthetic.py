"""Synthetic users: deterministic, hidden, of every kind."""

from collections import Counter

import dspy
import pytest

from persona_dspy.testing.synthetic import KINDS, SyntheticUser, rule_following_lm


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides_everything(kind):
    first, again, other = (SyntheticUser(seed=s, kind=kind) for s in (1, 1, 2))
    assert first.interactions(9) == again.interactions(9)
    assert first.interactions(9) != other.interactions(9)
    assert first.interactions(3, start=6) == first.interactions(9)[6:]


@pytest.mark.parametrize("kind", KINDS)
def test_late_interactions_tell_the_truth_and_the_world_does_not_know_it(kind):
    user = SyntheticUser(seed=3, kind=kind)
    late = user.interactions(30, start=100)
    assert all(i.response == user.response(i.query) for i in late)
    field = next(iter(user.signature.output_fields))
    with dspy.context(lm=rule_following_lm()):
        program = dspy.Predict(user.signature)
        said = [str(program(description=i.query)[field]) for i in late[:12]]
    assert any(s != i.response for s, i in zip(said, late, strict=False))


def test_drift_changes_the_preference_once():
    user = SyntheticUser(seed=4, kind="drift", changes_at=20)
    items = user.interactions(60)
    agree = [i.response == user.response(i.query) for i in items]
    assert all(agree[20:])
    assert not all(agree[:20])


def test_noise_is_the_share_that_it_says():
    user = SyntheticUser(seed=5, noise=0.3)
    items = user.interactions(400)
    odd = sum(i.response != user.response(i.query) for i in items) / len(items)
    assert 0.18 < odd < 0.32  # a random response is right once in six


def test_a_label_bias_is_one_label_for_most():
    user = SyntheticUser(seed=6, kind="label bias")
    assert Counter(user.preference.values()).most_common(1)[0][1] >= 4
