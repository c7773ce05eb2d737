"""STYLE's numbered invariants and DESIGN's contracts, on synthetic users with a hidden preference and a fake LM.

I5 is in test_document.py too, I7 in test_compile.py.
"""

import asyncio
import contextvars
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from statistics import fmean

import dspy
import pytest

from optimizers import AlwaysAccept, HeldOutGate, KeywordProposer, PersonaAlignment
from optimizers.proposals import Challenger
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.core.document import load_persona
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.data.files import UserHistory
from persona_dspy.errors import InputError
from persona_dspy.fleet.compile import compile_users
from persona_dspy.lm.ledger import Budget, Ledger
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import (
    KINDS,
    LABELS,
    TOPICS,
    RuleFollower,
    SyntheticUser,
    TagFilm,
    rule_following_lm,
)


def agent_of(user, n=40, **options):
    return PersonaAgent(TagFilm, history=user.interactions(n), **options)


def held_out_accuracy(program, user, n=20):
    return fmean(program(description=i.query).tag == i.response for i in user.interactions(n, start=500))


def align(user, lm=None, n=40, recall_k=None, **options):
    lm = lm or rule_following_lm()
    agent = agent_of(user, n, recall_k=recall_k)
    with dspy.context(lm=lm):
        return PersonaAlignment(**options).compile(agent, trainset=agent.examples()), lm


LMS = pytest.mark.parametrize("small", [True, False], ids=["small", "capable"])


@LMS
def test_i1_alignment_lifts_the_held_out_score(small):
    before, after = [], []
    for seed in range(6):
        user = SyntheticUser(seed=seed)
        aligned, lm = align(user, rule_following_lm(small=small))
        with dspy.context(lm=lm):
            empty = aligned.with_persona(Persona(user_id=user.user_id))
            before.append(held_out_accuracy(empty, user))
            after.append(held_out_accuracy(aligned, user))
    assert fmean(before) < 0.6
    assert fmean(after) > 0.8


@LMS
@pytest.mark.parametrize("kind", KINDS)
def test_i1_every_kind_of_user_is_answered_no_worse(kind, small):
    for seed in range(3):
        user = SyntheticUser(seed=seed, kind=kind)
        agent = PersonaAgent(user.signature, history=user.interactions(40))
        lm = rule_following_lm(small=small)
        with dspy.context(lm=lm):
            aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
        scores = aligned.alignment.scores
        assert scores.final >= max(scores.initial, scores.without_persona)
        assert not lm.engine.misses


@pytest.mark.slow
@LMS
@pytest.mark.parametrize("kind", KINDS)
def test_i1_a_fifth_of_noise_makes_hardly_anybody_worse(kind, small):
    worse, gains = [], []
    for seed in range(20):
        user = SyntheticUser(seed=seed, kind=kind, noise=0.2)
        agent = PersonaAgent(user.signature, history=user.interactions(40), recall_k=0)
        with dspy.context(lm=rule_following_lm(small=small)):
            aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
            empty = aligned.with_persona(Persona(user_id=user.user_id))
            before, after = (
                fmean(
                    agent.kind.score(user.response(i.query), program(description=i.query)[agent.response_field])
                    for i in user.interactions(40, start=1000)
                )
                for program in (empty, aligned)
            )
        gains.append(after - before)
        worse += [seed] if after < before else []
        scores = aligned.alignment.scores
        assert scores.final >= scores.without_persona, seed
    assert len(worse) <= 2, worse  # of 100 users whose preference drifts, 2 with either LM
    assert fmean(gains) > 0.1


class CountingTracker:
    where = ""

    def __init__(self):
        self.calls = 0

    def begin(self, params): ...

    def user(self, user_id, document, error=""):
        self.calls += document.alignment.total.calls

    def end(self, metrics, ended="FINISHED"): ...


@LMS
def test_i2_calls_of_engine_ledger_and_tracker_are_equal(small):
    lm, tracker, ledger = rule_following_lm(small=small), CountingTracker(), Ledger()
    users = [SyntheticUser(seed=s) for s in range(3)]
    histories = [UserHistory(user_id=u.user_id, interactions=tuple(u.interactions(24))) for u in users]
    with dspy.context(lm=lm), ledger.recording():
        results = list(
            compile_users(agent_of(users[0], 0), histories, PersonaAlignment(concurrency=2), tracker=tracker)
        )
    assert all(r.document for r in results)
    assert len(lm.engine.calls) == tracker.calls == sum(r.alignment.total.calls for r in results) > 30
    assert not lm.engine.misses
    for result in results:
        roles = {name: u.calls for name, u in result.alignment.usage.items() if name != "total"}
        assert sum(roles.values()) == result.alignment.total.calls


