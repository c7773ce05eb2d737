"""The program of each user, up to date: over threads, tasks, processes and what operators type, on both databases."""

import asyncio
import contextvars
import multiprocessing
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from requests_seen import seen_lm

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.context import current_answer
from persona_dspy.cli import main
from persona_dspy.core.alignment import Alignment
from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.erasure import Erasure
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError, RunError, StoreError, UnknownUser
from persona_dspy.lm.ledger import Ledger
from persona_dspy.service.alignments import Pace
from persona_dspy.service.metrics import Metrics
from persona_dspy.service.personas import Personas, ServiceOptions
from persona_dspy.store.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm
from persona_dspy.tracking.traces import TraceSender
from persona_dspy.tracking.tracker import MlflowTracker
from tests.test_store import server, store, url

__all__ = ["server", "store", "url"]  # fixtures

QUICK = Pace(poll=0.02, lease=0.3, retry=0.05)


class Slow:
    """An optimizer that adds a line when it is let go, and says when it began."""

    def __init__(self, *, go=False, fails=None):
        self.began, self.go, self.fails = threading.Event(), threading.Event(), fails
        self.seen, self.under = [], []
        if go:
            self.go.set()

    def compile(self, student, *, trainset):
        self.seen.append(len(trainset))
        self.under.append((student.persona.value.version, student.persona.value.render()))
        self.began.set()
        assert self.go.wait(10)
        if self.fails is not None:
            raise self.fails
        aligned = student.deepcopy()
        line = Bullet(section="style", text=f"Learned from {len(trainset)}.")
        aligned.persona.value = aligned.persona.value.apply([Edit(op="add", bullet=line)])
        aligned.alignment = Alignment(user_id=student.user_id, accepted=1)
        return aligned


def lm():
    return seen_lm(lambda prompt: {"tag": "drama"})


def service(store, optimizer, *, every=3, tracker=None, **options):
    options = ServiceOptions(**{"pace": QUICK, **options})
    return Personas(store, PersonaAgent("film -> tag"), optimizer, every=every, tracker=tracker, options=options)


def observe(personas, user, count, *, start=0):
    for n in range(start, start + count):
        personas.observe(user, f"film {n}", "drama")


def lineage(store, user="ana"):
    return [(v.version, v.parent, v.current) for v in store.versions(user)]


# -- answering while learning --------------------------------------------------------------------------------------


def test_answers_go_on_under_the_old_version_and_the_new_one_takes_over_at_once(store):
    optimizer = Slow()
    with dspy.context(lm=lm()), service(store, optimizer) as personas:
        agent = personas.for_user("ana")
        for n in range(3):
            assert not optimizer.began.is_set()
            agent.observe(f"film {n}", "drama")
        assert optimizer.began.wait(5)
        assert agent(film="x").trace.persona_version == 0  # under way: nobody waits
        assert len(agent.memory) == 3 and not personas.wait(timeout=0.01)
        optimizer.go.set()
        assert personas.wait(timeout=10)
        trace = agent(film="x").trace
    assert trace.persona_version == 1 and "Learned from 3." in trace.persona
    outcome = personas.last("ana")
    assert (outcome.version, outcome.changed, outcome.error) == (1, True, "")
    assert lineage(store) == [(0, None, False), (1, 0, True)]
    assert PersonaDocument.model_validate(store.current("ana").document).persona() == agent.persona.value
    assert [i.query for i in store.episodes("ana")] == ["film 0", "film 1", "film 2"]
    assert store.current("ana").alignment["accepted"] == 1


def test_any_program_serves(store):
    class Rag(dspy.Module):
        def __init__(self):
            super().__init__()
            self.draft = dspy.Predict("film -> tag")

        def forward(self, film):
            return self.draft(film=film)

    model = lm()
    with dspy.context(lm=model), Personas(store, Rag(), Slow(go=True), every=1) as personas:
        personas.observe("ana", "film", "drama")
        assert personas.wait(10)
        assert personas.for_user("ana")(film="x").tag == "drama"
        assert "Learned from 1." in model.engine.calls[-1].system


