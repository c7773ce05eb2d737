"""Elections: what a challenger costs, and what is remembered."""

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizers.acceptance import AlwaysAccept, AnchorGate, HeldOutGate, SignTestGate
from optimizers.election import Election, Mistakes
from optimizers.evidence import Challenger
from optimizers.loss import Simulated
from persona_dspy.core.persona import Persona

OLD, NEW = (Persona.from_text(text, user_id="u") for text in ("Old.", "New and longer."))


class Scripted:
    """A simulator that knows the scores of each persona by its text, and counts what it is asked."""

    concurrency = 1

    def __init__(self, **scores):
        self.scores, self.asked = scores, []

    def run(self, persona, examples):
        text = persona.bullets[0].text.split()[0].rstrip(".") if persona.bullets else "Nobody"
        self.asked += [(text, int(e.q)) for e in examples]
        return [type("S", (), {"score": self.scores[text][int(e.q)]}) for e in examples]


def standing(**values):
    return Challenger(persona=NEW, **values)


def election(simulator, gate=None, held=4):
    examples = [dspy.Example(q=str(n)).with_inputs("q") for n in range(held)]
    return Election(gate or HeldOutGate(), simulator, examples, lambda persona: persona)


def test_no_item_is_scored_twice():
    simulator = Scripted(Old=[1, 0, 1, 0], New=[1, 1, 1, 0])
    found = election(simulator)
    trial = found.stand(OLD, standing(edits=("add",)))
    assert (trial.accepted, trial.incumbent_score, trial.challenger_score) == (True, 0.5, 0.75)
    assert found.score(NEW) == [1, 1, 1, 0]
    assert (found.mean(OLD), found.mean(NEW), found.mean(Persona(user_id="u"))) == (0.5, 0.75, None)
    assert len(simulator.asked) == len(set(simulator.asked)) == 8


def test_a_challenger_that_can_no_longer_win_is_given_up():
    simulator = Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1])
    trial = election(simulator).stand(OLD, standing())
    assert not trial.accepted
    assert trial.challenger_score is None
    assert (trial.reason, trial.outcome) == ("given up after 1", "no difference")
    assert [item for who, item in simulator.asked if who == "New"] == [1], "only where the incumbent can be beaten"


def test_where_the_incumbent_is_known_its_mistakes_come_first():
    simulator = Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1])
    found = election(simulator)
    found.score(OLD)
    found.stand(OLD, standing())
    assert simulator.asked[4:] == [("New", 1)]


def test_a_gain_that_is_lost_elsewhere_does_not_win():
    found = election(Scripted(Old=[1, 0, 1, 1], New=[0, 1, 1, 1]))
    assert not found.stand(OLD, standing()).accepted


def led(old, new, gate=None):
    """The trial, and the calls after which the challenger led (None: it did not)."""
    simulator, at = Scripted(Old=old, New=new), []
    said = lambda leads: at.append((leads, len(simulator.asked)))  # noqa: E731
    trial = election(simulator, gate, len(old)).stand(OLD, standing(), leading=said)
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
    trial = election(simulator, held=8).stand(
        OLD, standing(), leading=lambda leads: told.append((leads, len(simulator.asked)))
    )
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
        assert found.stand(OLD, standing(), leading=lambda _: None).accepted == gate.judge(OLD, NEW, old, new).accepted


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
    found.stand(OLD, standing())
    assert [item for who, item in simulator.asked if who == "New"] == [2, 4, 1, 0, 3]


def test_items_the_incumbent_is_not_known_on_are_played_latest_first():
    simulator = Scripted(Old=[1, 0, 0.5, 0, 1], New=[1, 1, 1, 1, 1])
    election(simulator, AlwaysAccept(5), held=5).stand(OLD, standing())
    assert [item for who, item in simulator.asked if who == "Old"] == [4, 3, 2, 1, 0]


# --- what is kept where the gate sees neither gain nor harm ---------------------------------------------------------


