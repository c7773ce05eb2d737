"""Many users: streamed, isolated from each other's failures, stopped and resumed without paying twice (I7)."""

import itertools
import json
import threading
import time

import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.core.interactions import Interaction
from persona_dspy.data.files import UserHistory
from persona_dspy.errors import InputError, ModelError, StoreError
from persona_dspy.fleet.compile import compile_users
from persona_dspy.fleet.folder import FleetFolder, fleet_status
from persona_dspy.fleet.stream import longest_first
from persona_dspy.fleet.user import made_from
from persona_dspy.lm.kept_answers import recorded, unshared
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.store.store import Store
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower, SyntheticUser, TagFilm


def history(seed, n=12):
    user = SyntheticUser(seed=seed)
    return UserHistory(user_id=user.user_id, interactions=tuple(user.interactions(n)))


def fleet(lm, seeds=range(4), n=12, **options):
    """Results of a fleet, by user."""
    optimizer = options.pop("optimizer", None) or PersonaAlignment(epochs=1)
    with dspy.context(lm=lm):
        found = compile_users(PersonaAgent(TagFilm), (history(s, n) for s in seeds), optimizer, **options)
        return {r.user_id: r for r in found}


def lm_of(handler=None, **options):
    return FakeLM(*([handler] if handler else []), RuleFollower(), **options)


