"""What alignment and DSPy's optimizers may not see: the interactions that judge, and what came after."""

import dspy
import pytest

from optimizers import AnchorGate, HeldOutGate, PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.personalized import personalize
from persona_dspy.memory.episodic import EpisodicMemory
from persona_dspy.memory.retrieval import BM25
from persona_dspy.testing.synthetic import SyntheticUser, TagFilm, rule_following_lm


def agent_of(n=30, **options):
    return PersonaAgent(TagFilm, history=SyntheticUser(seed=4).interactions(n), **options)


def compiled(agent, lm=None, *, optimizer=None, **sets):
    with dspy.context(lm=lm or rule_following_lm()):
        return (optimizer or PersonaAlignment()).compile(agent, **sets)


def test_examples_made_by_hand_are_the_interactions_that_memory_has():
    agent = agent_of(20)
    plain = [
        dspy.Example(description=i.query, tag=i.response).with_inputs("description") for i in agent.memory.interactions
    ]
    by_hand = compiled(agent, trainset=plain)
    own = compiled(agent, trainset=agent.examples())
    assert len(by_hand.memory) == 20
    assert by_hand.persona.value.render() == own.persona.value.render()
    again = compiled(agent, trainset=plain, valset=plain[-5:])
    assert (len(again.memory), again.alignment.gate_size) == (20, 5)


def test_what_is_new_joins_a_memory_that_is_searched_in_the_same_way():
    flat = BM25(b=0.0)
    memory = EpisodicMemory(SyntheticUser(seed=4).interactions(20), retriever=flat)
    agent = PersonaAgent(TagFilm, history=memory)
    new = dspy.Example(description="a rocket in the rain", tag="horror").with_inputs("description")
    made = compiled(agent, trainset=[*agent.examples(), new])
    assert (len(memory), len(made.memory)) == (20, 21)
    assert made.memory._retriever is flat


@pytest.mark.parametrize("gate", [None, "anchors"])
def test_a_valset_out_of_the_trainset_is_not_fitted_on(gate):
    agent, lm = agent_of(), rule_following_lm()
    held = agent.memory.interactions[-8:]
    anchors = [agent.memory.interactions[2], held[0]]
    optimizer = PersonaAlignment(gate=AnchorGate([i.id for i in anchors]) if gate else None)
    made = compiled(agent, lm, optimizer=optimizer, trainset=agent.examples(), valset=agent.examples()[-8:])
    judging = [*held, *(anchors[:1] if gate else [])]
    assert made.alignment.gate_size == len(judging)
    assert not {s for step in made.alignment.steps for s in step.simulated} & {i.id for i in judging}
    reflecting = [p.user for p in lm.engine.calls if "notes" in p.fields or "attempt" in p.fields]
    assert reflecting and not any(i.query in said for i in judging for said in reflecting)


def test_what_was_kept_out_of_the_trainset_is_not_looked_at():
    whole, lm = agent_of(), rule_following_lm()
    short = agent_of(20)
    assert compiled(whole, lm, trainset=whole.examples()[:20]).persona.value.render() == (
        compiled(short, trainset=short.examples()).persona.value.render()
    )
    later = [i.query for i in whole.memory.interactions[20:]]
    assert not any(query in p.user or query in p.system for p in lm.engine.calls for query in later)


def test_no_proposer_reads_counts_of_what_judges_it():
    agent, lm = agent_of(), rule_following_lm()
    compiled(agent, lm, optimizer=PersonaAlignment(gate=HeldOutGate(8)), trainset=agent.examples())
    notes = [p.fields["notes"] for p in lm.engine.calls if "notes" in p.fields]
    assert notes and all("Answers so far (22)" in said and "(30)" not in said for said in notes)


@pytest.mark.parametrize("kind", ["agent", "personalized"])
def test_replayed_on_its_own_past_a_program_recalls_neither_the_answer_nor_what_came_later(kind):
    past = SyntheticUser(seed=4).interactions(12)
    agent = PersonaAgent(TagFilm, history=past)
    if kind == "personalized":
        agent = personalize(dspy.Predict(TagFilm), history=past, recall_k=4)
    lm = rule_following_lm(heeds_turns=True)
    with dspy.context(lm=lm):
        for example in agent.examples():
            agent.replaying()(**example.inputs())
        agent(description=past[3].query)
    *replayed, plain = lm.engine.calls
    for at, prompt in enumerate(replayed):
        shown = {i.query for i in past if any(i.query in turn[0] for turn in prompt.turns)}
        assert shown <= {i.query for i in past[:at]} - {past[at].query}
    assert any(past[3].query in turn[0] for turn in plain.turns), "for users, all of memory counts"