class ThinksAloud(dspy.Module):
    """Calls the LM past DSPy's adapters, then a predictor."""

    def __init__(self):
        super().__init__()
        self.tag = dspy.Predict(TagFilm)

    def forward(self, description):
        thought = dspy.settings.lm(f"Think about: {description}")
        assert thought
        return self.tag(description=description)


@LMS
@pytest.mark.parametrize("keeps", [True, False])
def test_i2_holds_for_calls_past_all_adapters(keeps, small):
    tracker, ledger = CountingTracker(), Ledger()
    lm = FakeLM(lambda p: None if p.outputs else "a thought", RuleFollower(), cache=keeps, small=small)
    users = [SyntheticUser(seed=s) for s in range(2)]
    histories = [UserHistory(user_id=u.user_id, interactions=tuple(u.interactions(12))) for u in users]
    program = personalize(ThinksAloud(), user_id="template")
    with dspy.context(lm=lm), ledger.recording():
        results = list(compile_users(program, histories, PersonaAlignment(epochs=1), tracker=tracker))
    assert all(r.document for r in results), [r.error for r in results]
    direct = sum("Think about" in prompt.user for prompt in lm.engine.calls)
    assert len(lm.engine.calls) == tracker.calls == ledger.usage.calls > direct > 5


class WorsePersonas:
    """Proposes rules that are wrong for everything."""

    def __call__(self, incumbent, evidence):
        wrong = "history" if evidence.simulated[0].gold != "history" else "romance"
        bullet = Bullet(section="what decides", when="nothing else fits", then=wrong)
        words = ", ".join(f'"{w}"' for i in evidence.past for w in i.query.split())[:200]
        bullet = Bullet(section="what decides", when=f"it mentions {words}", then=wrong)
        if bullet.id in {b.id for b in incumbent.bullets}:
            return []
        return [Challenger(persona=incumbent.apply([Edit(op="add", bullet=bullet)]), edits=(bullet.sentence,))]


@LMS
def test_i3_a_challenger_that_scores_lower_is_never_kept(small):
    for seed in range(4):
        aligned, _ = align(SyntheticUser(seed=seed), rule_following_lm(small=small), proposer=WorsePersonas())
        scores = aligned.alignment.scores
        assert scores.final >= max(scores.initial, scores.without_persona)
        for trial in (t for step in aligned.alignment.steps for t in step.trials):
            assert not trial.accepted or trial.challenger_score >= trial.incumbent_score
        written = [t for step in aligned.alignment.steps if step.epoch for t in step.trials]
        assert written and not any(t.accepted for t in written)


class Liar:
    """A capable LM that writes portraits and edits which are wrong for everything."""

    def __init__(self):
        self.inner = RuleFollower()

    def __call__(self, prompt):
        words = " or ".join(f'"{w}"' for marks in TOPICS.values() for w in marks)
        line = {"section": "what decides", "text": f'If it mentions {words}, answer "history".', "strength": "strong"}
        if "lines" in prompt.outputs:
            return {"lines": [line | {"examples": [1, 2, 3]}]}
        if "edits" in prompt.outputs:
            return {"edits": [line | {"op": "add", "line": "", "attempts": [1]}]}
        return self.inner(prompt)


def test_i3_what_an_lm_makes_up_is_not_kept_where_it_does_harm():
    for seed in range(4):
        user = SyntheticUser(seed=seed)
        aligned, _ = align(user, FakeLM(Liar(), small=False), recall_k=0)
        scores = aligned.alignment.scores
        assert scores.final >= scores.without_persona
        for trial in (t for step in aligned.alignment.steps for t in step.trials):
            assert not trial.accepted or trial.challenger_score >= trial.incumbent_score


def test_i3_without_a_gate_the_same_challengers_are_kept():
    aligned, _ = align(SyntheticUser(seed=1), proposer=WorsePersonas(), gate=AlwaysAccept(8))
    assert aligned.alignment.accepted > 0
    assert aligned.alignment.scores.final < aligned.alignment.scores.initial


def personas(n):
    return [Persona.from_text(f"Secret of user {k:02d} is {k * 7919}.", user_id=f"u{k:02d}") for k in range(n)]


def queries(lm, template, persona):
    mine = template.for_user(persona.user_id, [], persona)
    with dspy.context(lm=lm):
        return [mine(description=f"a rocket for {persona.user_id}").tag for _ in range(5)]


def assert_nobody_else_is_seen(calls):
    assert len(calls) == 100
    for prompt in calls:
        user = prompt.fields["description"].split()[-1]
        assert f"Secret of user {user[1:]}" in prompt.system
        assert prompt.system.count("Secret of user") == 1


@LMS
def test_i4_users_do_not_leak_under_threads(small):
    lm, template = rule_following_lm(small=small), PersonaAgent(TagFilm, user_id="template")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda p: contextvars.copy_context().run(queries, lm, template, p), personas(20)))
    assert_nobody_else_is_seen(lm.engine.calls)


