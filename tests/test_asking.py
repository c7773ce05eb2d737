import json
import threading
from dataclasses import replace

import dspy
import pytest

from optimizers import PersonaAlignment
from persona_dspy.data.interaction_rows import UserHistory
from persona_dspy.errors import ModelError
from persona_dspy.judge.asking import ask_all
from persona_dspy.judge.people import cases, scored_as
from persona_dspy.judge.results import Results
from persona_dspy.judge.systems import Setting
from persona_dspy.judge.table import Table, standings
from persona_dspy.judge.variant import ABLATIONS, OPTIMIZED, variants
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.memory.episodic import EpisodicMemory
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import RuleFollower, SyntheticUser

USERS = [
    UserHistory(user_id=f"s{n}", interactions=tuple(SyntheticUser(seed=n, user_id=f"s{n}").interactions(24)))
    for n in range(3)
]
PEOPLE = cases(USERS)


def make(*, recent, epochs):
    return PersonaAlignment(recent=recent, epochs=min(2, epochs))


def fake_lm():
    def think(prompt):
        return {"thought": "t", "action": "recall", "words": "x"} if "action" in prompt.outputs else None

    return FakeLM(think, RuleFollower(heeds_turns=True))


def run(folder, chosen, lm=None, people=PEOPLE, **options):
    results = Results(folder, {"test": 1}, {})
    with dspy.context(lm=lm or fake_lm(), adapter=dspy.JSONAdapter()):
        done = ask_all(people, chosen, Setting(align=make, paper_retrieval="bm25"), results, **options)
    return done, results


def table(results, chosen):
    names = [v.name for v in chosen]
    kept = [r for r in results.rows if r.kind == "answer"]
    found = standings([replace(r, seconds=0.0) for r in kept], scored_as(PEOPLE), names)  # wall time is never the same
    return Table(tuple(found), scored_as(PEOPLE)).to_csv()


def answers(results):
    return {(r.system, r.user_id, r.query_id): r.answer for r in results.rows if r.kind == "answer"}


@pytest.mark.slow
def test_every_system_and_ablation_answers_every_query_and_what_is_counted_was_sent(tmp_path):
    lm, chosen = fake_lm(), variants(ablations=ABLATIONS, cold=[0])
    done, results = run(tmp_path, chosen, lm, people=PEOPLE[:2])
    assert done
    assert len(answers(results)) == len(chosen) * 12
    assert sum(r.calls for r in results.rows) == len(lm.engine.calls)
    scores = {s.system: s.score.value for s in standings(results.rows, scored_as(PEOPLE), [v.name for v in chosen])}
    assert scores["persona"] > scores["direct"]
    assert scores["persona@history=0"] == scores["direct@history=0"] == scores["direct"]
    assert scores["majority"] < scores["rag"]


@pytest.mark.slow
def test_other_ways_to_a_persona_answer_every_query_and_what_is_counted_was_sent(tmp_path):
    def summary(prompt):
        if "lines" in prompt.outputs:
            return {"lines": [{"line": "Likes films about space best.", "examples": [1, 2]}]}

    lm, chosen = FakeLM(summary, RuleFollower(heeds_turns=True)), variants(OPTIMIZED, references=False)
    done, results = run(tmp_path, chosen, lm, people=PEOPLE[:2])
    assert done
    assert len(answers(results)) == len(chosen) * 12
    assert sum(r.calls for r in results.rows) == len(lm.engine.calls)
    scores = {s.system: s.score.value for s in standings(results.rows, scored_as(PEOPLE), [v.name for v in chosen])}
    assert scores["textgrad"] >= scores["portrait"]
    documents = {p.parent.name for p in (tmp_path / "personas").rglob("*.json")}
    assert documents == set(OPTIMIZED)
    spent = {r.system: r.calls for r in results.rows if r.kind == "prepared" and r.user_id == "s0"}
    assert 0 < spent["gepa"] <= 120 and 0 < spent["portrait"] <= 8
    before = len(lm.engine.calls)
    assert run(tmp_path, chosen, lm, people=PEOPLE[:2])[0] and len(lm.engine.calls) == before


def test_an_optimizers_own_budget_ends_it_and_not_the_run(tmp_path):
    results = Results(tmp_path, {"test": 1}, {})
    setting = Setting(optimizer_calls=12)
    with dspy.context(lm=fake_lm(), adapter=dspy.JSONAdapter()):
        assert ask_all(PEOPLE[:1], variants(["persona", "textgrad"], references=False), setting, results)
    assert all(r.calls <= 12 for r in results.rows if r.kind == "prepared")