@pytest.mark.parametrize(
    ("new", "accepted", "outcome"),
    [
        ([1, 0, 1, 1], True, "accepted"),
        ([1, 1, 1, 1], True, "accepted"),
        ([1, 0, 1, 0], False, "worse"),
        ([0, 1, 1, 0], False, "untested"),  # given up when one was mended and one broken
    ],
    ids=["a tie", "a gain", "one worse", "more worse than better"],
)
def test_a_harmless_challenger_is_kept_where_it_does_no_harm(new, accepted, outcome):
    trial = election(Scripted(Old=[1, 0, 1, 1], New=new)).stand(OLD, standing(harmless=True))
    assert (trial.accepted, trial.outcome) == (accepted, outcome)
    if new == [1, 0, 1, 1]:
        assert trial.reason == "does no harm"
        assert (trial.incumbent_score, trial.challenger_score) == (0.75, 0.75)


@pytest.mark.parametrize("harmless", [True, False])
def test_one_that_mends_as_many_as_it_breaks_is_not_worse(harmless):
    trial = election(Scripted(Old=[1, 0, 1, 1], New=[1, 1, 1, 0])).stand(OLD, standing(harmless=harmless))
    assert (trial.accepted, trial.outcome) == (False, "untested")


@pytest.mark.parametrize("gate", [SignTestGate(), AnchorGate(["i1"], SignTestGate())], ids=lambda g: type(g).__name__)
def test_where_a_confidence_is_asked_for_a_tie_is_not_kept(gate):
    assert not election(Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1]), gate).stand(OLD, standing(harmless=True)).accepted


class Replays:
    """What a challenger does to two recent mistakes, and to what is like them; counts how often each is asked."""

    def __init__(self, after, alike=([1.0], [1.0]), before=(0.0, 0.0)):
        self.asked = []

        def replayed(persona):
            self.asked.append(persona)
            return list(after)

        def as_scored(old, new, mended):
            self.asked.append((old, new, tuple(mended)))
            return alike

        self.mistakes = Mistakes(before=before, replayed=replayed, alike=as_scored)


def stood(replays, new=(1, 0, 1, 1), gate=None, **values):
    simulator = Scripted(Old=[1, 0, 1, 1], New=list(new))
    challenger = standing(edits=("add",), from_mistakes=True, **values)
    return election(simulator, gate).stand(OLD, challenger, replays.mistakes), simulator


@pytest.mark.parametrize(
    ("after", "outcome"), [([0, 0], "no difference"), ([0.5, 0.0], "worse"), ([0.25, 0.75], "no difference")]
)
def test_edits_that_mend_none_of_the_mistakes_cost_no_held_out_item(after, outcome):
    before = (0.5, 0.5) if any(after) else (0.0, 0.0)
    replays = Replays(after, before=before)
    trial, simulator = stood(replays, new=[1, 1, 1, 1])
    assert (trial.accepted, trial.outcome, trial.challenger_score) == (False, outcome, None)
    assert trial.reason == "mends none of 2 recent mistakes"
    assert (simulator.asked, replays.asked) == ([], [NEW])


def test_a_gain_on_the_held_out_items_needs_no_look_at_what_is_alike():
    replays = Replays([1, 0])
    trial, _ = stood(replays, new=[1, 1, 1, 1])
    assert (trial.accepted, trial.reason, trial.outcome) == (True, "strict gain", "accepted")
    assert replays.asked == [NEW]


@pytest.mark.parametrize(
    ("alike", "accepted", "reason"),
    [
        (([1.0, 0.0], [1.0, 0.0]), True, "mends 1 of 2 recent mistakes, breaks nothing"),
        (([1.0, 0.0], [0.0, 0.0]), False, "mends 1 of 2 recent mistakes, but answers to queries like them got worse"),
        (([], []), True, "mends 1 of 2 recent mistakes, breaks nothing"),
    ],
    ids=["no worse", "worse", "nothing is like them"],
)
def test_on_a_tie_edits_that_mend_are_kept_unless_what_is_alike_got_worse(alike, accepted, reason):
    replays = Replays([0, 1], alike)
    trial, _ = stood(replays)
    assert (trial.accepted, trial.reason) == (accepted, reason)
    assert replays.asked[1:] == [(OLD, NEW, (1,))], "those like the mistake that was mended, by its place"
    assert trial.outcome == ("accepted" if accepted else "no difference")


