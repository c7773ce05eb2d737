"""Learning as one goes: remembered at once, aligned in the background, the new version in force when it is written."""

import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from requests_seen import seen_lm

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.context import current_answer
from persona_dspy.core.alignment import Alignment
from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError, StoreError
from persona_dspy.lm.ledger import Ledger
from persona_dspy.service.online import OnlineAlignment
from persona_dspy.store.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm


class Slow:
    """An optimizer that adds a line when it is let go, and says when it began."""

    def __init__(self, *, fails=False):
        self.began, self.go, self.fails = threading.Event(), threading.Event(), fails
        self.seen = []

    def compile(self, student, *, trainset):
        self.seen.append(len(trainset))
        self.began.set()
        assert self.go.wait(10)
        if self.fails:
            raise RuntimeError("the model is gone")
        aligned = student.deepcopy()
        line = Bullet(section="style", text=f"Learned from {len(trainset)}.")
        aligned.persona.value = aligned.persona.value.apply([Edit(op="add", bullet=line)])
        aligned.alignment = Alignment(user_id=student.user_id, accepted=1)
        return aligned


def agent_of(user="ana", **options):
    return PersonaAgent("film -> tag", user_id=user, persona=Persona.from_text("Old.", user_id=user), **options)


def lm():
    return seen_lm(lambda prompt: {"tag": "drama"})


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "personas.db") as opened:
        yield opened


def test_answers_go_on_under_the_old_version_and_the_new_one_takes_over_at_once(store):
    optimizer = Slow()
    with dspy.context(lm=lm()), OnlineAlignment(optimizer, every=3, store=store) as online:
        agent = online.watch(agent_of())
        for n in range(3):
            assert not optimizer.began.is_set()
            agent.observe(f"film {n}", "drama")
        assert optimizer.began.wait(5)
        assert agent(film="x").trace.persona_version == 0  # under way: nobody waits
        assert len(agent.memory) == 3 and not online.wait(timeout=0.01)
        optimizer.go.set()
        assert online.wait(timeout=10)
        trace = agent(film="x").trace
    assert trace.persona_version == 1 and "Learned from 3." in trace.persona
    outcome = online.last("ana")
    assert outcome is not None and (outcome.version, outcome.changed, outcome.error) == (1, True, "")
    assert [(v.version, v.parent, v.current) for v in store.versions("ana")] == [(0, None, False), (1, 0, True)]
    assert PersonaDocument.model_validate(store.current("ana").document).persona() == agent.persona.value
    assert [i.query for i in store.episodes("ana")] == ["film 0", "film 1", "film 2"]
    assert agent.alignment is not None and agent.alignment.accepted == 1


def test_it_is_written_before_it_is_in_force():
    agent, order = agent_of(), []

    class Watching:
        def add_episodes(self, user_id, interactions):
            return 1

        def versions(self, user_id):
            return []

        def put_persona(self, user_id, persona, alignment=None):
            order.append((PersonaDocument.model_validate_json(persona).version, agent.persona.value.version))

    optimizer = Slow()
    optimizer.go.set()
    with OnlineAlignment(optimizer, every=1, store=Watching()) as online:
        online.watch(agent).observe("film", "drama")
        online.wait(10)
    assert order == [(0, 0), (1, 0)] and agent.persona.value.version == 1


def test_what_comes_meanwhile_counts_for_the_next_and_only_one_runs_at_a_time():
    optimizer = Slow()
    with OnlineAlignment(optimizer, every=2, workers=3) as online:
        agent = online.watch(agent_of())
        for n in range(2):
            agent.observe(f"film {n}", "drama")
        optimizer.began.wait(5)
        for n in range(2, 7):
            agent.observe(f"film {n}", "drama")
        assert optimizer.seen == [2]
        optimizer.go.set()
        online.wait(10)
    assert optimizer.seen == [2, 7]
    assert agent.persona.value.version == 2


