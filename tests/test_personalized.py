"""personalize(): any DSPy program under a persona, unchanged, under every adapter."""

import asyncio
import json
from typing import Literal

import dspy
import pytest
from requests_seen import messages, seen_lm

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import personalize
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Persona
from persona_dspy.errors import InputError
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

PERSONA = Persona.from_text("Prefers short answers.", user_id="ana")
ADAPTERS = [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter]
PAST = [Interaction(user_id="ana", query=f"question {n}?", response=f"own answer {n}", id=str(n)) for n in range(4)]


class Typed(dspy.Signature):
    """Judge the question."""

    question: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()


class RAG(dspy.Module):
    """A user's own two stages with plain code between."""

    def __init__(self):
        super().__init__()
        self.stages = {"rewrite": dspy.Predict("question -> search_words")}
        self.answer = dspy.ChainOfThought("passages: list[str], question -> answer")

    def forward(self, question):
        words = self.stages["rewrite"](question=question).search_words
        return self.answer(passages=[f"about {words}"], question=question)

    async def aforward(self, question):
        words = (await self.stages["rewrite"].acall(question=question)).search_words
        return await self.answer.acall(passages=[f"about {words}"], question=question)


def look(query: str) -> str:
    """Look something up."""
    return f"found {query}"


def compiled():
    """A program that another optimizer of DSPy's compiled: demos it chose, instructions it wrote."""
    program = dspy.ChainOfThought(Typed)
    program.predict.signature = program.predict.signature.with_instructions("Instructions that GEPA wrote.")
    trainset = [dspy.Example(question=f"demo {n}?", mood="good").with_inputs("question") for n in range(3)]
    made = dspy.LabeledFewShot(k=2).compile(program, trainset=trainset)
    made._compiled = True  # as DSPy's other optimizers do
    return made


PROGRAMS = {
    "Predict": (lambda: dspy.Predict("question -> answer"), 1),
    "ChainOfThought, typed": (lambda: dspy.ChainOfThought(Typed), 1),
    "ReAct": (lambda: dspy.ReAct("question -> answer", tools=[look]), 3),
    "RAG": (RAG, 2),
    "compiled": (compiled, 1),
}


def lm(prompt):
    if "next_tool_name" in prompt.outputs:
        done = "observation_0" in prompt.user
        args = {} if done else {"query": "x"}
        return {"next_thought": "t", "next_tool_name": "finish" if done else "look", "next_tool_args": args}
    return {name: "good" if name == "mood" else f"the {name}" for name in prompt.outputs}


