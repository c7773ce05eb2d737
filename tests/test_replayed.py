"""Recorded answers, replayed."""

import dspy
import pytest
from tree import ROOT

from optimizers import PersonaAlignment
from persona_dspy.agent import PersonaAgent
from persona_dspy.data import read_users, task_from_text
from persona_dspy.errors import InputError, ModelError
from persona_dspy.lm import is_small, replayed_lm, resolve_lm
from persona_dspy.testing import FakeLM


def test_what_was_asked_once_is_answered_again_without_anybody(tmp_path):
    file = tmp_path / "answers.jsonl"
    asked = FakeLM(lambda prompt: {"answer": "42"})
    with dspy.context(lm=replayed_lm(file, source=asked)):
        first = dspy.Predict("question -> answer")(question="6 x 7?").answer
    lm = resolve_lm(f"replayed:{file}")
    assert lm.model == "replayed/answers" and not is_small(lm)
    with dspy.context(lm=lm):
        again = dspy.Predict("question -> answer")(question="6 x 7?").answer
        with pytest.raises(Exception, match="no answer recorded to a request that ends"):
            dspy.Predict("question -> answer")(question="6 x 8?")
    assert (first, again) == ("42", "42") and len(asked.engine.calls) == 1


def test_a_record_that_is_none(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        replayed_lm(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_text('{"key": "a", "answer": "b"}\nno json\n')
    with pytest.raises(ModelError, match=r"bad\.jsonl:2: expected"):
        replayed_lm(tmp_path / "bad.jsonl")


def test_a_persona_learned_from_a_record_is_asked_with_a_model_that_runs():
    with pytest.raises(InputError, match="expected a model that runs"):
        resolve_lm("replayed/answers")


def test_the_record_of_the_demo_fits_the_prompts():
    """Where it does not: ``persona-dspy compile examples/support_agents.jsonl --task "mail -> reply" --lm
    replayed:examples/support_agents.answers.jsonl@openai/gpt-4o --out /tmp/personas`` asks what is missing."""
    record = ROOT / "examples" / "support_agents.answers.jsonl"
    task = task_from_text("mail -> reply")
    users = list(read_users(ROOT / "examples" / "support_agents.jsonl"))
    with dspy.context(lm=resolve_lm(f"replayed:{record}")):
        for user in users:
            agent = PersonaAgent(task.signature(), history=user.interactions, user_id=user.user_id)
            found = PersonaAlignment(progress=False).compile(agent, trainset=agent.examples())
            assert found.alignment.scores.final > found.alignment.scores.initial
            assert len(found.persona.value.bullets) >= 5
    assert len(users) == 6
