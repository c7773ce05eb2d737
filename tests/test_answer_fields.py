"""Responses of several fields: a triage label that an inner step gives, beside a reply."""

import copy
import json
import pickle
from typing import Literal

import dspy
import pytest

from optimizers.evidence import Challenger
from persona_dspy import Interaction, PersonaAgent, PersonaAlignment, Personas, personalize
from persona_dspy.core import FieldsKind, ResponseKind, Signal
from persona_dspy.data import read_users
from persona_dspy.errors import InputError
from persona_dspy.memory import facts
from persona_dspy.store import Store
from persona_dspy.testing import FakeLM

Label = Literal["order", "return"]


class Desk(dspy.Module):
    """A label first, then a reply that follows from it; only the reply is returned."""

    def __init__(self):
        super().__init__()
        self.triage = dspy.Predict(dspy.Signature("message -> label: Literal['order', 'return']"))
        self.write = dspy.ChainOfThought("message, label -> reply")

    def forward(self, message):
        label = self.triage(message=message).label
        return dspy.Prediction(reply=self.write(message=message, label=label).reply)


FIELDS = ("message", "reply", "label")
KIND = FieldsKind.of_kinds({"reply": ResponseKind(name="text"), "label": ResponseKind.of(Label)})


def answers(prompt):
    said = {"label": "order", "reply": "Dear customer, it is on its way.", "reasoning": "so"}
    return {name: said[name] for name in prompt.outputs}


def desk(**options):
    return personalize(Desk(), user_id="ana", fields=FIELDS, **options)


@pytest.fixture
def lm():
    fake = FakeLM(answers)
    with dspy.context(lm=fake):
        yield fake


def test_feedback_on_one_field_and_later_on_another(lm):
    program = desk()
    given = program(message="Where is it?")
    assert given.keys() == ["reply"], "what the program returns is its own"
    assert json.loads(given.trace.response) == {"reply": "Dear customer, it is on its way.", "label": "order"}
    kept = program.feedback(given, edited={"label": "Return."}, comment="wrong pile")
    assert (kept.response, kept.signal.draft) == ('{"label": "return"}', given.trace.response)
    assert kept.answered and kept.signal.comment == "wrong pile"
    kept = program.feedback(given.trace.id, edited="Sorry!")
    assert json.loads(kept.response) == {"reply": "Sorry!", "label": "return"}, "plain text is the first field's"
    kept = program.feedback(given, edited={"reply": "Sorry."})
    assert json.loads(program.memory.interactions[0].response) == {"reply": "Sorry.", "label": "return"}
    other = program(message="Where is it?")
    kept = program.feedback(other, preferred={"reply": "Hi."}, rejected=[{"reply": "Ho."}])
    assert kept.signal.rejected == ('{"reply": "Dear customer, it is on its way."}', '{"reply": "Ho."}')
    with pytest.raises(InputError, match="label: response 'refund': expected one of order, return"):
        program.feedback(given, edited={"label": "refund"})
    with pytest.raises(InputError, match=r"response with \['tone'\]: expected only the fields reply, label"):
        program.feedback(given, edited={"tone": "warm"})


ADAPTERS = [dspy.ChatAdapter(), dspy.JSONAdapter(), dspy.XMLAdapter()]


@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: type(adapter).__name__)
def test_turns_show_each_predictor_its_own_fields(lm, adapter):
    both = Interaction(
        user_id="ana", query="Lost?", response='{"reply": "Here.", "label": "return"}', time="2026-01-01"
    )
    only = Interaction(user_id="ana", query="Broken!", response='{"label": "return"}', time="2026-01-02")
    plain = Interaction(user_id="ana", query="Thanks", response="Cheers.", time="2026-01-03")
    program = desk(history=[both, only, plain], recall_k=3, adapter=adapter)
    program(message="Where is it?")
    triage, write = (call.turns for call in lm.engine.calls)
    written = [answer for _, answer in triage]
    expected = [adapter.format_assistant_message_content(Desk().triage.signature, {"label": "return"})] * 2
    assert written == expected, "two labels are known, in the adapter's own form"
    turns = [answer for _, answer in write]
    assert len(turns) == 2 and "Here." in "".join(turns) and "Cheers." in "".join(turns)
    asked = [text for text, _ in write]
    assert any("Lost?" in text and "return" in text for text in asked), "one step's response is the next one's input"
    assert not any("Broken!" in text for text in asked), "no reply is known there"