def test_what_comes_meanwhile_counts_for_the_next_and_only_one_runs_at_a_time(store):
    optimizer = Slow()
    with service(store, optimizer, every=2, workers=3) as personas:
        observe(personas, "ana", 2)
        optimizer.began.wait(5)
        observe(personas, "ana", 5, start=2)
        assert optimizer.seen == [2]
        optimizer.go.set()
        assert personas.wait(10)
        assert optimizer.seen == [2, 7] and personas.for_user("ana").persona.value.version == 2
        assert store.due("ana").new == 0


def test_a_failure_leaves_the_old_version_is_told_and_tried_again(store, caplog):
    told, optimizer = [], Slow(go=True, fails=RuntimeError("the model is gone"))
    with service(store, optimizer, every=1, on_done=told.append) as personas:
        personas.observe("ana", "film", "drama")
        while len(optimizer.seen) < 3:  # waits a little longer each time
            assert personas.wait(10)
        assert "the model is gone" in personas.last("ana").error and store.due("ana").failures >= 2
        optimizer.fails = None
        while not (told and told[-1].changed):
            assert personas.wait(10)
        assert personas.for_user("ana").persona.value.version == 1
        assert store.due("ana").failures == 0 and not told[0].changed
    assert "the model is gone" in caplog.text and "ana" not in caplog.text, "forgetting reaches no log"


class Unread(Slow):
    """An optimizer whose LM answered nothing that could be read."""

    def compile(self, student, *, trainset):
        aligned = super().compile(student, trainset=trainset)
        aligned.alignment = Alignment(user_id=student.user_id, unread=4, nothing_read=True)
        return aligned


def test_a_model_of_which_nothing_can_be_read_is_told(store, caplog):
    told, metrics = [], Metrics()
    with service(store, Unread(go=True), every=1, on_done=told.append) as personas:
        personas.observe("ana", "film", "drama")
        assert personas.wait(10)
        metrics.count_alignment(told[0])
        page = metrics.text(personas.status()).decode()
    assert told[0].unread and told[0].changed and "is it the right model?" in caplog.text
    assert 'persona_alignments_total{result="unread"} 1.0' in page


def test_what_the_optimizer_cannot_use_waits_for_more_interactions(store):
    optimizer = Slow(go=True, fails=InputError("too few"))
    with service(store, optimizer, every=2) as personas:
        observe(personas, "ana", 2)
        assert personas.wait(10) and personas.last("ana").error == "too few"
        assert (store.due("ana").new, store.due("ana").failures) == (0, 0)
        observe(personas, "ana", 2, start=2)
        assert personas.wait(10)
    assert optimizer.seen == [2, 4]


def test_align_now_needs_nothing_new_and_no_background(store):
    optimizer = Slow(go=True)
    with service(store, optimizer) as personas:
        personas.observe("ana", "film", "drama")
        outcome = personas.align_now("ana")
        assert outcome.changed and outcome.version == 1 and store.due("ana").new == 0
        with pytest.raises(UnknownUser):
            personas.align_now("bob")
        optimizer.go.clear()
        optimizer.began.clear()
        observe(personas, "ana", 3, start=5)
        assert optimizer.began.wait(5)
        with pytest.raises(RunError, match="still being aligned"):
            personas.align_now("ana", timeout=0.1)
        optimizer.go.set()


def test_alignment_for_real_lifts_the_answers_and_is_counted(store):
    user, ledger = SyntheticUser(seed=5), Ledger()
    with (
        dspy.context(lm=rule_following_lm()),
        Personas(store, PersonaAgent(user.signature), PersonaAlignment(), every=24) as personas,
    ):
        agent = personas.for_user(user.user_id)
        held = user.interactions(15, start=100)

        def right():
            return sum(agent(description=i.query).tag == i.response for i in held)

        before = right()
        with ledger.recording():
            for i in user.interactions(24):
                agent.observe(i.query, i.response, time=i.time)
        assert personas.wait(60)
        assert right() > before
    assert ledger.usage.calls > 0  # of the context in which the responses were observed