def ran(program, adapter, how="sync", question="well?"):
    model = seen_lm(lm)
    with dspy.context(lm=model, adapter=adapter):
        answer = program(question=question) if how == "sync" else asyncio.run(program.acall(question=question))
    return answer, [messages(r) for r in model.engine.requests]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_predictor_gets_the_persona_and_nothing_else_changes(name, adapter, how):
    made, calls = PROGRAMS[name]
    program = made()
    state = json.dumps(program.dump_state(), sort_keys=True)
    answer, seen = ran(personalize(program, persona=PERSONA), adapter(), how)
    plain, before = ran(program, adapter(), how)
    assert len(seen) == len(before) == calls
    for ours, theirs in zip(seen, before, strict=True):
        assert ours[0] == ("system", f"{theirs[0][1]}\n\n{PERSONA.render()}")
        assert ours[1:] == theirs[1:]
    assert answer.toDict() == plain.toDict() or name == "ReAct"
    assert json.dumps(program.dump_state(), sort_keys=True) == state
    assert [c.role for c in answer.trace.calls] == ["respond"] * calls


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_compiled_program_keeps_demos_and_instructions(adapter):
    _, (seen,) = ran(personalize(compiled(), persona=PERSONA), adapter())
    assert "Instructions that GEPA wrote." in seen[0][1]
    assert [role for role, _ in seen] == ["system", *["user", "assistant"] * 2, "user"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_saving_and_loading_keeps_all_of_it(name, tmp_path):
    made, _ = PROGRAMS[name]
    mine = personalize(made(), persona=PERSONA)
    mine.persona.value = Persona.from_text("Learned later.", user_id="ana")
    mine.save(tmp_path / "mine.json")
    fresh = personalize(PROGRAMS["ChainOfThought, typed"][0]() if name == "compiled" else made(), user_id="ana")
    fresh.load(tmp_path / "mine.json")
    _, before = ran(mine, dspy.ChatAdapter())
    _, after = ran(fresh, dspy.ChatAdapter())
    assert before == after and "Learned later." in after[0][0][1]


def test_a_compiled_part_inside_a_program_is_saved_too(tmp_path):
    class Outer(dspy.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, question):
            return self.inner(question=question)

    whole = Outer(compiled())
    mine = personalize(whole, persona=PERSONA)
    mine.save(tmp_path / "mine.json")
    fresh = personalize(Outer(dspy.ChainOfThought(Typed)), user_id="ana")
    fresh.load(tmp_path / "mine.json")
    assert len(fresh.program.inner.predict.demos) == 2
    assert whole.inner._compiled and not mine.program.inner._compiled  # the user's own stays frozen


def test_one_program_serves_two_users():
    shared = dspy.Predict("question -> answer")
    ana = personalize(shared, persona=PERSONA)
    bob = personalize(shared, persona=Persona.from_text("Loves long ones.", user_id="bob"))
    assert ana.program is bob.program is shared
    for program, own, other in ((ana, "short", "long"), (bob, "long", "short"), (ana, "short", "long")):
        _, (seen,) = ran(program, dspy.ChatAdapter())
        assert own in seen[0][1] and other not in seen[0][1]


def test_episodes_go_only_to_predictors_about_the_same():
    mine = personalize(RAG(), history=PAST, persona=PERSONA, fields=("question", "answer"), recall_k=2)
    answer, (rewrite, respond) = ran(mine, dspy.ChatAdapter(), question="question 2?")
    assert len(rewrite) == 2
    assert [role for role, _ in respond] == ["system", *["user", "assistant"] * 2, "user"]
    assert "question 2?" in respond[3][1] and "own answer 2" in respond[4][1]
    assert answer.trace.recalled[0].id == "2"


def test_a_full_context_drops_episodes():
    mine = personalize(dspy.Predict("question -> answer"), history=PAST, recall_k=4, adapter=dspy.ChatAdapter())
    _, (seen,) = ran(mine, None)
    size = sum(len(text) for _, text in seen)
    for how in ("sync", "async"):
        tight = seen_lm(lm, limit=size - 10)
        with dspy.context(lm=tight):
            done = mine(question="well?") if how == "sync" else asyncio.run(mine.acall(question="well?"))
        assert done.answer == "the answer" and len(tight.engine.calls[0].turns) == 3


def test_a_personalized_program_can_be_aligned():
    user = SyntheticUser(seed=3)
    mine = personalize(dspy.Predict(user.signature), history=user.interactions(24))
    with dspy.context(lm=rule_following_lm()):
        aligned = PersonaAlignment(epochs=3).compile(mine, trainset=mine.examples())
        held = user.interactions(12, start=100)
        right = [sum(p(description=i.query).tag == i.response for i in held) for p in (mine, aligned)]
    assert aligned.alignment.accepted >= 1 and right[1] > right[0]
    assert mine.persona.value.version == 0


def test_bad_arguments_are_named():
    class Empty(dspy.Module):
        pass

    with pytest.raises(InputError, match="predictor"):
        personalize(Empty())
    for pointless in ("-> answer", "question ->"):
        with pytest.raises(InputError, match="an input and an output"):
            personalize(dspy.Predict(dspy.Signature(pointless)))
    with pytest.raises(InputError, match="'bob'"):
        personalize(dspy.Predict("q -> a"), persona=PERSONA, user_id="bob")


def test_the_personas_rules_have_a_say_in_what_is_recalled():
    told = [("A quiet walk in the park", "calm"), ("A walk along the sea", "calm"), ("Ghosts of the tower", "horror")]
    past = [Interaction(user_id="u", query=q, response=r, id=str(n)) for n, (q, r) in enumerate(told)]
    rule = Bullet(section="what decides", words=("castle", "ghosts", "tower"), then="horror")
    seen = {}
    for name, bullets in (("no rule", ()), ("rule", (rule,))):
        persona = Persona(user_id="u", bullets=bullets)
        mine = personalize(dspy.Predict("question -> answer"), history=past, persona=persona, recall_k=1)
        with dspy.context(lm=FakeLM(lambda prompt: {"answer": "yes"})):
            seen[name] = mine(question="A quiet walk to the castle").trace
    assert [t.recalled[0].id for t in seen.values()] == ["0", "2"]
    assert [t.steps[0].steered_by for t in seen.values()] == [(), (rule.id,)]
