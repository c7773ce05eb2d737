"""Elections: what a challenger costs, and what is remembered."""

import dspy
from hypothesis import given
from hypothesis import strategies as st

from optimizers.acceptance import AlwaysAccept, AnchorGate, HeldOutGate, SignTestGate
from optimizers.election import Election
from persona_dspy.core.persona import Persona

OLD, NEW = (Persona.from_text(text, user_id="u") for text in ("Old.", "New and longer."))


class Scripted:
    """A simulator that knows the scores of each persona by its text, and counts what it is asked."""

    concurrency = 1

    def __init__(self, **scores):
        self.scores, self.asked = scores, []

    def run(self, persona, examples):
        text = persona.bullets[0].text.split()[0].rstrip(".")
        self.asked += [(text, int(e.q)) for e in examples]
        return [type("S", (), {"score": self.scores[text][int(e.q)]}) for e in examples]


def election(simulator, gate=None, held=4):
    examples = [dspy.Example(q=str(n)).with_inputs("q") for n in range(held)]
    return Election(gate or HeldOutGate(), simulator, examples, lambda persona: persona)


def test_no_item_is_scored_twice():
    simulator = Scripted(Old=[1, 0, 1, 0], New=[1, 1, 1, 0])
    found = election(simulator)
    trial = found.stand(OLD, NEW, ("add",))
    assert (trial.accepted, trial.incumbent_score, trial.challenger_score) == (True, 0.5, 0.75)
    assert found.score(NEW) == [1, 1, 1, 0]
    assert (found.mean(OLD), found.mean(NEW), found.mean(Persona(user_id="u"))) == (0.5, 0.75, None)
    assert len(simulator.asked) == len(set(simulator.asked)) == 8


def test_a_challenger_that_can_no_longer_win_is_given_up():
    simulator = Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1])
    trial = election(simulator).stand(OLD, NEW, ())
    assert not trial.accepted
    assert trial.challenger_score is None
    assert trial.reason == "given up after 1"
    assert [item for who, item in simulator.asked if who == "New"] == [1], "only where the incumbent can be beaten"


def test_where_the_incumbent_is_known_its_mistakes_come_first():
    simulator = Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1])
    found = election(simulator)
    found.score(OLD)
    found.stand(OLD, NEW, ())
    assert simulator.asked[4:] == [("New", 1)]


def test_a_gain_that_is_lost_elsewhere_does_not_win():
    found = election(Scripted(Old=[1, 0, 1, 1], New=[0, 1, 1, 1]))
    assert not found.stand(OLD, NEW, ()).accepted


def led(old, new, gate=None):
    """The trial, and the calls after which the challenger led (None: it did not)."""
    simulator, at = Scripted(Old=old, New=new), []
    said = lambda leads: at.append((leads, len(simulator.asked)))  # noqa: E731
    trial = election(simulator, gate, len(old)).stand(OLD, NEW, (), said)
    assert [leads for leads, _ in at] in ([], [True])
    return trial, at[0][1] if at else None


def test_a_challenger_leads_once_three_pairs_speak_for_it_and_none_against():
    assert led([0] * 8, [1] * 8) == (led([0] * 8, [1] * 8)[0], 6)
    trial, calls = led([0, 0, 0, 0, 0, 1, 0, 0], [1] * 8)
    assert (trial.accepted, calls) == (True, 8), "what the incumbent got right is compared too"
    trial, calls = led([0, 0, 0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 0, 1, 1])
    assert (trial.accepted, calls) == (True, None), "one is worse: all items decide"
    assert led([0] * 3, [1] * 3)[1] is None, "nothing is left to come"
    for gate in (SignTestGate(), AnchorGate(["i1"]), AlwaysAccept(8)):
        assert led([0] * 8, [1] * 8, gate)[1] is None


def test_one_that_led_is_refused_where_all_items_say_so():
    trial, calls = led([1, 1, 1, 1, 0.9, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 1])
    assert calls == 6
    assert not trial.accepted


def test_a_lead_is_lost_where_what_follows_takes_it_back():
    """Three gain a little, the fourth loses more; what no one has scored yet could still make up for it."""
    told, simulator = [], Scripted(Old=[0.5] * 8, New=[0.9, 0.9, 0.9, 0.9, 0, 0.6, 0.6, 0.6])
    trial = election(simulator, held=8).stand(OLD, NEW, (), lambda leads: told.append((leads, len(simulator.asked))))
    assert told == [(True, 6), (False, 8)], "and does not come again"
    assert trial.accepted, "all items decide"


PAIRS = st.lists(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0])] * 2), min_size=2, max_size=9)


@given(PAIRS, st.booleans(), st.sampled_from([1, 2, 4]))
def test_whoever_led_the_verdict_is_the_gates_over_all_items(pairs, known, concurrency):
    old, new = ([pair[side] for pair in pairs] for side in (0, 1))
    simulator = Scripted(Old=old, New=new)
    simulator.concurrency = concurrency
    for gate in (HeldOutGate(), SignTestGate(0.75)):
        found = election(simulator, gate, len(pairs))
        if known:
            found.score(OLD)
        assert found.stand(OLD, NEW, (), lambda _: None).accepted == gate.judge(OLD, NEW, old, new).accepted


def test_perfect_is_nothing_left_to_gain():
    assert election(Scripted(Old=[1, 1, 1, 1])).perfect(OLD)
    simulator = Scripted(Old=[1, 1, 0, 1])
    assert not election(simulator).perfect(OLD)
    assert simulator.asked == [("Old", 3), ("Old", 2)], "no further than the first mistake"


def test_items_are_scored_latest_first():
    simulator = Scripted(Old=[0, 1, 1, 1], New=[1, 1, 1, 1])
    found = election(simulator)
    assert not found.perfect(OLD)
    assert simulator.asked == [("Old", 3), ("Old", 2), ("Old", 1), ("Old", 0)]


def test_the_incumbents_worst_known_item_is_played_first():
    simulator = Scripted(Old=[1, 0.5, 0, 1, 0.25], New=[1, 1, 1, 1, 1])
    found = election(simulator, AlwaysAccept(5), held=5)
    found.score(OLD)
    found.stand(OLD, NEW, ())
    assert [item for who, item in simulator.asked if who == "New"] == [2, 4, 1, 0, 3]


def test_items_the_incumbent_is_not_known_on_are_played_latest_first():
    simulator = Scripted(Old=[1, 0, 0.5, 0, 1], New=[1, 1, 1, 1, 1])
    election(simulator, AlwaysAccept(5), held=5).stand(OLD, NEW, ())
    assert [item for who, item in simulator.asked if who == "Old"] == [4, 3, 2, 1, 0]
