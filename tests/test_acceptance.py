"""Gates: what they hold out, and who wins."""

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.acceptance import AlwaysAccept, AnchorGate, HeldOutGate, KFoldGate, SignTestGate, gate_for, sign_test
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError

SHORT = Persona.from_text("Likes tea.", user_id="u")
LONG = Persona.from_text("Likes tea, and says so at length whenever anybody asks.", user_id="u")
GATES = [HeldOutGate(), HeldOutGate(3), KFoldGate(), KFoldGate(2), SignTestGate(), SignTestGate(0.75)]
SCORES = st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8)


def examples(n):
    return [dspy.Example(q=str(i), interaction_id=f"i{i}").with_inputs("q") for i in range(n)]


def ids(items):
    return [e.interaction_id for e in items]


@pytest.mark.parametrize("gate", GATES, ids=lambda g: type(g).__name__)
@pytest.mark.parametrize("n", [4, 5, 7, 12, 40])
def test_splits_are_disjoint_complete_and_in_order(gate, n):
    for split in gate.splits(examples(n)):
        assert split.held
        assert len(split.fit) >= len(split.held) - 1
        assert sorted([*ids(split.fit), *ids(split.held)]) == sorted(ids(examples(n)))
        for part in (split.fit, split.held):
            assert ids(part) == sorted(ids(part), key=lambda i: int(i[1:]))


@pytest.mark.parametrize("gate", GATES, ids=lambda g: type(g).__name__)
def test_three_interactions_are_too_few_to_hold_any_out(gate):
    assert [s.held for s in gate.splits(examples(3))] == [[]]


def test_the_latest_are_held_out():
    assert ids(HeldOutGate(2).splits(examples(9))[0].held) == ["i7", "i8"]
    assert len(HeldOutGate().splits(examples(400))[0].held) == 8


@pytest.mark.parametrize(("n", "folds"), [(4, 2), (6, 3), (8, 4), (11, 4)])
def test_k_fold_holds_everything_out_once(n, folds):
    splits = KFoldGate().splits(examples(n))
    assert len(splits) == folds
    assert sorted(i for s in splits for i in ids(s.held)) == sorted(ids(examples(n)))
    assert min(len(s.held) for s in splits) >= 2
    assert f"i{n - 1}" in ids(splits[0].held), "the latest judge first"


def test_tiny_histories_are_judged_in_folds():
    assert isinstance(gate_for(11), KFoldGate)
    assert type(gate_for(12)) is HeldOutGate


def test_a_strict_gain_wins_and_a_tie_keeps_the_shorter_persona():
    gate = HeldOutGate()
    assert gate.judge(SHORT, LONG, [0, 1], [1, 1]).accepted
    assert not gate.judge(SHORT, LONG, [0, 1], [1, 0]).accepted
    assert gate.judge(LONG, SHORT, [0, 1], [1, 0]).accepted
    assert not gate.judge(SHORT, LONG, [1, 1], [1, 0]).accepted


@pytest.mark.parametrize(
    ("better", "worse", "p"), [(4, 0, 0.0625), (3, 0, 0.125), (3, 1, 0.3125), (0, 0, 1.0), (8, 0, 1 / 256)]
)
def test_the_sign_test_is_the_binomial_tail(better, worse, p):
    assert sign_test(better, worse) == pytest.approx(p)


def test_the_sign_test_needs_its_confidence():
    before = [0.0] * 4 + [1.0] * 4
    three, four = [1.0] * 3 + [0.0] + [1.0] * 4, [1.0] * 8
    assert not SignTestGate(0.9).judge(SHORT, LONG, before, three).accepted
    assert SignTestGate(0.8).judge(SHORT, LONG, before, three).accepted
    assert SignTestGate(0.9).judge(SHORT, LONG, before, four).accepted
    assert "4 better, 0 worse" in SignTestGate(0.9).judge(SHORT, LONG, before, four).reason


def test_many_small_gains_do_not_outweigh_the_mean():
    assert not SignTestGate(0.5).judge(SHORT, LONG, [0.5, 0.5, 0.5, 1.0], [0.51, 0.51, 0.51, 0.0]).accepted