def test_nothing_of_the_answer_reaches_the_alignment(store):
    """A response observed in the middle of an answer: its turns, persona and cut are not the optimizer's."""
    seen = {}

    class Looks(Slow):
        def compile(self, student, *, trainset):
            answer = current_answer()
            seen.update({name: getattr(answer, name) for name in ("user_id", "prompt", "turns", "cut", "recorder")})
            seen.update(stream=dspy.settings.get("send_stream"), lm=dspy.settings.get("lm"))
            return super().compile(student, trainset=trainset)

    with service(store, Looks(go=True), every=1) as personas:
        agent = personas.for_user("ana")

        def tells(prompt):
            agent.observe("in the middle", "drama")
            return {"tag": "drama"}

        model = seen_lm(tells)
        with dspy.context(lm=model):
            agent(film="x")
        assert personas.wait(10)
    assert seen.pop("lm") is model and not any(seen.values())


def test_many_users_over_threads_and_asyncio(store):
    optimizer = Slow(go=True)
    with dspy.context(lm=lm()), service(store, optimizer, every=4, workers=2, open_users=3) as personas:
        users = [f"u{n}" for n in range(6)]  # more than are kept open
        with ThreadPoolExecutor(6) as pool:
            jobs = [
                pool.submit(contextvars.copy_context().run, personas.observe, user, f"film {n}", user)
                for n in range(4)
                for user in users
            ]
            [job.result() for job in jobs]
        assert personas.wait(30)

        async def rest():
            await asyncio.gather(*[personas.aobserve(u, f"later {n}", u) for n in range(4) for u in users])
            agent = await personas.afor_user("u1")
            return await agent.acall(film="x")

        answer = asyncio.run(rest())
        assert answer.trace.user_id == "u1"
        assert personas.wait(30)
        for user in users:
            agent = personas.for_user(user)
            assert len(agent.memory) == 8 == len(store.episodes(user))
            assert {i.response for i in agent.memory.interactions} == {user}
            assert agent.persona.value.version == 2 and agent.persona.value.user_id == user
        assert personas.status()["open_users"] == 3
    assert len(optimizer.seen) == 12


def test_acall_streams_and_copies_are_up_to_date(store):
    listener = dspy.streaming.StreamListener(signature_field_name="tag", allow_reuse=True)

    async def answers(agent):
        """By acall, by a stream of it, by a copy, and what the stream said."""
        stream = dspy.streamify(
            agent, stream_listeners=[listener], async_streaming=True, include_final_prediction_in_output_stream=True
        )
        parts = [part async for part in stream(film="streamed")]
        text = "".join(p.chunk for p in parts if isinstance(p, dspy.streaming.StreamResponse))
        copied = agent.deepcopy()
        traces = [(await agent.acall(film="called")).trace, parts[-1].trace, copied(film="copied").trace]
        return [trace.persona_version for trace in traces], text

    with dspy.context(lm=lm()), service(store, Slow(go=True), every=2) as personas:
        agent = personas.for_user("ana")
        copied = agent.deepcopy()
        assert asyncio.run(answers(agent)) == ([0, 0, 0], "drama")
        observe(personas, "ana", 2)
        assert personas.wait(10)
        assert asyncio.run(answers(agent)) == ([1, 1, 1], "drama")
        assert copied(film="x").trace.persona_version == 1
        other = agent.with_persona(Persona.from_text("Mine.", user_id="ana"))
        assert "Mine." in other(film="x").trace.persona  # chosen by hand: no longer the service's