def test_a_failure_leaves_the_old_version_and_is_told(caplog):
    optimizer, told = Slow(fails=True), []
    optimizer.go.set()
    with OnlineAlignment(optimizer, every=1, on_done=told.append) as online:
        agent = online.watch(agent_of())
        agent.observe("film", "drama")
        online.wait(10)
        assert "the model is gone" in online.last("ana").error
        optimizer.fails = False
        agent.observe("film 2", "drama")
        online.wait(10)
    assert [bool(o.error) for o in told] == [True, False] and agent.persona.value.version == 1
    assert "the model is gone" in caplog.text


def test_a_version_set_meanwhile_stays():
    optimizer = Slow()
    with OnlineAlignment(optimizer, every=1) as online:
        agent = online.watch(agent_of())
        agent.observe("film", "drama")
        optimizer.began.wait(5)
        chosen = agent.persona.value.model_copy(update={"version": 7})
        agent.persona.value = chosen
        optimizer.go.set()
        online.wait(10)
        assert agent.persona.value is chosen and not online.last("ana").changed


@pytest.mark.parametrize("through", ["store", "service"])
def test_a_user_forgotten_meanwhile_does_not_come_back(store, through):
    optimizer = Slow()
    store.add_episodes("ana", [Interaction(user_id="ana", query="film", response="drama")])
    with OnlineAlignment(optimizer, every=1, store=store) as online:
        agent = online.watch(agent_of(history=store.memory("ana")))
        agent.observe("film", "drama")
        optimizer.began.wait(5)
        if through == "service":
            online.forget("ana")
        store.forget("ana")
        optimizer.go.set()
        online.wait(10)
    assert list(store.users()) == [] and agent.persona.value.version == 0


def test_a_response_the_store_refuses_is_not_remembered():
    class Full:
        def add_episodes(self, user_id, interactions):
            raise StoreError("the disk is full")

    online = OnlineAlignment(Slow(), store=Full())  # type: ignore[arg-type]
    agent = online.watch(agent_of())
    with pytest.raises(StoreError):
        agent.observe("film", "drama")
    assert len(agent.memory) == 0
    online.close()


def test_numbers_of_versions_are_free_ones_after_a_rollback(store):
    optimizer = Slow()
    optimizer.go.set()
    with OnlineAlignment(optimizer, every=1, store=store) as online:
        agent = online.watch(agent_of())
        first = agent.persona.value
        agent.observe("film 0", "drama")
        online.wait(10)
        store.rollback("ana", 0)
        agent.persona.value = first
        agent.observe("film 1", "drama")
        online.wait(10)
    assert [(v.version, v.parent, v.current) for v in store.versions("ana")] == [
        (0, None, False), (1, 0, False), (2, 0, True),
    ]  # fmt: skip
    assert agent.persona.value.version == 2


def test_alignment_for_real_lifts_the_answers_and_is_counted():
    user = SyntheticUser(seed=5)
    ledger = Ledger()
    with dspy.context(lm=rule_following_lm()), OnlineAlignment(PersonaAlignment(), every=24) as online:
        agent = online.watch(PersonaAgent(user.signature, user_id=user.user_id, persona=Persona(user_id=user.user_id)))
        held = user.interactions(15, start=100)

        def right():
            return sum(agent(description=i.query).tag == i.response for i in held)

        before = right()
        with ledger.recording():
            for i in user.interactions(24):
                agent.observe(i.query, i.response, time=i.time)
        assert online.wait(60)
        assert right() > before
    assert ledger.usage.calls > 0  # of the context in which the responses were observed