def timeless(value):
    """JSON without what a clock decides."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("created", "created_at", "seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def content(folder):
    """The persona files of a folder."""
    return {file.name: timeless(json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))}


def test_users_stream_in_and_results_stream_out():
    taken, given = [], []

    def source():
        for seed in range(40):
            taken.append(seed)
            yield history(seed, 4)

    with dspy.context(lm=lm_of()):
        for result in compile_users(PersonaAgent(TagFilm), source(), PersonaAlignment(epochs=1), workers=3):
            given.append(result.user_id)
            assert len(taken) - len(given) <= 2 * 3
    assert len(set(given)) == 40


@pytest.mark.parametrize("workers", [1, 3])
def test_a_user_who_comes_twice_is_an_error_and_never_overwritten(tmp_path, workers):
    again, given = UserHistory(user_id=history(1).user_id, interactions=history(7, 4).interactions[:3]), []
    with FleetFolder(tmp_path / "once") as folder:
        fleet(lm_of(), range(3), folder=folder)
    with dspy.context(lm=lm_of()), FleetFolder(tmp_path / "twice") as folder:
        users = [history(0), history(1), history(2), again, history(3)]
        results = compile_users(
            PersonaAgent(TagFilm), users, PersonaAlignment(epochs=1), folder=folder, workers=workers
        )
        with pytest.raises(InputError, match=rf"user '{again.user_id}': rows 2 and 4 of.*join_users"):
            given.extend(results)
        assert sorted(fleet_status(tmp_path / "twice")["users"].items()) == [("done", 3)]
    assert content(tmp_path / "twice") == content(tmp_path / "once")


def test_a_row_that_cannot_be_read_lets_who_is_under_way_finish():
    def source():
        yield from (history(s) for s in range(3))
        raise InputError("row 4: no")

    given = []
    with dspy.context(lm=lm_of()), pytest.raises(InputError, match="row 4"):
        for result in compile_users(PersonaAgent(TagFilm), source(), PersonaAlignment(epochs=1), workers=2):
            given.append(result)
    assert len(given) == 3 and all(r.document and not r.stopped for r in given)


@pytest.mark.parametrize("once", [False, True], ids=["a list", "a stream"])
@pytest.mark.parametrize(
    ("kind", "answers", "told"),
    [
        (int, (["3", "4"], ["4000", "4001"]), "only if it is exactly the user's own"),
        (int, (["3"], ["1", "5"]), "Answer from 1 to 5"),
        (float, (["50", "40"], ["75.5", "2", "31"]), "Answer from 1 to 75.5"),
    ],
    ids=["codes", "ratings", "amounts"],
)
def test_bare_numbers_are_of_one_kind_for_all_users(kind, answers, told, once):
    """One user alone would be rated and the other labelled; the task says to both the same."""
    signature = dspy.Signature("payment -> account").with_updated_fields("account", type_=kind)
    users = [
        UserHistory(
            user_id=f"u{n}",
            interactions=tuple(
                Interaction(user_id=f"u{n}", query=f"payment {i:02d}", response=some[i % len(some)], id=str(i))
                for i in range(9)
            ),
        )
        for n, some in enumerate(answers)
    ]
    lm = FakeLM(lambda p: {"account": 4000, "about_the_user": "x", "edits": []})
    with dspy.context(lm=lm):
        found = list(compile_users(PersonaAgent(signature), iter(users) if once else users, PersonaAlignment(epochs=1)))
    assert not any(result.error for result in found)
    asked = [prompt.system for prompt in lm.engine.calls if prompt.outputs == ("account",)]
    assert asked and all(told in system for system in asked)


def test_the_longest_are_begun_first_and_none_waits_for_the_stream():
    users = [UserHistory(user_id=f"u{n}", interactions=history(n, 3 + n % 5).interactions) for n in range(40)]
    taken = []
    begun = [u.user_id for u in longest_first((taken.append(u) or u for u in users), 8)]
    assert sorted(begun) == sorted(u.user_id for u in users)
    lengths = [len(next(u for u in users if u.user_id == name).interactions) for name in begun]
    assert lengths[-8:] == sorted(lengths[-8:], reverse=True)
    stream = longest_first((taken.append(u) or u for u in users), 8)
    taken.clear()
    next(stream)
    assert len(taken) == 1


def test_workers_do_not_change_results(tmp_path):
    for name, workers in (("one", 1), ("eight", 8)):
        with FleetFolder(tmp_path / name) as folder:
            fleet(lm_of(), range(8), folder=folder, workers=workers)
    assert content(tmp_path / "one") == content(tmp_path / "eight")
    assert len(content(tmp_path / "one")) == 8


def test_more_users_are_under_way_than_calls_in_flight_and_a_stop_lets_no_waiting_call_through():
    """So that a call is ready whenever one is answered; as many calls as workers at most."""
    follower, guard, users = RuleFollower(), threading.Condition(), set()
    flying, peak = 0, 0

    def slow(prompt):
        nonlocal flying, peak
        with guard:
            flying, peak = flying + 1, max(peak, flying + 1)
            users.add(threading.current_thread().name)
        time.sleep(0.002)
        with guard:
            flying -= 1
        return follower(prompt)

    everybody = fleet(FakeLM(slow), range(12), workers=4)
    assert peak == 4 and len(users) == 5
    assert all(r.document is not None for r in everybody.values())

    ledger, sent = Ledger(), 0

    def stopping(prompt):
        nonlocal sent
        with guard:
            sent += 1
            if sent == 6:
                ledger.stop("enough")
        time.sleep(0.002)
        return follower(prompt)

    fleet(FakeLM(stopping), range(12), workers=4, ledger=ledger)
    assert 6 <= sent <= 6 + 3, "those that were in flight at the stop"


def test_answers_that_a_kill_left_of_a_finished_user_go_when_the_user_is_met_again(tmp_path, monkeypatch):
    with monkeypatch.context() as patch, FleetFolder(tmp_path / "p") as folder:
        patch.setattr(folder.calls, "forget", lambda user_id: 0)  # the kill came before it
        fleet(lm_of(), range(2), folder=folder)
    assert len(list(folder.calls.folder.iterdir())) == 2
    with FleetFolder(tmp_path / "p") as folder:
        assert fleet(lm_of(), range(2), folder=folder, resume=True) == {}
        assert list(folder.calls.folder.iterdir()) == []


def test_one_users_failure_is_that_users_alone(tmp_path):
    marked = "synthetic-2 secret text"

    def refuse(prompt):
        if "poison" in prompt.user:
            raise RuntimeError(marked)

    poisoned = history(2)
    items = tuple(type(i)(user_id="bad", query=i.query + " poison", response=i.response) for i in poisoned.interactions)
    sources = [history(1), UserHistory(user_id="bad", interactions=items), history(3)]
    with dspy.context(lm=lm_of(refuse)), FleetFolder(tmp_path / "p") as folder:
        found = {
            r.user_id: r
            for r in compile_users(PersonaAgent(TagFilm), sources, PersonaAlignment(epochs=1), folder=folder)
        }
    assert {u for u, r in found.items() if r.document is None} == {"bad"} < set(found)
    assert marked in found["bad"].error
    status = fleet_status(tmp_path / "p")
    assert status["users"] == {"done": 2, "failed": 1}
    assert marked.encode() not in (tmp_path / ".p.fleet" / "journal.db").read_bytes()


def test_resume_skips_who_is_finished_and_only_those(tmp_path):
    lm, skipped = lm_of(), []
    with FleetFolder(tmp_path / "p") as folder:
        fleet(lm, range(3), folder=folder)
        paid = len(lm.engine.calls)
        again = fleet(lm, range(3), folder=folder, resume=True, on_skip=lambda: skipped.append(1))
        assert (again, len(lm.engine.calls), len(skipped)) == ({}, paid, 3)
        assert set(fleet(lm, range(4), folder=folder, resume=True)) == {"synthetic-3"}
        folder.file("synthetic-1").unlink()
        assert set(fleet(lm, range(4), folder=folder, resume=True)) == {"synthetic-1"}
        assert set(fleet(lm, [0], n=16, folder=folder, resume=True)) == {"synthetic-0"}  # more interactions
        other = PersonaAlignment(epochs=2)
        assert len(fleet(lm, range(2), folder=folder, resume=True, optimizer=other)) == 2
        assert len(fleet(lm_of(model="fake/other"), [2], folder=folder, resume=True)) == 1
        assert list((tmp_path / ".p.fleet" / "calls").iterdir()) == []  # answers go when a user is finished


@pytest.mark.parametrize(
    "at", [1, pytest.param(7, marks=pytest.mark.slow), 20, pytest.param(33, marks=pytest.mark.slow)]
)
def test_a_fleet_stopped_at_any_call_resumes_to_the_same_result(tmp_path, at):
    with FleetFolder(tmp_path / "whole") as folder:
        whole = lm_of()
        fleet(whole, folder=folder)
    lm = lm_of()
    with FleetFolder(tmp_path / "cut") as folder:
        first = fleet(lm, folder=folder, budget=Budget(calls=at), workers=2)
        assert len(lm.engine.calls) == at
        assert any(r.stopped for r in first.values())
        second = fleet(lm, folder=folder, resume=True, workers=2)
    assert len(lm.engine.calls) == len(whole.engine.calls)  # none paid twice
    assert not {u for u, r in first.items() if r.document and not r.stopped} & set(second)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


@pytest.mark.parametrize("at", [pytest.param(7, marks=pytest.mark.slow), 20])
def test_a_stopped_fleet_with_a_store_resumes_to_the_same_versions(tmp_path, at):
    whole, lm = lm_of(), lm_of()
    with FleetFolder(tmp_path / "whole") as folder, Store.open(tmp_path / "whole.db") as store:
        fleet(whole, folder=folder, store=store)
    with FleetFolder(tmp_path / "cut") as folder, Store.open(tmp_path / "s.db") as store:
        fleet(lm, folder=folder, store=store, budget=Budget(calls=at), workers=2)
        fleet(lm, folder=folder, store=store, resume=True, workers=2)
        assert [len(store.versions(user)) for user in store.users()] == [1] * 4
    assert len(lm.engine.calls) == len(whole.engine.calls)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_what_was_stored_but_not_noted_before_a_crash_is_not_done_again(tmp_path, monkeypatch):
    lm = lm_of()
    with FleetFolder(tmp_path / "p") as folder, Store.open(tmp_path / "s.db") as store:
        with monkeypatch.context() as crash:
            crash.setattr(FleetFolder, "put", lambda *_: (_ for _ in ()).throw(StoreError("power is gone")))
            with pytest.raises(StoreError):
                fleet(lm, [0], folder=folder, store=store)
        paid = len(lm.engine.calls)
        assert fleet(lm, [0], folder=folder, store=store, resume=True) == {}
        assert len(lm.engine.calls) == paid
        assert json.loads(folder.file("synthetic-0").read_text()) == store.current("synthetic-0").document
        assert fleet_status(tmp_path / "p")["users"] == {"done": 1}


def test_a_budget_around_a_fleet_stops_it_as_its_own_does(tmp_path):
    lm = lm_of()
    with FleetFolder(tmp_path / "p") as folder:
        with Ledger(budget=Budget(calls=20)).recording():
            first = fleet(lm, range(6), folder=folder)
        assert any(r.stopped for r in first.values()) and len(first) < 6
        again = fleet(lm, range(6), folder=folder, resume=True)
        assert set(again) | {u for u, r in first.items() if not r.stopped} == {f"synthetic-{n}" for n in range(6)}
        assert fleet_status(tmp_path / "p")["users"] == {"done": 6}


def test_users_under_way_have_connections_of_their_own_and_the_lm_stays_what_it_is():
    class Scrubbed(dspy.LM):
        def __getstate__(self):
            raise TypeError("holds a secret")

    lm = recorded(Scrubbed("openai/gpt-4o-mini", api_key="k", api_base="http://127.0.0.1:9/v1", engine="lm15"))
    twins = [unshared(lm), unshared(lm)]
    assert len({id(t._engine_store) for t in [lm, *twins]}) == 3
    assert all(type(t) is type(lm) and t.kwargs == lm.kwargs for t in twins)
    fake = lm_of()
    assert unshared(fake) is fake


def test_a_users_own_budget_is_final(tmp_path):
    lm = lm_of()
    with FleetFolder(tmp_path / "p") as folder:
        small = PersonaAlignment(epochs=3, budget=Budget(calls=5))
        found = fleet(lm, range(3), folder=folder, optimizer=small)
        assert all(r.alignment.total.calls <= 5 and not r.stopped for r in found.values())
        assert all(r.alignment.stopped.startswith("budget") for r in found.values())
        assert fleet(lm, range(3), folder=folder, optimizer=small, resume=True) == {}


def test_an_lm_that_is_down_stops_the_fleet_and_says_how_to_go_on(tmp_path):
    def down(prompt):
        from dspy.lm15 import AuthError

        raise AuthError("no such key")

    taken = itertools.count()
    with dspy.context(lm=lm_of(down)), FleetFolder(tmp_path / "p") as folder:
        endless = (history(next(taken), 4) for _ in itertools.count())
        found = compile_users(PersonaAgent(TagFilm), endless, PersonaAlignment(epochs=1), folder=folder, workers=2)
        results = []
        with pytest.raises(ModelError, match="--resume"):
            results.extend(found)
    assert next(taken) < 20
    lm = lm_of()
    with FleetFolder(tmp_path / "p") as folder:
        assert len(fleet(lm, range(5), n=4, folder=folder, resume=True)) == 5


def test_what_cannot_be_kept_ends_the_fleet(tmp_path, monkeypatch):
    lm = lm_of()
    with FleetFolder(tmp_path / "p") as folder:
        monkeypatch.setattr("persona_dspy.fleet.folder.write_text", full_disk)
        with pytest.raises(StoreError, match="free some space"):
            fleet(lm, range(50), folder=folder, workers=1)  # user 0 is then the one that meets it
        assert len(lm.engine.calls) < 500
        monkeypatch.undo()
        paid = len(lm.engine.calls)
        fleet(lm, [0], folder=folder, resume=True)
        assert len(lm.engine.calls) == paid  # every answer for user 0 was kept


def full_disk(path, text):
    raise OSError(28, "No space left on device")


def test_interrupting_ends_before_the_next_call():
    lm = lm_of()
    with dspy.context(lm=lm):
        found = compile_users(PersonaAgent(TagFilm), (history(s) for s in range(50)), PersonaAlignment(), workers=2)
        next(found)
        found.close()
    assert len(lm.engine.calls) < 12 * 50


def test_the_store_gets_versions_in_a_chain(tmp_path):
    with Store.open(tmp_path / "s.db") as store, FleetFolder(tmp_path / "p") as folder:
        fleet(lm_of(), [1], store=store, folder=folder)
        first = store.current("synthetic-1")
        fleet(lm_of(), [1], store=store, folder=folder)  # the same again: nothing new
        assert len(store.versions("synthetic-1")) == 1
        fleet(lm_of(), [1], n=24, store=store, folder=folder)
        second = store.current("synthetic-1")
        assert (second.parent, second.version) == (first.version, first.version + 1)
        assert json.loads(folder.file("synthetic-1").read_text())["version"] == second.version
        assert store.rollback("synthetic-1").version == first.version


def test_a_user_forgotten_during_a_compile_stays_forgotten(tmp_path):
    """Typed in another process while the user's work was under way."""

    class Forgets(PersonaAlignment):
        def compile(self, student, *, trainset, valset=None, teacher=None):
            aligned = super().compile(student, trainset=trainset)
            with Store.open(tmp_path / "s.db") as other:
                other.forget("synthetic-1")
            return aligned

    with Store.open(tmp_path / "s.db") as store, FleetFolder(tmp_path / "p") as folder:
        store.add_episodes("synthetic-1", history(1).interactions)
        results = fleet(lm_of(), [1, 2], store=store, folder=folder, optimizer=Forgets(epochs=1))
        assert "forgotten" in results["synthetic-1"].error and results["synthetic-1"].document is None
        assert results["synthetic-2"].document is not None
        assert list(store.users()) == ["synthetic-2"] and not folder.file("synthetic-1").exists()