@pytest.mark.parametrize("gate", GATES, ids=lambda g: type(g).__name__)
@given(pairs=SCORES)
def test_what_is_called_hopeless_would_not_have_won(gate, pairs):
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    for seen in range(len(pairs)):
        if gate.hopeless(SHORT, LONG, before, dict(enumerate(after[:seen]))):
            assert not gate.judge(SHORT, LONG, before, after).accepted


@given(pairs=SCORES)
def test_what_anchors_call_hopeless_would_not_have_won(pairs):
    gate = AnchorGate([f"i{len(pairs) - 1}"])
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    for seen in range(len(pairs)):
        late_first = dict(list(enumerate(after))[::-1][:seen])
        if gate.hopeless(SHORT, LONG, before, late_first):
            assert not gate.judge(SHORT, LONG, before, after).accepted


def test_anchors_are_held_out_and_must_not_get_worse():
    gate = AnchorGate(["i1", "i2"], HeldOutGate(2))
    split = gate.splits(examples(10))[0]
    assert ids(split.held) == ["i8", "i9", "i1", "i2"]
    assert not {"i1", "i2"} & set(ids(split.fit))
    lost = gate.judge(SHORT, LONG, [0, 0, 1, 1], [1, 1, 1, 0])
    assert not lost.accepted
    assert lost.reason == "1 anchor lost"
    assert gate.judge(SHORT, LONG, [0, 0, 1, 1], [1, 0, 1, 1]).accepted


def test_unknown_anchors_are_named():
    with pytest.raises(InputError, match="'nobody'"):
        AnchorGate(["nobody"]).splits(examples(8))


def test_without_a_gate_everything_passes():
    gate = AlwaysAccept(2)
    assert ids(gate.splits(examples(6))[0].held) == ["i4", "i5"]
    assert AlwaysAccept().splits(examples(6))[0].held == []
    assert gate.judge(SHORT, LONG, [1, 1], [0, 0]).accepted
    assert not gate.hopeless(SHORT, LONG, [1, 1], {0: 0.0})


@pytest.mark.parametrize("gate", [HeldOutGate(), KFoldGate()], ids=lambda g: type(g).__name__)
@given(pairs=SCORES)
def test_what_does_no_harm_is_allowed_and_nothing_else(gate, pairs):
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    assert gate.allows(before, after) == all(a >= b for b, a in pairs)


@given(pairs=SCORES)
def test_only_a_gain_at_its_confidence_counts_for_a_sign_test(pairs):
    before, after = [b for b, _ in pairs], [a for _, a in pairs]
    assert not SignTestGate(0.5).allows(before, after)
    assert AlwaysAccept().allows(before, after)
    assert not any(gate.leads(before, after) for gate in (SignTestGate(0.5), AlwaysAccept(), AnchorGate(["i1"])))


def test_anchors_allow_what_they_and_their_gate_allow():
    gate = AnchorGate(["i1"])
    assert gate.allows([0, 1, 1], [0, 1, 1])
    assert not gate.allows([0, 1, 1], [1, 1, 0]), "an anchor is lost"
    assert not gate.allows([0, 1, 1], [0, 0, 1]), "a held-out item is"
    assert not AnchorGate(["i1"], SignTestGate()).allows([0, 1, 1], [1, 1, 1])
    assert AnchorGate([]).allows([0], [0])


def test_three_better_and_none_worse_lead():
    gate = HeldOutGate()
    assert gate.leads([0, 0, 0, 1], [1, 1, 1, 1])
    assert not gate.leads([0, 0, 1], [1, 1, 1])
    assert not gate.leads([0, 0, 0, 1], [1, 1, 1, 0.5])


def test_the_most_that_is_held_out_may_be_set():
    assert len(HeldOutGate(most=5).splits(examples(400))[0].held) == 5
    assert len(gate_for(400, most=12).splits(examples(400))[0].held) == 12
    assert len(gate_for(16, most=12).splits(examples(16))[0].held) == 4
    with pytest.raises(InputError, match="most=1"):
        HeldOutGate(most=1)


@pytest.mark.parametrize("make", [lambda: HeldOutGate(0), lambda: KFoldGate(1), lambda: SignTestGate(1.0)])
def test_impossible_settings_are_refused(make):
    with pytest.raises(InputError, match="expected"):
        make()