class Traced:
    """A tracker that writes traces, and forgets users."""

    def __init__(self, uri="sqlite:///traces.db"):
        self.uri, self.written = uri, []

    def forget(self, user_id, texts=()):
        before, self.written = self.written, [t for t in self.written if t.user_id != user_id]
        return Erasure(place="MLflow", removed={"traces": len(before) - len(self.written)})


def test_forgetting_empties_the_traces_too_those_that_wait_and_without_a_tracker(store, url):
    tracked = Traced()
    with (
        Store.open(url) as other,
        TraceSender(lambda trace: tracked.written.append(trace), tracker=tracked) as traces,
        service(store, Slow(), traces=traces) as here,
        service(other, Slow(), traces=traces) as there,
        dspy.context(lm=lm(), persona_traces=traces),
    ):
        there_agent = there.for_user("ana")
        for personas in (here, there):
            personas.observe("ana", "film", "drama")
            personas.for_user("ana")(film="a secret")
            personas.for_user("bob")(film="not one")
        done = {erasure.place: erasure for erasure in here.forget("ana")}
        waited = done["traces on their way"].counts.get("waiting traces", 0)
        assert waited + done["MLflow"].counts.get("traces", 0) == 2
        assert there_agent(film="another life").trace.user_id == "ana"  # where the forgetting is noticed
    assert [(t.user_id, t.query) for t in tracked.written if t.user_id == "ana"] == [("ana", "another life")]
    assert len([t for t in tracked.written if t.user_id == "bob"]) == 2


@pytest.mark.parametrize("failure", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()])
def test_what_ends_threads_ends_one_alignment_alone(store, failure):
    optimizer = Slow(go=True, fails=failure)
    with service(store, optimizer, every=2) as personas:
        observe(personas, "ana", 2)
        assert personas.wait(10)
        assert type(failure).__name__ in personas.last("ana").error
        optimizer.fails = None
        observe(personas, "bob", 2)
        assert personas.wait(10) and lineage(store, "bob")[-1][0] == 1


def test_dspys_histories_keep_nothing_of_a_services_users(store):
    with dspy.context(lm=lm()), service(store, Slow()) as personas:
        agent = personas.for_user("ana")
        agent(film="a secret")
        assert not agent.history and not personas.program.history and not dspy.settings.lm.history


# -- several processes ---------------------------------------------------------------------------------------------


def test_two_services_answer_under_one_persona_and_pay_once(store, url):
    """Two objects over two connections see each other only through the store, as two processes do."""
    first, second = Slow(go=True), Slow(go=True)
    with (
        Store.open(url) as other,
        service(store, first) as here,
        service(other, second) as there,
        dspy.context(lm=lm()),
    ):
        agent = there.for_user("ana")
        assert agent(film="x").trace.persona_version == 0
        for n in range(6):  # in turns: neither sees three of its own before three are there
            (here, there)[n % 2].observe("ana", f"film {n}", "drama")
            assert here.wait(10) and there.wait(10)
        assert sorted(first.seen + second.seen) == [3, 6]
        for personas in (here, there):
            assert personas.for_user("ana").persona.value.version == 2
        assert agent(film="x").trace.persona_version == 2 and len(agent.memory) == 6
        assert lineage(store) == [(0, None, False), (1, 0, False), (2, 1, True)]


def test_a_rollback_typed_elsewhere_rules_the_next_answer_and_the_next_alignment(store, url, capsys):
    optimizer = Slow(go=True)
    with dspy.context(lm=lm()), service(store, optimizer) as personas:
        agent = personas.for_user("ana")
        observe(personas, "ana", 3)
        assert personas.wait(10) and agent(film="x").trace.persona_version == 1
        with pytest.raises(SystemExit) as ended:
            main(["rollback", "ana", "--to", "0", "--store", url])
        assert ended.value.code == 0
        trace = agent(film="x").trace
        assert trace.persona_version == 0 and trace.persona == ""
        observe(personas, "ana", 3, start=3)
        assert personas.wait(10)
        assert optimizer.under[-1] == (0, "") and agent(film="x").trace.persona_version == 2
    assert lineage(store) == [(0, None, False), (1, 0, False), (2, 0, True)]
    assert "Learned from 3." not in store.current("ana").text