def test_forget_leaves_numbers_only(tmp_path):
    lm, secret = lm_of(), "synthetic-1"
    with FleetFolder(tmp_path / "p") as folder:
        fleet(lm, range(3), folder=folder, budget=Budget(calls=15))
        fleet(lm, [1], folder=folder)
        fleet(lm, [1], folder=folder, optimizer=PersonaAlignment(epochs=2), budget=Budget(calls=2))
        removed = folder.forget(secret)
        assert removed["persona_files"] == removed["journal_rows"] == 1
        assert removed["lm_answers"] == 2
    left = [f for f in tmp_path.rglob("*") if f.is_file()]
    assert left and not any(secret.encode() in f.read_bytes() or secret in f.name for f in left)


def test_two_fleets_do_not_share_a_folder(tmp_path):
    with FleetFolder(tmp_path / "p"), pytest.raises(InputError, match="another process"):
        FleetFolder(tmp_path / "p")


def test_status_knows_what_a_killed_fleet_left(tmp_path):
    with FleetFolder(tmp_path / "p") as folder:
        folder.begin({"users": 3, "lm": "m"})
        fleet(lm_of(), [0], folder=folder)
        assert fleet_status(tmp_path / "p")["run"]["state"] == "running"
    found = fleet_status(tmp_path / "p")  # nobody said how it ended, and nobody holds the lock
    assert (found["run"]["state"], found["users"], found["run"]["params"]["users"]) == ("interrupted", {"done": 1}, 3)
    assert found["calls"] > 0
    with pytest.raises(InputError, match="no fleet"):
        fleet_status(tmp_path / "nowhere")