def test_an_agent_with_two_outputs(lm):
    past = {"query": "Lost?", "response": {"label": "return", "reply": "Here."}}
    agent = PersonaAgent(
        "message -> label: Literal['order', 'return'], reply", user_id="ana", history=[past],
        fields=("message", "label", "reply"),
    )  # fmt: skip
    given = agent(message="Where is it?")
    ((_, turn),) = lm.engine.calls[-1].turns
    assert json.loads(turn) == {"label": "return", "reply": "Here."}, "the adapter's own form"
    assert agent.feedback(given, edited={"reply": "Hi."}).response == '{"reply": "Hi."}'
    with pytest.raises(InputError, match="the first output 'label'"):
        PersonaAgent("message -> label, reply", fields=("message", "reply"))
    with pytest.raises(InputError, match="each once"):
        personalize(Desk(), fields=("message", "reply", "reply"))


def test_scores_compare_what_the_user_answered():
    assert KIND.score('{"label": "return"}', {"label": "return", "reply": "anything"}) == 1
    assert KIND.score('{"label": "return", "reply": "a b"}', '{"label": "order", "reply": "a b"}') == 0.5
    assert KIND.needs_judge and not FieldsKind.of_kinds({"label": ResponseKind.of(Label)}).needs_judge
    assert KIND.read('{"other": 1}') == '{"reply": "{\\"other\\": 1}"}', "no object of these fields: a reply"
    assert KIND.read({"label": "neither"}) is None
    assert pickle.loads(pickle.dumps(KIND)) == copy.deepcopy(KIND) == KIND  # noqa: S301 - our own
    assert KIND.beside('{"reply": "a", "label": "order"}', '{"label": "return"}') == '{"label": "order"}'


def test_facts_are_counted_field_by_field():
    past = [
        Interaction(user_id="u", query=f"q{n}", response=json.dumps({"reply": "two words", "label": "order"}))
        for n in range(4)
    ]
    texts = [b.text for b in facts(past, KIND)]
    assert 'label: Answers so far (4): "order" 4.' in texts and "reply: Typical response: 2 words." in texts


def test_examples_never_give_a_response_away(lm):
    past = Interaction(user_id="ana", query="Lost?", response='{"reply": "Here.", "label": "return"}', id="a")
    program = desk(history=[past])
    (example,) = program.examples()
    assert dict(example.inputs()) == {"message": "Lost?"}
    assert (example.reply, example.label, example["reply, label"]["label"]) == ("Here.", "return", "return")
    assert program.metadata_of(example) == {}
    told = program.asked()
    assert "reply" in told and "label, one of: order, return" in told and "exactly" in told
    prediction = program.simulate(dspy.Example(message="Lost?", label="return").with_inputs("message"))
    assert prediction.label == "order", "what an inner step gave, a metric can see"


def rule_lm(prompt):
    """Does what the persona says; as reflecting LM writes the rule that the corrections show."""
    if prompt.outputs == ("about_the_user",):
        assert 'the user\'s own response: {"reply": "Done. Jo", "label": "return"}' in prompt.user
        return {"about_the_user": "sorts all as return, signs Jo"}
    if "label" in prompt.outputs or "reply" in prompt.outputs:
        told = prompt.system
        said = {"reply": "Done. Jo" if "signs Jo" in told else "Done. The team", "reasoning": "so"}
        said["label"] = "return" if "as return" in told else "order"
        return {name: said[name] for name in prompt.outputs}
    return None