@pytest.mark.parametrize("what", ["rollback", "edit"])
def test_what_an_operator_does_during_an_alignment_stays(store, url, what):
    optimizer = Slow(go=True)
    with dspy.context(lm=lm()), service(store, optimizer, every=2) as personas:
        observe(personas, "ana", 2)
        assert personas.wait(10)
        optimizer.go.clear()
        optimizer.began.clear()
        observe(personas, "ana", 2, start=2)
        assert optimizer.began.wait(5)
        with Store.open(url) as other:
            if what == "rollback":
                other.rollback("ana", 0)
            else:
                edited = Persona.from_text("Edited.", user_id="ana").model_copy(update={"version": 7, "parent": 1})
                other.put_persona("ana", PersonaDocument.of(edited).to_json())
        optimizer.go.set()
        assert personas.wait(10)
        outcome, version = personas.last("ana"), {"rollback": 0, "edit": 7}[what]
        assert (
            not outcome.changed and outcome.version == version and f"version {version} became current" in outcome.note
        )
        assert personas.for_user("ana")(film="x").trace.persona_version == version
        observe(personas, "ana", 2, start=4)
        assert personas.wait(10)
        assert store.current("ana").parent == version
        assert "Learned from 4" not in store.current("ana").text, "the overruled alignment left nothing"


def test_a_user_forgotten_elsewhere_is_gone_and_starts_anew(store, url, tmp_path, monkeypatch, capsys):
    """As an engineer types it, while the service runs."""
    monkeypatch.chdir(tmp_path)
    optimizer = Slow(go=True)
    with dspy.context(lm=lm()), service(store, optimizer, drafts=0) as personas:
        agent = personas.for_user("ana")
        for n in range(3):
            agent.observe(f"secret {n}", "drama")
        assert personas.wait(10) and agent(film="x").trace.persona_version == 1
        with pytest.raises(SystemExit) as ended:
            main(["forget", "ana", "--store", url, "--yes", "--tracking-uri", "off"])
        assert ended.value.code == 0
        trace = agent(film="x").trace
        assert trace.persona_version == 0 and trace.persona == "" and len(agent.memory) == 0
        assert list(store.users()) == [], "an answer writes nothing where no drafts are kept"
        for n in range(3):
            agent.observe(f"new {n}", "drama")
        assert personas.wait(10)
        assert optimizer.seen == [3, 3] and optimizer.under[-1] == (0, "")
        assert [i.query for i in agent.memory.interactions] == ["new 0", "new 1", "new 2"]
        assert lineage(store) == [(0, None, False), (1, 0, True)]


@pytest.mark.parametrize("through", ["store", "service", "other service"])
@pytest.mark.parametrize("back", [False, True])
def test_a_user_forgotten_during_an_alignment_does_not_come_back(store, url, through, back):
    optimizer = Slow()
    with (
        Store.open(url) as other,
        service(other, Slow(go=True), every=9) as there,
        service(store, optimizer, every=2) as personas,
    ):
        agent = personas.for_user("ana")
        observe(personas, "ana", 2)
        optimizer.began.wait(5)
        {"store": other, "service": personas, "other service": there}[through].forget("ana")
        if back:  # under the same id, before the alignment of the earlier life ends
            there.observe("ana", "anew", "crime")
        optimizer.go.set()
        assert personas.wait(10)
        agent = personas.for_user("ana")
        assert agent.persona.value.version == 0 and len(agent.memory) == back
        if back:
            assert store.versions("ana") == [] and [i.query for i in store.episodes("ana")] == ["anew"]
        else:
            assert list(store.users()) == []