def test_the_fleets_account_is_the_sum_of_its_users():
    lm, account, outer = lm_of(), Ledger(), Ledger()
    found = fleet(lm, range(3), ledger=account, workers=3)
    assert account.usage.calls == sum(r.alignment.total.calls for r in found.values()) == len(lm.engine.calls)
    with outer.recording():
        fleet(lm, [5])
    assert outer.usage.calls == len(lm.engine.calls) - account.usage.calls
    assert lm.history == []


def test_wrong_options():
    with pytest.raises(InputError, match="workers"):
        compile_users(PersonaAgent(TagFilm), [], PersonaAlignment(), workers=0)
    with pytest.raises(InputError, match="engine"):
        compile_users(PersonaAgent(TagFilm), [], PersonaAlignment(), engine="spark")


def test_what_a_user_was_made_from_includes_metadata():
    """Other inputs of a query stand in metadata: where they change, a finished user is not finished."""
    histories = [
        UserHistory(user_id="u", interactions=(Interaction(user_id="u", query="q", response="r", metadata=more),))
        for more in ({}, {"title": "Alien"}, {"title": "Heat"})
    ]
    assert len({made_from(history, "options") for history in histories}) == 3


def test_metadata_is_part_of_the_digest_by_which_resuming_skips_a_user():
    """Programs may read metadata, so another value means another persona; the order of its keys does not."""

    def digest(*metadata):
        items = (
            Interaction(user_id="u", query=f"q{n}", response="a", id=f"i{n}", metadata=values)
            for n, values in enumerate(metadata)
        )
        return made_from(UserHistory(user_id="u", interactions=tuple(items)), "options")

    assert digest({"genre": "drama", "year": 1979}, {}) == digest({"year": 1979, "genre": "drama"}, {})
    others = [digest({}, {}), digest({"year": 1979}, {}), digest({"year": 1980}, {}), digest({}, {"year": 1979})]
    assert len(set(others)) == 4
