"""The paper's agent: recall, act, respond."""

import asyncio
import json
from typing import Literal

import dspy
import pytest
from requests_seen import messages, seen_lm

from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.steering import Steering
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError
from persona_dspy.memory.episodic import EpisodicMemory


def past(user, n=6, **options):
    made = [("space creature", "sci-fi"), ("wedding kiss", "romance"), ("ghost cellar", "horror")] * 2
    return [
        Interaction(user_id=user, query=f"{q} {i}", response=r, time=f"2026-01-{i:02d}", id=f"{user}{i}", **options)
        for i, (q, r) in enumerate(made[:n], 1)
    ]


def persona(text, user="ana"):
    return Persona.from_text(text, user_id=user)


def says(**fields):
    return seen_lm(lambda prompt: fields)


def test_episodes_are_turns_nearest_last_under_the_persona():
    lm = says(tag="horror")
    with dspy.context(lm=lm):
        answer = PersonaAgent("film -> tag", history=past("ana"), persona=persona("Short."), recall_k=2)(film="a ghost")
    (request,) = lm.engine.requests
    seen = messages(request)
    assert answer.tag == "horror" and answer.trace.response == "horror"
    assert [role for role, _ in seen] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert seen[0][1].endswith(persona("Short.").render())
    assert "ghost cellar" in seen[3][1] and "horror" in seen[4][1] and "a ghost" in seen[5][1]


def test_a_capable_lm_sees_turns_oldest_first_and_is_told():
    lm = seen_lm(lambda prompt: {"tag": "horror"})
    agent = PersonaAgent("film -> tag", history=past("ana"), recall_k=4, steering=Steering.off())
    with dspy.context(lm=lm):
        agent(film="a ghost")
        PersonaAgent("film -> tag", history=past("ana"), recall_k=1, steering=Steering.off())(film="a ghost")
    shown, alone = map(messages, lm.engine.requests)
    order = [i.query for i in past("ana")]
    turns = [next(q for q in order if text.count(q)) for role, text in shown[1:-1] if role == "user"]
    assert turns == sorted(turns, key=order.index) and len(turns) == 4
    assert "oldest first" in shown[0][1] and "oldest first" not in alone[0][1]


def test_a_block_is_an_input_of_its_own():
    lm = says(tag="horror")
    with dspy.context(lm=lm):
        PersonaAgent("film -> tag", history=past("ana"), episodes_as="block")(film="a ghost")
    (prompt,) = lm.engine.calls
    assert not prompt.turns and "ghost cellar 6 -> horror" in prompt.fields["observations"]


def test_a_signature_that_has_observations_keeps_them():
    lm = says(tag="horror")
    with dspy.context(lm=lm):
        agent = PersonaAgent("observations -> tag", history=past("ana"), episodes_as="block")
        agent(observations="seen: a ghost")
    assert lm.engine.calls[0].fields["observations"] == "seen: a ghost"


def test_other_inputs_and_outputs_of_the_signature_work():
    lm = says(tag="horror", why="dark")
    with dspy.context(lm=lm):
        answer = PersonaAgent("film, year: int -> tag, why", history=past("ana"))(film="a ghost", year=1999)
    assert answer.why == "dark" and lm.engine.calls[0].fields["year"] == "1999"
    assert all("year" not in user for user, _ in lm.engine.calls[0].turns)


@pytest.mark.parametrize("query", ["", "  ", None])
def test_an_empty_query_is_named(query):
    with pytest.raises(InputError, match=r"agent\(film="):
        PersonaAgent("film -> tag", user_id="u")(film=query or "")


def test_programs_answer_for_one_user():
    with pytest.raises(InputError, match="'bob'"):
        PersonaAgent("film -> tag", history=past("ana"), persona=persona("x", "bob"))
    agent = PersonaAgent("film -> tag", history=past("ana"))
    with pytest.raises(InputError, match="'bob'"):
        agent.for_user("bob", past("ana"))
    with pytest.raises(InputError, match="'bob'"):
        agent.with_persona(persona("x", "bob"))
    with pytest.raises(InputError, match="episodes_as"):
        PersonaAgent("film -> tag", episodes_as="poem")  # type: ignore[arg-type]


def test_twins_share_predictors_and_nothing_of_their_users():
    ana = PersonaAgent("film -> tag", history=past("ana"))
    bob = ana.for_user("bob", past("bob", 3))
    assert bob.respond is ana.respond and bob.memory is not ana.memory
    assert (ana.user_id, bob.user_id) == ("ana", "bob") and len(ana.memory) == 6
    assert bob.persona.value.user_id == "bob" and bob.persona is not ana.persona
    lm = says(tag="x")
    with dspy.context(lm=lm):
        bob(film="film")
    assert "ana" not in str(messages(lm.engine.requests[0]))


def test_a_new_version_is_in_force_from_the_next_answer_on():
    agent = PersonaAgent("film -> tag", history=past("ana"), persona=persona("Old rule."))

    def lm(prompt):
        agent.persona.value = persona("New rule.")
        return {"tag": "x"}

    with dspy.context(lm=seen_lm(lm)):
        first, second = agent(film="a").trace, agent(film="a").trace
    assert "Old rule." in first.persona and "New rule." in second.persona