def test_nothing_of_the_answer_reaches_the_alignment():
    """A response observed in the middle of an answer: its turns, persona and cut are not the optimizer's."""
    seen = {}

    class Looks(Slow):
        def compile(self, student, *, trainset):
            answer = current_answer()
            seen.update({name: getattr(answer, name) for name in ("user_id", "prompt", "turns", "cut", "recorder")})
            seen.update(stream=dspy.settings.get("send_stream"), lm=dspy.settings.get("lm"))
            return super().compile(student, trainset=trainset)

    optimizer = Looks()
    optimizer.go.set()
    with OnlineAlignment(optimizer, every=1) as online:
        agent = online.watch(agent_of())

        def tells(prompt):
            agent.observe("in the middle", "drama")
            return {"tag": "drama"}

        model = seen_lm(tells)
        with dspy.context(lm=model):
            agent(film="x")
        online.wait(10)
    assert seen.pop("lm") is model and not any(seen.values())


def test_many_users_over_threads_and_asyncio(store):
    optimizer = Slow()
    optimizer.go.set()
    with dspy.context(lm=lm()), OnlineAlignment(optimizer, every=4, store=store, workers=2) as online:
        for n in range(6):
            store.add_episodes(f"u{n}", [Interaction(user_id=f"u{n}", query="first", response=f"u{n}")])
        agents = {f"u{n}": online.watch(agent_of(f"u{n}", history=store.memory(f"u{n}"))) for n in range(6)}
        with ThreadPoolExecutor(6) as pool:
            jobs = [
                pool.submit(contextvars.copy_context().run, agents[user].observe, f"film {n}", user)
                for n in range(4)
                for user in agents
            ]
            [job.result() for job in jobs]

        async def rest():
            await asyncio.gather(*[a.aobserve(f"later {n}", u) for n in range(4) for u, a in agents.items()])

        asyncio.run(rest())
        assert online.wait(30)
    for user, agent in agents.items():
        assert len(agent.memory) == 9 == len(store.episodes(user))
        assert {i.response for i in agent.memory.interactions} == {user}
        assert agent.persona.value.version == 2 and agent.persona.value.user_id == user
    assert len(optimizer.seen) == 12


def test_acall_and_streams_go_on_while_a_persona_is_aligned(store):
    optimizer = Slow()
    listener = dspy.streaming.StreamListener(signature_field_name="tag", allow_reuse=True)

    async def answers(agent):
        """By acall, by a stream of it, and what the stream said."""
        stream = dspy.streamify(
            agent, stream_listeners=[listener], async_streaming=True, include_final_prediction_in_output_stream=True
        )
        parts = [part async for part in stream(film="streamed")]
        said = "".join(p.chunk for p in parts if isinstance(p, dspy.streaming.StreamResponse))
        return (await agent.acall(film="called")).trace, parts[-1].trace, said

    async def run(online):
        agent = online.watch(agent_of(history=store.memory("ana")))
        await asyncio.gather(*(agent.aobserve(f"film {n}", "drama") for n in range(2)))
        assert await asyncio.to_thread(optimizer.began.wait, 10)
        under_way = await answers(agent)
        optimizer.go.set()
        assert await asyncio.to_thread(online.wait, 10)
        return under_way, await answers(agent)

    store.add_episodes("ana", [Interaction(user_id="ana", query="first", response="drama")])
    with dspy.context(lm=lm()), OnlineAlignment(optimizer, every=2, store=store) as online:
        before, after = asyncio.run(run(online))
    assert [trace.persona_version for trace in before[:2]] == [0, 0]
    assert [trace.persona_version for trace in after[:2]] == [1, 1]
    assert "Learned from 3." in after[1].persona and "Learned" not in before[1].persona
    assert before[2] == after[2] == "drama"


def test_without_a_service_a_response_is_just_remembered():
    agent = agent_of()
    said = agent.observe("film", "drama", metadata={"title": "x"})
    assert said.time is not None and agent.memory.interactions == (said,)
    assert asyncio.run(agent.aobserve("film 2", "drama", time="2026-01-01")).time.year == 2026
    assert agent.for_user("bob").online is None
    with pytest.raises(InputError):
        agent.observe("", "drama")
    with pytest.raises(InputError, match="every=0"):
        OnlineAlignment(Slow(), every=0)