@pytest.mark.parametrize("form", ["interactions", "examples", "dictionaries"])
def test_alignment_learns_from_both_fields(form):
    def propose(incumbent, evidence):
        edited = incumbent.add("Sorts everything as return.", locked=False).add("Always signs Jo.", locked=False)
        return [Challenger(persona=edited.model_copy(update={"version": incumbent.version}), edits=("add",))]

    rows = [{"message": f"mail {n}", "reply": f"Done. Jo {n}"[:8], "label": "return"} for n in range(12)]
    trainset = {
        "interactions": [
            Interaction(
                user_id="ana", query=r["message"], response=json.dumps({"reply": r["reply"], "label": r["label"]})
            )
            for r in rows
        ],
        "examples": [dspy.Example(**r).with_inputs("message") for r in rows],
        "dictionaries": rows,
    }[form]
    metric_calls = []

    def metric(example, prediction, trace=None):
        metric_calls.append((example.label, prediction.label, example.reply, prediction.reply))
        return 0.5 * (example.label == prediction.label) + 0.5 * (example.reply == prediction.reply)

    with dspy.context(lm=FakeLM(rule_lm)):
        aligned = PersonaAlignment(metric=metric, proposer=propose, epochs=2).compile(desk(), trainset=trainset)
    assert aligned.alignment.scores.gain == 1.0, aligned.alignment
    assert "as return" in aligned.persona.value.render()
    assert {call[0] for call in metric_calls} == {"return"} and {call[1] for call in metric_calls} >= {"order"}
    assert len(aligned.memory.interactions) == 12


def test_without_a_metric_each_field_is_scored_by_its_type():
    class Sorts(dspy.Signature):
        message: str = dspy.InputField()
        label: Label = dspy.OutputField()
        again: bool = dspy.OutputField(desc="whether it was asked before")

    def answer(prompt):
        return {"label": "return" if "as return" in prompt.system else "order", "again": False}

    def propose(incumbent, evidence):
        edited = incumbent.add("Sorts everything as return.", locked=False)
        return [Challenger(persona=edited.model_copy(update={"version": incumbent.version}), edits=("add",))]

    past = [{"query": f"mail {n}", "response": {"label": "return", "again": "no"}} for n in range(12)]
    agent = PersonaAgent(Sorts, user_id="ana", history=past, fields=("message", "label", "again"))
    assert json.loads(agent.memory.interactions[0].response) == {"label": "return", "again": "False"}
    with dspy.context(lm=FakeLM(answer, lambda prompt: {"about_the_user": "sorts all as return"})):
        aligned = PersonaAlignment(proposer=propose, epochs=1).compile(agent, trainset=agent.examples())
    (step,) = [step for step in aligned.alignment.steps if step.simulated]
    assert set(step.scores) == {0.5}, "one field of two was right"
    assert aligned.alignment.scores.gain == 0.5


def test_rows_of_files_and_a_store_hold_several_fields(lm, tmp_path):
    rows = [
        {"user_id": "ana", "query": "Lost?", "response": {"reply": "Here.", "label": "return"}},
        {
            "user_id": "ana",
            "query": "Late?",
            "draft": {"reply": "Sorry", "label": "order"},
            "response": {"label": "return"},
        },
    ]
    path = tmp_path / "past.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (history,) = read_users(path)
    assert [json.loads(i.response) for i in history.interactions] == [
        {"reply": "Here.", "label": "return"},
        {"label": "return"},
    ]
    assert json.loads(history.interactions[1].signal.draft)["reply"] == "Sorry"
    with Store.open(tmp_path / "personas.db") as store:
        store.add_episodes("ana", history.interactions)
        with Personas(store, personalize(Desk(), fields=FIELDS), PersonaAlignment()) as personas:
            program = personas.for_user("ana")
            given = program(message="Where is it?")
            personas.feedback("ana", given.trace.id, edited={"label": "return"})
            personas.feedback("ana", given.trace.id, edited={"reply": "Hi."})
        kept = store.episode("ana", given.trace.id)
    assert json.loads(kept.response) == {"reply": "Hi.", "label": "return"}
    assert kept.signal == Signal(draft=given.trace.response, version=0, trace=given.trace.id)
