"""What is looked up, chosen under the persona."""

import asyncio
from typing import Literal

import dspy
import pytest
from requests_seen import seen_lm

from persona_dspy.agent.actions import Act
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.knowledge import Document, LocalCorpus
from persona_dspy.agent.recall import Recall
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError
from persona_dspy.lm.ledger import Ledger
from persona_dspy.memory.episodic import EpisodicMemory

CORPUS = LocalCorpus([Document(title="Alien", text="Alien is a film of 1979 about a creature.")])
FILMS = ["space creature", "wedding kiss", "detective heist", "ghost cellar", "rocket planet", "castle knight"]
TAGS = ["sci-fi", "romance", "thriller", "horror", "sci-fi", "history"]
PAST = [
    Interaction(user_id="ana", query=film, response=tag, time=f"2026-01-{n:02d}", id=f"i{n}")
    for n, (film, tag) in enumerate(zip(FILMS, TAGS, strict=True), 1)
]


def planner(prompt):
    """An LM that plans what its system message says of the user, and answers everything else."""
    if "actions" in prompt.outputs:
        if "Looks things up in an encyclopedia" in prompt.system:
            return {"actions": [{"action": "search_knowledge", "words": "creature film"}]}
        return {
            "actions": [{"action": "recall_history", "words": "wedding"}, {"action": "recall_profile", "words": ""}]
        }
    return {"tag": "drama"}


def agent_of(persona="", *, act=None, **options):
    given = Persona.from_text(persona, user_id="ana") if persona else None
    return PersonaAgent("film -> tag", history=PAST, persona=given, actions=act or "fixed", **options)


def test_the_persona_decides_tool_and_words():
    act = Act(policy="plan", knowledge=CORPUS)
    traces = {}
    for line in ("Looks things up in an encyclopedia.", "Trusts the own past."):
        with dspy.context(lm=seen_lm(planner)):
            traces[line] = agent_of(f"Look-ups:\n{line}", act=act)(film="what is Alien?").trace
    first, second = ([(s.action, s.query) for s in t.steps] for t in traces.values())
    assert first[0] == ("search_knowledge", "creature film")
    assert second[:2] == [("recall_history", "query=wedding, k=4"), ("recall_profile", "")]
    assert first != second


@pytest.mark.parametrize("policy", ["plan", "react"])
def test_what_tools_find_reaches_the_response_as_data(policy):
    def lm(prompt):
        if "next_tool_name" in prompt.outputs:
            name = "finish" if "observation_0" in prompt.user else "search_knowledge"
            args = {} if name == "finish" else {"query": "creature"}
            return {"next_thought": "look", "next_tool_name": name, "next_tool_args": args}
        return planner(prompt)

    model = seen_lm(lm)
    with dspy.context(lm=model):
        agent = agent_of("Look-ups:\nLooks things up in an encyclopedia.", act=Act(policy=policy, knowledge=CORPUS))
        trace = agent(film="what is Alien?").trace
    last = model.engine.calls[-1]
    assert "1979" in last.fields["observations"] and "1979" not in last.system
    assert '<data source="search_knowledge" id="' in last.user
    assert len(last.turns) == 4  # and the episodes are turns, as ever
    step = next(s for s in trace.steps if s.action == "search_knowledge")
    assert "1979" in step.observation and step.seconds > 0


def test_recalled_episodes_become_turns_half_by_the_lms_words_at_most():
    model = seen_lm(planner)
    with dspy.context(lm=model):
        trace = agent_of("Trusts the own past.", act=Act(policy="plan"))(film="rocket").trace
    shown = [user for user, _ in model.engine.calls[-1].turns]
    assert any("wedding" in user for user in shown) and "rocket planet" in shown[-1]
    assert "wedding kiss" not in model.engine.calls[-1].fields["observations"]
    assert len({r.id for r in trace.recalled}) >= 4


def test_fixed_asks_no_lm_and_none_shows_nothing():
    for policy, turns in (("fixed", 4), ("none", 0)):
        model = seen_lm(planner)
        with dspy.context(lm=model):
            trace = agent_of(act=Act(policy=policy))(film="rocket").trace
        assert len(model.engine.calls) == 1 and len(model.engine.calls[0].turns) == turns
        assert len(trace.steps) == bool(turns)


def test_in_a_plain_recall_the_persona_has_no_say():
    rule = Bullet(section="what decides", words=("rocket",), then="romance")
    persona = Persona(user_id="ana").apply([Edit(op="add", bullet=rule)])
    steps = {}
    for policy in ("fixed", "plain"):
        with dspy.context(lm=seen_lm(planner)):
            agent = PersonaAgent("film -> tag", history=PAST, persona=persona, actions=policy)
            (steps[policy],) = agent(film="rocket").trace.steps
    assert steps["fixed"].steered_by and "romance" in steps["fixed"].query
    assert not steps["plain"].steered_by and steps["plain"].query == "rocket"
    near = [e.id for e in EpisodicMemory(PAST).recall("rocket", 4)]
    assert [r.id for r in steps["plain"].recalled] == near != [r.id for r in steps["fixed"].recalled]


@pytest.mark.parametrize("said", ["rubbish", '{"actions": [{"action": "rm -rf", "words": "x"}]}', '{"actions": []}'])
def test_a_poor_plan_costs_nothing(said):
    model = seen_lm(lambda p: said if "actions" in p.outputs else {"tag": "drama"})
    with dspy.context(lm=model):
        answer = agent_of(act=Act(policy="plan"))(film="rocket")
    assert answer.tag == "drama" and len(model.engine.calls[-1].turns) == 4
    assert said == '{"actions": []}' or any(s.action == "plan" and s.failed for s in answer.trace.steps)


