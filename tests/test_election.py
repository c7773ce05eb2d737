"""Elections: what a challenger costs, and what is remembered."""

import dspy

from optimizers.acceptance import HeldOutGate
from optimizers.election import Election
from persona_dspy.persona import Persona

OLD, NEW = (Persona.from_text(text, user_id="u") for text in ("Old.", "New and longer."))
HELD = [dspy.Example(q=str(n)).with_inputs("q") for n in range(4)]


class Scripted:
    """A simulator that knows the scores of each persona by its text, and counts what it is asked."""

    def __init__(self, **scores):
        self.scores, self.asked = scores, []

    def run(self, persona, examples):
        text = persona.bullets[0].text.split()[0].rstrip(".")
        self.asked += [(text, e.q) for e in examples]
        return [type("S", (), {"score": self.scores[text][int(e.q)]}) for e in examples]

    def until(self, persona, examples, stop):
        found = []
        for example in examples:
            found += [s.score for s in self.run(persona, [example])]
            if stop(found):
                break
        return found


def election(simulator):
    made = Election(HeldOutGate(), simulator, HELD, lambda persona: persona)
    made.install(OLD)
    return made


def test_the_winner_is_the_one_to_beat_and_is_not_scored_again():
    simulator = Scripted(Old=[1, 0, 1, 0], New=[1, 1, 1, 0])
    found = election(simulator)
    trial = found.stand(OLD, NEW, ("add",))
    assert (trial.accepted, trial.incumbent_score, trial.challenger_score) == (True, 0.5, 0.75)
    assert found.scores == [1, 1, 1, 0]
    calls = len(simulator.asked)
    assert found.install(NEW) == 0.75
    assert len(simulator.asked) == calls == 8


def test_a_challenger_that_can_no_longer_win_is_given_up():
    simulator = Scripted(Old=[1, 0, 1, 1], New=[1, 0, 1, 1])
    trial = election(simulator).stand(OLD, NEW, ())
    assert not trial.accepted
    assert trial.challenger_score is None
    assert trial.reason == "given up after 1"
    assert simulator.asked[-1] == ("New", "1"), "what the incumbent gets wrong comes first"


def test_a_gain_that_is_lost_elsewhere_does_not_win():
    found = election(Scripted(Old=[1, 0, 1, 1], New=[0, 1, 1, 1]))
    assert not found.stand(OLD, NEW, ()).accepted
    assert found.scores == [1, 0, 1, 1]


def test_perfect_is_nothing_left_to_gain():
    assert election(Scripted(Old=[1, 1, 1, 1])).perfect
    assert not election(Scripted(Old=[1, 1, 1, 0])).perfect
