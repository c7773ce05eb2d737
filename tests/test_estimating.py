"""An estimate against what is then paid."""

import dspy
import pytest

from persona_dspy.judge import Experiment, estimate_evaluation
from persona_dspy.lm import rehearsal_lm
from persona_dspy.testing import SyntheticUser

SYSTEMS = ["direct", "rag", "pag", "persona", "persona@no-alignment"]


def past(users=5, n=16):
    return [i for u in range(users) for i in SyntheticUser(seed=u, user_id=f"s{u}").interactions(n)]


@pytest.mark.slow
def test_an_estimate_is_near_what_an_lm_that_errs_takes_and_sends_nothing(tmp_path):
    experiment = Experiment(past(), systems=SYSTEMS, lm=rehearsal_lm(), out=tmp_path / "o", references=False)
    found = estimate_evaluation(experiment)
    assert not (tmp_path / "o").exists(), "nothing is written"
    paid = experiment.run()
    for system, usage in found.parts:
        took = sum(r.calls for r in paid.answers if r.system == system)
        assert 0.7 * took <= usage.calls <= 1.4 * took, system
    took = sum(r.calls for r in paid.answers)
    assert 0.75 * took <= found.calls <= 1.3 * took
    assert estimate_evaluation(experiment).calls == 0, "all is answered"


def test_an_estimate_of_what_is_left(tmp_path):
    lm = rehearsal_lm()
    Experiment(past(), systems=["direct"], lm=lm, out=tmp_path, references=False).run()
    found = estimate_evaluation(Experiment(past(), systems=["direct", "rag"], lm=lm, out=tmp_path, references=False))
    assert {name: usage.calls for name, usage in found.parts} == {"direct": 0, "rag": 20}
    assert found.usd is None


def test_a_local_model_is_not_fetched_for_an_estimate_and_a_known_price_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path / "none"))
    options = {"systems": ["direct"], "out": tmp_path / "o"}
    assert estimate_evaluation(Experiment(past(2), lm="local", **options)).usd is None
    priced = estimate_evaluation(Experiment(past(2), lm=dspy.LM("openai/gpt-4o-mini"), **options))
    assert 0 < priced.usd < 0.01