@pytest.mark.slow
@LMS
def test_i4_users_do_not_leak_under_asyncio(small):
    lm, template = rule_following_lm(small=small), PersonaAgent(TagFilm, user_id="template")

    async def one(persona):
        mine = template.for_user(persona.user_id, [], persona)
        for _ in range(5):
            await mine.acall(description=f"a rocket for {persona.user_id}")
            await asyncio.sleep(0)

    async def everyone():
        with dspy.context(lm=lm):
            await asyncio.gather(*(one(p) for p in personas(20)))

    asyncio.run(everyone())
    assert_nobody_else_is_seen(lm.engine.calls)


@LMS
def test_i4_users_aligned_at_once_do_not_see_each_other(small):
    """Every request to the LM, of whatever role, holds words of one user's past alone."""
    lm, users = rule_following_lm(small=small), [SyntheticUser(seed=s) for s in range(3)]
    histories = [
        UserHistory(
            user_id=u.user_id,
            interactions=tuple(replace(i, query=f"{i.query} canary{u.seed}") for i in u.interactions(24)),
        )
        for u in users
    ]
    with dspy.context(lm=lm):
        results = list(compile_users(agent_of(users[0], 0), histories, PersonaAlignment()))
    assert all(r.document for r in results)
    for prompt in lm.engine.calls:
        said = prompt.system + prompt.user + str(prompt.turns)
        assert sum(f"canary{u.seed}" in said for u in users) == 1


@LMS
def test_i5_import_sends_the_same_messages_to_the_lm(tmp_path, small):
    user = SyntheticUser(seed=5)
    aligned, lm = align(user, rule_following_lm(small=small))
    aligned.persona.value.to_json(tmp_path / "p.json")
    again = aligned.with_persona(load_persona(tmp_path / "p.json"))
    del lm.engine.calls[:]
    with dspy.context(lm=lm):
        for program in (aligned, again):
            program(description="a rocket leaves the planet")
    first, second = lm.engine.calls
    assert first == second
    assert aligned.persona.value.render() in first.system


@LMS
def test_i6_same_input_same_lineage(small):
    first, second = (align(SyntheticUser(seed=5), rule_following_lm(small=small))[0] for _ in range(2))
    assert first.persona.value.render() == second.persona.value.render()
    assert [s.model_dump(exclude={"usage"}) for s in first.alignment.steps] == [
        s.model_dump(exclude={"usage"}) for s in second.alignment.steps
    ]


# --- contracts ---------------------------------------------------------------------------------------------------


def test_contract_1_the_persona_is_last_in_the_system_message_verbatim():
    lm = rule_following_lm()
    persona = Persona.from_text('Likes  "tea" & {braces}, 50% of <b>it</b>.', user_id="u")
    with dspy.context(lm=lm):
        PersonaAgent(TagFilm, persona=persona)(description="a rocket")
    assert lm.engine.calls[0].system.endswith(persona.render())


def test_contract_2_the_persona_is_a_parameter_of_the_agent(tmp_path):
    user = SyntheticUser(seed=2)
    aligned, _ = align(user)
    assert "persona" in dict(aligned.named_parameters())
    aligned.save(tmp_path / "program.json")
    fresh = agent_of(user)
    fresh.load(tmp_path / "program.json")
    assert fresh.persona.value == aligned.persona.value
    fresh.persona.reset()
    assert fresh.persona.value == aligned.persona.initial


def test_contract_3_the_student_is_not_changed_and_the_optimizer_is_native():
    assert PersonaAlignment.__bases__ == (dspy.teleprompt.Teleprompter,)
    agent, lm = agent_of(SyntheticUser(seed=2)), rule_following_lm()
    before = (agent.persona.value, agent.dump_state())
    with dspy.context(lm=lm):
        aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
    assert aligned is not agent
    assert (agent.persona.value, agent.dump_state()) == before
    assert aligned.alignment.steps


@LMS
def test_contract_4_a_simulation_sees_nothing_of_its_own_time_or_later(small):
    user, lm = SyntheticUser(seed=4), rule_following_lm(heeds_turns=True, small=small)
    agent = agent_of(user, 30, recall_k=30)
    past = {i.query: n for n, i in enumerate(agent.memory.interactions)}
    with dspy.context(lm=lm):
        aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
    held = aligned.alignment.gate_size
    asked = [p for p in lm.engine.calls if "description" in p.fields]
    assert held == 8
    assert any(p.turns for p in asked)
    for prompt in asked:
        now = past[prompt.fields["description"]]
        seen = [past[next(q for q in past if q in turn[0])] for turn in prompt.turns]
        assert all(position < now for position in seen)
        assert all(position < 30 - held for position in seen), "a gate item was recalled"
    reflecting = [p for p in lm.engine.calls if "description" not in p.fields]
    assert reflecting or small, "a small LM that is right on what judges is asked for no rules"
    for prompt in reflecting:
        gate = [i.query for i in agent.memory.interactions[-held:]]
        assert not any(q in prompt.user or q in prompt.system for q in gate), "a gate item was fitted on"