def test_a_dead_process_leaves_its_users_to_others(store, url):
    """The count and the lease outlive a process; whoever took the lease and died is waited for, then replaced."""
    for n in range(3):
        store.observe("ana", [Interaction(user_id="ana", query=f"film {n}", response="drama")])
    assert store.take_lease("ana", 77, at_least=3) is not None  # and dies
    optimizer = Slow(go=True)
    with service(store, optimizer) as personas:
        personas.for_user("bob")  # any use of the service starts it
        for _ in range(500):
            if store.current("ana") is not None:
                break
            threading.Event().wait(0.02)
        assert lineage(store) == [(0, None, False), (1, 0, True)] and optimizer.seen == [3]


@pytest.mark.slow
def test_a_living_process_keeps_its_lease(store, url):
    slow, quick = Slow(), Slow(go=True)
    with Store.open(url) as other, service(store, slow, every=1) as here:
        here.observe("ana", "film", "drama")
        assert slow.began.wait(10)
        with service(other, quick, every=1) as there:
            there.for_user("bob")
            threading.Event().wait(4 * QUICK.lease)
            assert not quick.began.is_set()
        slow.go.set()
        assert here.wait(10) and lineage(store)[-1] == (1, 0, True)


def test_close_leaves_what_is_unfinished_to_others(store, url):
    slow, quick = Slow(), Slow(go=True)
    here = service(store, slow, every=1)
    here.observe("ana", "film", "drama")
    assert slow.began.wait(5)
    assert not here.close(timeout=0.05)
    with Store.open(url) as other, service(other, quick, every=1) as there:
        there.for_user("bob")
        assert quick.began.wait(5) and there.wait(10)
    slow.go.set()
    assert here.wait(10)
    assert lineage(store) == [(0, None, False), (1, 0, True)], "what ended too late was thrown away"
    here.observe("ana", "film 2", "drama")  # answers and observations go on
    assert store.due("ana").new == 1


# -- faults of everyday --------------------------------------------------------------------------------------------


class Cut:
    """Makes a store fail as one whose disk or server is gone."""

    def __init__(self, store, monkeypatch):
        self.gone = False
        for name in ("state", "observe", "due_users", "due", "take_lease", "release"):
            monkeypatch.setattr(store, name, self._unless_gone(getattr(store, name)))

    def _unless_gone(self, call):
        def cut(*arguments, **options):
            if self.gone:
                raise StoreError("the server is gone")
            return call(*arguments, **options)

        return cut


def test_a_store_that_is_gone_for_a_while_loses_nothing(store, url, monkeypatch, tmp_path):
    optimizer, cut = Slow(go=True), Cut(store, monkeypatch)
    with dspy.context(lm=lm()), service(store, optimizer, queue=tmp_path / "queue") as personas:
        agent = personas.for_user("ana")
        observe(personas, "ana", 3)
        assert personas.wait(10) and agent(film="x").trace.persona_version == 1
        cut.gone = True
        assert agent(film="x").trace.persona_version == 1, "from memory"
        observe(personas, "ana", 3, start=3)
        assert len(agent.memory) == 6 and agent(film="x").trace.persona_version == 1
        assert personas.for_user("new")(film="x").trace.persona_version == 0
        status = personas.status()
        assert "the server is gone" in status["store"] and status["queued"] == 3
        cut.gone = False
        for _ in range(500):
            if personas.status()["queued"] == 0 and not personas.status()["store"] and personas.wait(10):
                break
            threading.Event().wait(0.02)
        assert personas.status()["store"] == "" and personas.wait(10)
        assert agent(film="x").trace.persona_version == 2 and len(agent.memory) == 6
        assert len(store.episodes("ana")) == 6 and optimizer.seen == [3, 6]


def test_without_a_queue_what_the_store_refuses_is_not_acknowledged(store, monkeypatch):
    cut = Cut(store, monkeypatch)
    with service(store, Slow()) as personas:
        agent = personas.for_user("ana")
        cut.gone = True
        with pytest.raises(StoreError, match="the server is gone"):
            agent.observe("film", "drama")
        assert len(agent.memory) == 0