def test_on_a_tie_a_shorter_persona_must_not_make_what_is_alike_worse():
    replays = Replays([0, 1], ([1.0, 0.0], [0.0, 0.0]))
    challenger = Challenger(persona=OLD, edits=("revise",), from_mistakes=True)
    trial = election(Scripted(Old=[1, 0], New=[1, 0]), held=2).stand(NEW, challenger, replays.mistakes)
    assert (trial.accepted, len(replays.asked)) == (False, 2)


def test_edits_that_mend_and_do_harm_are_refused():
    replays = Replays([1, 1])
    trial, _ = stood(replays, new=[0, 0, 1, 1])
    assert (trial.accepted, trial.outcome) == (False, "worse")
    assert replays.asked == [NEW]


def test_what_is_harmless_is_asked_of_nothing_alike():
    replays = Replays([1, 1])
    trial, _ = stood(replays, harmless=True)
    assert trial.accepted
    assert replays.asked == [NEW]


def test_without_a_gate_mistakes_decide_nothing():
    replays = Replays([0, 0])
    trial, _ = stood(replays, new=[0, 0, 0, 0], gate=AlwaysAccept(4))
    assert trial.accepted
    assert not replays.asked


def test_where_nothing_is_held_out_the_gate_decides_without_scores():
    found = Election(AlwaysAccept(), Scripted(), [], lambda persona: persona)
    trial = found.stand(OLD, standing(edits=("add",)))
    assert (trial.accepted, trial.challenger_score, trial.outcome) == (True, None, "accepted")


# --- free text, compared with what is written without a persona -------------------------------------------------------


class Drafts(Scripted):
    """Drafts whose text is who wrote them."""

    def run(self, persona, examples):
        who = persona.bullets[0].text.split()[0].rstrip(".") if persona.bullets else "Nobody"
        self.asked += [(who, int(e.q)) for e in examples]
        return [Simulated(interaction_id=e.q, query=e.q, answer=who, gold="g", score=0.1) for e in examples]


def judged(scores, held=4, by_code=()):
    asked = []

    class Judge:
        def needed(self, example):
            return int(example.q) not in by_code

        def __call__(self, drafts, references):
            pairs = zip(drafts, references, strict=True)
            asked.append([(d.answer, r.answer, d.interaction_id, r.interaction_id) for d, r in pairs])
            return [scores[d.answer][int(d.interaction_id)] for d in drafts]

    examples = [dspy.Example(q=str(n)).with_inputs("q") for n in range(held)]
    simulator = Drafts()
    return Election(HeldOutGate(), simulator, examples, lambda persona: persona, Judge()), simulator, asked


def test_drafts_are_compared_with_those_without_a_persona_in_one_request():
    found, simulator, asked = judged({"Old": [0.5, 0.5, 0, 0.5], "New": [1, 1, 0.5, 0.5]})
    trial = found.stand(OLD, standing())
    assert (trial.accepted, trial.incumbent_score, trial.challenger_score) == (True, 0.375, 0.75)
    assert len(asked) == 2, "one for the incumbent, one for the challenger"
    assert all(reference == "Nobody" and a == b for batch in asked for _, reference, a, b in batch)
    assert len(simulator.asked) == len(set(simulator.asked)) == 12
    assert found.score(Persona(user_id="u")) == [0.5] * 4, "as good as itself"
    assert len(asked) == 2


def test_nobody_is_never_compared_with_itself():
    found, simulator, asked = judged({"New": [1, 1, 0.5, 0.5]})
    trial = found.stand(Persona(user_id="u"), standing(harmless=True))
    assert (trial.accepted, trial.incumbent_score, trial.challenger_score) == (True, 0.5, 0.75)
    assert len(asked) == 1 and len(simulator.asked) == 8


def test_only_what_its_own_score_does_not_tell_is_compared():
    found, simulator, asked = judged({"New": [1, 1, 0.5, 0.5]}, by_code=(0, 1))
    assert found.score(NEW) == [0.1, 0.1, 0.5, 0.5]
    assert [[pair[2] for pair in batch] for batch in asked] == [["2", "3"]]
    assert sorted(simulator.asked) == [("New", 0), ("New", 1), ("New", 2), ("New", 3), ("Nobody", 2), ("Nobody", 3)]