def test_contract_4_facts_are_counted_as_of_then():
    # All of the gate's responses are one label that never occurred before: were facts counted over everything, it
    # would be the most frequent one.
    early = [
        Interaction(user_id="u", query=f"a rocket {n}", response=LABELS[n % 2], time=f"2026-01-{n + 1:02d}")
        for n in range(9)
    ]
    late = [
        Interaction(user_id="u", query=f"a planet {n}", response="horror", time=f"2026-02-{n + 1:02d}")
        for n in range(3)
    ]
    lm = rule_following_lm()
    agent = PersonaAgent(TagFilm, history=[*early, *late])
    with dspy.context(lm=lm):
        PersonaAlignment(gate=HeldOutGate(3)).compile(agent, trainset=agent.examples())
    assert not any(
        "horror" in p.system.split("You answer for one")[-1]
        for p in lm.engine.calls
        if "You answer for one" in p.system
    )


def test_contract_5_scores_and_gate_size_are_in_the_record():
    aligned, _ = align(SyntheticUser(seed=6))
    record = aligned.alignment
    assert record.gate_size == 8
    assert record.scores.final >= record.scores.initial
    rejected = [t for s in record.steps for t in s.trials if not t.accepted]
    accepted = [t for s in record.steps for t in s.trials if t.accepted]
    assert accepted
    assert all(t.challenger_score is None or t.challenger_score <= t.incumbent_score for t in rejected)
    assert all(t.challenger_score >= t.incumbent_score for t in accepted)
    assert {t.outcome for t in accepted} == {"accepted"} and "accepted" not in {t.outcome for t in rejected}


@LMS
@pytest.mark.parametrize("calls", [0, 1, 9, 12])
def test_contract_6_a_budget_stops_cleanly_with_the_best_so_far(calls, small):
    aligned, lm = align(SyntheticUser(seed=7), rule_following_lm(small=small), budget=Budget(calls=calls))
    assert len(lm.engine.calls) <= calls
    assert aligned.alignment.stopped.startswith("budget")
    assert aligned.persona.value.render()
    if calls <= 1:
        assert aligned.persona.value == aligned.persona.initial, "nothing was judged"


def test_contract_7_episodes_are_turns_with_the_nearest_last():
    user, lm = SyntheticUser(seed=8), rule_following_lm()
    agent = agent_of(user, 20, persona=Persona(user_id=user.user_id))
    with dspy.context(lm=lm):
        answer = agent(description="rocket planet story")
    turns = lm.engine.calls[0].turns
    best = answer.trace.recalled[0]
    nearest = next(i for i in agent.memory.interactions if i.id == best.id)
    assert len(turns) == 4
    assert nearest.query in turns[-1][0]
    assert nearest.response in turns[-1][1]


def test_contract_9_a_persona_never_changes_in_place():
    aligned, _ = align(SyntheticUser(seed=9))
    with pytest.raises(ValueError, match="frozen"):
        aligned.persona.value.version = 7
    assert aligned.persona.value.parent == aligned.persona.value.version - 1


def test_contract_12_what_cannot_be_aligned_says_so():
    with pytest.raises(InputError, match=r"personalize\(program\)"):
        PersonaAlignment().compile(dspy.Predict("q -> a"), trainset=[dspy.Example(q="x", a="y")])
    with pytest.raises(InputError, match="trainset"):
        PersonaAlignment().compile(agent_of(SyntheticUser()), trainset=[3])
    with pytest.raises(InputError, match="recent=0"):
        PersonaAlignment(recent=0)


def test_contract_13_observers_get_events_and_the_ledger_total():
    seen = []
    aligned, _ = align(SyntheticUser(seed=3), observers=[seen.append])
    assert {e["event"] for e in seen} >= {"start", "scored", "simulated", "judged", "step", "end"}
    assert all(e["user_id"] == "synthetic-3" for e in seen)
    assert seen[-1]["calls"] == aligned.alignment.total.calls


def test_too_few_interactions_keep_the_initial_persona():
    aligned, lm = align(SyntheticUser(seed=1), n=3)
    assert "too few" in aligned.alignment.stopped
    assert aligned.persona.value == aligned.persona.initial
    assert not lm.engine.calls


def test_the_fake_proposes_when_mining_is_off():
    aligned, _ = align(SyntheticUser(seed=2), proposer=KeywordProposer(mine=False))
    assert aligned.alignment.accepted > 0