def test_what_was_queued_before_a_user_was_forgotten_is_dropped(store, url, monkeypatch, tmp_path):
    cut = Cut(store, monkeypatch)
    with service(store, Slow(), queue=tmp_path / "queue") as personas:
        observe(personas, "ana", 1)
        cut.gone = True
        observe(personas, "ana", 2, start=1)
        with Store.open(url) as other:
            other.forget("ana")
        cut.gone = False
        for _ in range(500):
            if personas.status()["queued"] == 0:
                break
            threading.Event().wait(0.02)
        assert personas.status()["queued"] == 0 and list(store.users()) == []
        cut.gone = True
        observe(personas, "bob", 1)
        cut.gone = False
        monkeypatch.setattr(personas, "_deliver_queued", lambda: None)
        assert len(personas.for_user("bob").memory) <= 1


def test_mlflow_down_stops_nothing(store):
    class Down:
        where, users = "", 0

        def begin(self, params):
            raise RunError("MLflow is down")

        def user(self, user_id, document, error=""):
            raise AssertionError("never begun")

        def end(self, metrics, ended="FINISHED"):
            raise AssertionError("never begun")

    with service(store, Slow(go=True), tracker=Down()) as personas:
        observe(personas, "ana", 3)
        assert personas.wait(10) and personas.last("ana").changed
        assert "MLflow is down" in personas.status()["tracker"]


def test_alignments_are_runs(store):
    class Runs:
        where = ""

        def __init__(self):
            self.events = []

        def begin(self, params):
            self.events.append("begin")

        def user(self, user_id, document, error=""):
            self.events.append((user_id, document.version if document else None, error))

        def end(self, metrics, ended="FINISHED"):
            self.events.append("end")

    tracker, optimizer = Runs(), Slow(go=True)
    with service(store, optimizer, tracker=tracker) as personas:
        observe(personas, "ana", 3)
        assert personas.wait(10)
        optimizer.fails = InputError("too few")
        observe(personas, "ana", 3, start=3)
        assert personas.wait(10)
    assert tracker.events == ["begin", ("ana", 1, ""), ("ana", None, "too few"), "end"]


def test_wrong_use_says_what_to_do(store):
    with pytest.raises(InputError, match="every=0"):
        Personas(store, PersonaAgent("film -> tag"), Slow(), every=0)
    with service(store, Slow()) as personas:
        for user in ("", " ", "a\0b", "z" * 1201):
            with pytest.raises(InputError, match="user_id"):
                personas.for_user(user)
        assert personas.history("nobody") == []
        with pytest.raises(UnknownUser):
            personas.rollback("nobody")
        with pytest.raises(InputError):
            personas.observe("ana", "", "drama")


def _after_fork(personas, said):
    try:
        personas.for_user("ana")
    except InputError as error:
        said.put(str(error))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_told_to_make_its_own(tmp_path):
    with Store.open(tmp_path / "s.db") as store:
        personas = service(store, Slow())
        fork = multiprocessing.get_context("fork")
        said = fork.Queue()
        child = fork.Process(target=_after_fork, args=(personas, said))
        child.start()
        assert "made after the fork" in said.get(timeout=20)
        child.join(10)
        assert os.getpid() == personas._process


@pytest.mark.slow
def test_alignments_are_runs_of_mlflow_and_are_forgotten_there(tmp_path, empty_mlflow):
    shutil.copy(empty_mlflow, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with Store.open(tmp_path / "s.db") as store:
        with service(store, Slow(go=True), tracker=MlflowTracker(uri, runs="all")) as personas:
            observe(personas, "ana", 3)
            assert personas.wait(10)
        with service(store, Slow(go=True), tracker=MlflowTracker(uri)) as personas:
            removed = {one.place: dict(one.removed) for one in personas.forget("ana")}
    assert removed["MLflow"]["runs"] == 1 and removed["store"]["episodes"] == 3