def test_one_failing_tool_of_a_users_own_stops_nothing():
    def weather(city: str) -> str:
        """The weather in a city."""
        raise OSError("no network")

    def lm(prompt):
        chosen = [{"action": "weather", "words": "Rome"}]
        return {"actions": chosen} if "actions" in prompt.outputs else {"tag": "drama"}

    model = seen_lm(lm)
    with dspy.context(lm=model):
        answer = agent_of(act=Act(policy="plan", tools=[weather]))(film="sunny?")
    assert "weather failed" in model.engine.calls[-1].fields["observations"]
    (step,) = [s for s in answer.trace.steps if s.action == "weather"]
    assert step.failed and step.query == "Rome" and "no network" in step.observation


def test_the_same_in_asyncio():
    async def answers():
        with dspy.context(lm=seen_lm(planner)):
            agent = agent_of("Trusts the own past.", act=Act(policy="plan"))
            return (await agent.acall(film="rocket")).trace, agent(film="rocket").trace

    later, sooner = asyncio.run(answers())
    assert [(s.action, s.query, s.recalled) for s in later.steps] == [
        (s.action, s.query, s.recalled) for s in sooner.steps
    ]
    assert [c.role for c in later.calls] == ["act", "respond"]


def test_calls_count_by_role():
    ledger = Ledger()
    with dspy.context(lm=seen_lm(planner)), ledger.recording():
        agent_of(act=Act(policy="plan"))(film="rocket")
    assert {role: usage.calls for role, usage in ledger.by_role.items()} == {"act": 1, "respond": 1}


def test_a_rule_that_fits_steers_recall_and_the_trace_says_so():
    persona = "What decides:\nSome text."
    agent = agent_of(persona)
    from persona_dspy.core.persona import Bullet

    rule = Bullet(section="what decides", words=("spacecraft",), then="sci-fi")
    agent = agent.with_persona(agent.persona.value.model_copy(update={"bullets": (rule,)}))
    with dspy.context(lm=seen_lm(planner)):
        (step,) = agent(film="a spacecraft drifts somewhere").trace.steps
    assert step.steered_by == (rule.id,) and "sci-fi" in step.query


@pytest.mark.parametrize(
    ("labels", "searched"),
    [
        (("[1]", "[2]"), "what of the ghost in the cellar, or of a castle"),
        (("sci-fi", "horror"), "ghost cellar castle"),
    ],
    ids=["labels that point at a place", "labels that say something"],
)
def test_the_whole_query_is_searched_where_labels_only_point_at_a_place(labels, searched):
    signature = dspy.Signature({"film": (str, dspy.InputField()), "tag": (Literal[labels], dspy.OutputField())})
    past = [Interaction(user_id="ana", query=film, response=labels[n % 2]) for n, film in enumerate(FILMS)]
    with dspy.context(lm=seen_lm(lambda prompt: {"tag": labels[0]})):
        found = PersonaAgent(signature, history=past)(film="what of the ghost in the cellar, or of a castle")
    assert found.trace.steps[0].query == searched


def test_bad_options_are_named():
    with pytest.raises(InputError, match="'maybe'"):
        Act(policy="maybe")  # type: ignore[arg-type]

    def pair(a: str, b: str) -> str:
        """Two arguments."""
        return a + b

    with pytest.raises(InputError, match="one argument"):
        Act(policy="plan", tools=[pair])
    assert "pair" in Act(policy="react", tools=[pair]).tools


def test_without_recall_tools_still_tell():
    model = seen_lm(planner)
    with dspy.context(lm=model):
        agent_of("Trusts the own past.", act=Act(policy="plan", recall=Recall(k=0)))(film="rocket")
    assert "wedding kiss -> romance" in model.engine.calls[-1].fields["observations"]
    assert not model.engine.calls[-1].turns


@pytest.mark.model
@pytest.mark.parametrize("policy", ["plan", "react"])
def test_a_real_model_chooses_what_can_be_run(policy, smol_lm):
    """Whatever 135M parameters choose: the tools are there, calls are bounded, the answer is one of the labels."""
    past = [
        Interaction(user_id="u", query=f"A {word} film, number {n}", response=tag, id=f"{word}{n}")
        for n, (word, tag) in enumerate([("rocket", "sci-fi"), ("wedding", "romance"), ("ghost", "horror")] * 4)
    ]
    agent = PersonaAgent(
        dspy.Signature("film -> tag: Literal['sci-fi', 'romance', 'horror']"), history=past, actions=policy
    )
    with dspy.context(lm=smol_lm):
        answer = agent(film="A ghost haunts a rocket")
    trace = answer.trace
    assert answer.tag in ("sci-fi", "romance", "horror")
    assert len(trace.recalled) >= 4, "what the query itself finds fills up, beside what the model's own words found"
    assert 2 <= trace.usage.calls <= 6
    assert {s.action for s in trace.steps} <= {"recall_history", "recall_profile"}
    assert not [s for s in trace.steps if s.failed and policy == "plan"], "a plan is kept to its schema"


def test_only_the_first_two_rules_that_fit_steer_recall():
    words = {"ghost": "horror", "wedding": "romance", "planet": "sci-fi"}
    rules = tuple(Bullet(section="what decides", words=(word,), then=then) for word, then in words.items())
    agent = agent_of("What decides:\nSome text.")
    agent = agent.with_persona(agent.persona.value.model_copy(update={"bullets": rules}))
    with dspy.context(lm=seen_lm(planner)):
        (step,) = agent(film="a ghost at a wedding on some planet").trace.steps
    assert step.steered_by == tuple(rule.id for rule in rules[:2])
    assert "horror" in step.query and "romance" in step.query and "sci-fi" not in step.query