def test_a_full_context_loses_the_farthest_episodes_first():
    lm = says(tag="horror")
    agent = PersonaAgent("film -> tag", history=past("ana"), persona=persona("Short."), adapter=dspy.ChatAdapter())
    with dspy.context(lm=lm):
        agent(film="ghost")
        size = sum(len(t) for _, t in messages(lm.engine.requests[0]))
        tight = seen_lm(lambda p: {"tag": "horror"}, limit=size - 100)
        with dspy.context(lm=tight):
            assert agent(film="ghost").tag == "horror"
            assert asyncio.run(agent.acall(film="ghost")).tag == "horror"
        kept = tight.engine.calls[0].turns
        assert 0 < len(kept) < 4 and kept == lm.engine.calls[0].turns[4 - len(kept) :]
        with dspy.context(lm=seen_lm(lambda p: None, limit=50)), pytest.raises(dspy.ContextWindowExceededError):
            agent(film="ghost")


def test_simulating_sees_only_what_was_before():
    agent = PersonaAgent("film -> tag", history=past("ana"))
    for n, example in enumerate(agent.examples()):
        lm = says(tag="x")
        with dspy.context(lm=lm):
            trace = agent.simulate(example, exclude=frozenset(["ana1"])).trace
        assert {r.id for r in trace.recalled} <= {f"ana{i}" for i in range(2, n + 1)}


def test_answers_of_every_type_come_back_typed():
    signature = dspy.Signature("film -> stars").with_updated_fields("stars", type_=int)
    history = [Interaction(user_id="u", query=f"film {n}", response=str(n % 5 + 1)) for n in range(4)]
    lm = says(stars=4)
    with dspy.context(lm=lm):
        assert PersonaAgent(signature, history=history)(film="x").stars == 4
    assert sorted(json.loads(a)["stars"] for _, a in lm.engine.calls[0].turns) == [1, 2, 3, 4]


def test_saving_and_loading_keeps_persona_and_predictors(tmp_path):
    class Tag(dspy.Signature):
        film: str = dspy.InputField()
        tag: Literal["sci-fi", "romance", "horror"] = dspy.OutputField()

    agent = PersonaAgent(Tag, history=past("ana"), actions="react")
    agent.persona.value = persona("Learned.")
    agent.respond.predict.demos = [dspy.Example(film="x", tag="a")]
    agent.save(tmp_path / "agent.json")
    again = PersonaAgent(Tag, user_id="ana", actions="react")
    again.load(tmp_path / "agent.json")
    assert again.persona.value == agent.persona.value and again.persona.initial == agent.persona.initial
    assert again.respond.predict.demos[0]["film"] == "x"
    names = [name for name, _ in again.named_parameters()]
    assert {"persona", "respond.predict", "act.gather.react", "act.gather.native"} == set(names)


def test_copies_are_apart():
    agent = PersonaAgent("film -> tag", history=past("ana"))
    copied = agent.deepcopy()
    copied.persona.value = persona("Other.")
    assert agent.persona.value != copied.persona.value and copied.memory is agent.memory


def test_ten_thousand_agents_are_light():
    import tracemalloc

    agent = PersonaAgent("film -> tag", user_id="base")
    tracemalloc.start()
    many = [agent.for_user(f"u{n}", EpisodicMemory(user_id=f"u{n}")) for n in range(200)]
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size / len(many) < 12_000  # bytes: 10,000 of them under 120 MB


def test_streaming_and_asyncio():
    agent = PersonaAgent("film -> tag", history=past("ana"), persona=persona("Short."))
    listener = dspy.streaming.StreamListener(signature_field_name="tag")
    stream = dspy.streamify(
        agent, stream_listeners=[listener], async_streaming=True, include_final_prediction_in_output_stream=True
    )

    async def run():
        return [part async for part in stream(film="ghost")]

    lm = says(tag="quite horrible")
    with dspy.context(lm=lm):
        parts = asyncio.run(run())
    assert "".join(p.chunk for p in parts if isinstance(p, dspy.streaming.StreamResponse)) == "quite horrible"
    assert isinstance(parts[-1], dspy.Prediction) and parts[-1].tag == "quite horrible"
    assert messages(lm.engine.requests[0])[0][1].endswith(persona("Short.").render())


def test_of_equal_queries_the_latest_is_replayed_and_none_is_shown():
    """``replaying``: the same query asked three times; what lies between the first and the last may be seen."""
    queries = ["alien", "heat", "alien", "ronin", "alien", "later"]
    past = [Interaction(user_id="u", query=q, response="drama", id=str(n)) for n, q in enumerate(queries)]
    model = seen_lm(lambda prompt: {"tag": "drama"})
    with dspy.context(lm=model):
        agent = PersonaAgent("film -> tag", history=past, recall_k=9).replaying()
        prediction = agent(film="alien")
    recalled = {r.id for step in prediction.trace.steps for r in step.recalled}
    assert recalled == {"1", "3"}, "as of the last time: what came before it, without the query itself"


def test_replaying_a_repeated_query_answers_its_last_occurrence():
    """All that came before the last one may be recalled, but no occurrence of the query itself."""
    queries = ["ghost cellar", "ghost attic", "ghost cellar", "ghost garden"]
    history = [
        Interaction(user_id="ana", query=query, response="horror", time=f"2026-01-{n:02d}", id=f"ana{n}")
        for n, query in enumerate(queries, 1)
    ]
    with dspy.context(lm=says(tag="horror")):
        trace = PersonaAgent("film -> tag", history=history).replaying()(film="ghost cellar").trace
    assert [recalled.id for recalled in trace.recalled] == ["ana2"]