@pytest.mark.slow
def test_ablations_take_away_what_they_say(tmp_path):
    chosen, lm = variants(["persona"], references=False, ablations=ABLATIONS), fake_lm()
    _, results = run(tmp_path, chosen, lm, people=PEOPLE[:1])
    cost = {r.system: r.calls for r in results.rows if r.kind == "prepared"}
    left = {f"persona@{name}" for name in ABLATIONS if name not in ("no-alignment", "no-persona")}
    assert set(cost) == {"persona", *left}
    asked = {v.name: [] for v in chosen}
    for v in chosen:
        fresh = fake_lm()
        folder = tmp_path / v.name
        folder.mkdir()
        run(folder, [v], fresh, people=PEOPLE[:1])
        asked[v.name] = fresh.engine.calls[-1]
    persona = "You answer for one particular user"
    assert persona in asked["persona"].system and asked["persona"].turns
    assert persona not in asked["persona@no-persona"].system and asked["persona@no-persona"].turns
    assert not asked["persona@no-memory"].turns
    near = EpisodicMemory(PEOPLE[0].history).recall(PEOPLE[0].queries[-1].query, 4)
    assert not asked["persona@no-action"].turns and persona in asked["persona@no-action"].system
    plain = [user for user, _ in asked["persona@no-steering"].turns]
    assert all(e.interaction.query in user for e, user in zip(reversed(near), plain, strict=True))
    assert plain != [user for user, _ in asked["persona"].turns], "there the persona has a say"
    assert not asked["persona@block"].turns and "data source" in asked["persona@block"].user
    assert "Answered 18 times" not in asked["persona@no-memory"].system


@pytest.mark.slow
def test_a_run_cut_short_goes_on_to_the_same_table_and_pays_no_answer_twice(tmp_path):
    chosen = variants(["persona", "direct", "pag"])
    _, whole = run(tmp_path / "whole", chosen)
    stopping, lm = threading.Event(), fake_lm()

    class Stop(Exception):
        pass

    def on_row(row):
        if len(answers(results)) >= 20 and not stopping.is_set():
            stopping.set()
            raise Stop

    results = Results(tmp_path / "cut", {"test": 1}, {})
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()), pytest.raises(Stop):
        ask_all(PEOPLE, chosen, Setting(align=make), results, on_row=on_row)
    paid = len(results.rows)
    done, again = run(tmp_path / "cut", chosen, lm)
    assert done
    assert len(again.rows) > paid
    assert answers(again) == answers(whole)
    assert table(again, chosen) == table(whole, chosen)
    keys = [(r.system, r.user_id, r.query_id) for r in again.rows if r.kind == "answer"]
    assert len(keys) == len(set(keys))
    before = len(lm.engine.calls)
    done, third = run(tmp_path / "cut", chosen, lm)
    assert done
    assert len(lm.engine.calls) == before, "a rerun asks nothing"
    assert table(third, chosen) == table(again, chosen)


def test_an_interrupted_run_ends_at_the_next_call_of_what_runs_beside_it(tmp_path):
    stopping, after = threading.Event(), []

    def slow(prompt):
        if "You answer for one particular user" in prompt.system and stopping.wait(10):
            after.append(prompt)

    def on_row(row):
        stopping.set()
        raise KeyboardInterrupt

    results = Results(tmp_path, {"test": 1}, {})
    lm = FakeLM(slow, RuleFollower(heeds_turns=True))
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()), pytest.raises(KeyboardInterrupt):
        ask_all(PEOPLE, variants(["persona", "direct"]), Setting(align=make), results, on_row=on_row, workers=2)
    assert len(after) <= 2, "the alignment under way was not gone through"
    assert not list((tmp_path / "personas").rglob("*.json"))


def test_time_that_is_up_keeps_no_half_aligned_persona(tmp_path):
    done, results = run(tmp_path, variants(["persona"], references=False), ledger=Ledger(budget=Budget(seconds=0.0)))
    assert not done
    assert results.rows == []
    assert not list((tmp_path / "personas").rglob("*.json"))
    done, results = run(tmp_path, variants(["persona"], references=False))
    assert done
    documents = [json.loads(p.read_text()) for p in (tmp_path / "personas").rglob("*.json")]
    assert {d["user_id"] for d in documents} == {"s0", "s1", "s2"}


def test_an_answer_that_cannot_be_read_is_a_row_and_an_lm_that_fails_raises(tmp_path):
    chosen = variants(["direct"], references=False)
    good, field = PEOPLE[0].queries[0].query, scored_as(PEOPLE).response_field
    lm = FakeLM(lambda p: {field: PEOPLE[0].queries[0].gold} if good in p.user else "no json at all")
    _, results = run(tmp_path / "a", chosen, lm)
    assert standings(results.rows, scored_as(PEOPLE), ["direct"])[0].unparsed == 17
    with pytest.raises(dspy.utils.exceptions.LMError):
        run(tmp_path / "b", chosen, FakeLM(lambda p: None))


@pytest.mark.parametrize("rubbish", ["", "I'm sorry, I cannot help.", '{"tag": ""}', '{"tag'])
def test_an_lm_that_answers_only_rubbish_ends_it_and_leaves_no_rows(tmp_path, rubbish):
    with pytest.raises(ModelError, match="cannot be read"):
        run(tmp_path, variants(["direct"], references=False), FakeLM(lambda p: rubbish))
    assert not (tmp_path / "answers.jsonl").exists()


def test_preparation_and_prompts_see_nothing_held_out_and_no_other_user(tmp_path):
    lm = fake_lm()
    run(tmp_path, variants(["persona", "pag", "rag"], references=False), lm, workers=3)
    for call in lm.engine.calls:
        text = call.system + call.user + "".join(a + b for a, b in call.turns)
        owners = {c.user_id for c in PEOPLE for i in c.history if i.query in text}
        assert len(owners) <= 1
        past = call.system + "".join(a for a, _ in call.turns)
        assert not any(q.query in past for c in PEOPLE for q in c.queries)
