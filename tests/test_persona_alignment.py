"""PersonaAlignment: loop, stops, options, other DSPy optimizers beside it, warm start."""

import asyncio
import json
import random
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from statistics import fmean

import dspy
import pytest

from optimizers import (
    AlwaysAccept,
    AnchorGate,
    Cohort,
    EditProposer,
    HeldOutGate,
    KeywordProposer,
    KFoldGate,
    PersonaAlignment,
    RewriteProposer,
    SignTestGate,
)
from optimizers.loss import TextualLoss
from optimizers.proposals import Challenger
from persona_dspy.agent.agent import PersonaAgent
from persona_dspy.agent.personalized import personalize
from persona_dspy.core import plural
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Edit, Persona
from persona_dspy.errors import InputError
from persona_dspy.lm.ledger import Budget
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.synthetic import KINDS, SyntheticUser, TagFilm, rule_following_lm


def agent_of(user, n=40, **options):
    return PersonaAgent(user.signature, history=user.interactions(n), **options)


def align(program, lm=None, **options):
    lm = lm or rule_following_lm()
    with dspy.context(lm=lm):
        return PersonaAlignment(**options).compile(program, trainset=program.examples()), lm


def true_score(program, user, n=20):
    with dspy.context(lm=rule_following_lm()):
        return fmean(
            program.kind.score(user.response(i.query), program(description=i.query)[program.response_field])
            for i in user.interactions(n, start=1000)
        )


def exact(example, prediction, trace=None):
    return dspy.Prediction(score=float(example["tag"] == prediction.tag), feedback="another one")


class Feedback:
    """Proposes by feedback alone: a plain function of incumbent and evidence."""

    def __init__(self):
        self.inner, self.seen = KeywordProposer(mine=False), []

    def __call__(self, incumbent, evidence):
        self.seen.append(evidence)
        return self.inner(incumbent, evidence)


@pytest.mark.parametrize("small", [True, False], ids=["small", "capable"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_user_is_learned(kind, small):
    user = SyntheticUser(seed=3, kind=kind)
    agent = agent_of(user)
    aligned, lm = align(agent, rule_following_lm(small=small))
    assert true_score(aligned, user) >= max(0.95, true_score(agent, user))
    assert aligned.alignment.accepted or true_score(agent, user) == 1
    assert len(lm.engine.calls) < 60
    assert not lm.engine.misses


@pytest.mark.parametrize("seed", [11, 16])
def test_a_change_seen_once_per_topic_before_the_held_out_part_is_followed(seed):
    user = SyntheticUser(seed=seed, kind="drift")
    aligned, _ = align(agent_of(user, recall_k=0))
    assert true_score(aligned, user) == 1


@pytest.mark.slow
def test_noisy_histories_do_not_end_in_a_worse_persona():
    worse = 0
    for seed in range(10):
        user = SyntheticUser(seed=seed, kind=KINDS[seed % len(KINDS)], noise=0.2)
        agent = agent_of(user, recall_k=0)
        aligned, _ = align(agent)
        worse += true_score(aligned, user) < true_score(agent, user)
    assert worse <= 1  # over 100 seeds of each kind: python -m benchmarks.optimizers --noise-seeds 100


@pytest.mark.parametrize("n", range(4))
def test_fewer_than_four_interactions_keep_the_initial_persona_and_say_so(n):
    aligned, lm = align(agent_of(SyntheticUser(seed=1), n))
    assert "too few" in aligned.alignment.stopped
    assert aligned.persona.value == aligned.persona.initial
    assert not lm.engine.calls


def test_four_interactions_are_enough():
    user = SyntheticUser(seed=0, kind="style")
    agent = agent_of(user, 4)
    aligned, _ = align(agent)
    assert aligned.alignment.options["gate"] == "KFoldGate"
    assert aligned.alignment.gate_size == 2
    assert "folds" in aligned.alignment.notes[0] and "first fold" in aligned.alignment.notes[0]
    assert true_score(aligned, user) > true_score(agent, user)


@pytest.mark.parametrize(
    "gate",
    [
        KFoldGate(3),
        SignTestGate(0.75),
        pytest.param(AnchorGate(["i5", "i9"])),
        AlwaysAccept(8),
    ],
    ids=lambda g: type(g).__name__,
)
def test_every_gate_runs_the_whole_loop(gate):
    user = SyntheticUser(seed=4)
    aligned, _ = align(agent_of(user), gate=gate)
    assert aligned.alignment.accepted >= 1
    assert true_score(aligned, user) > (0.8 if gate.decides else 0.7)


def test_a_valset_judges_instead_of_what_would_be_held_out():
    user, lm = SyntheticUser(seed=4), rule_following_lm()
    agent = agent_of(user, 30)
    valset = [agent.example(i) for i in user.interactions(5, start=30)]
    with dspy.context(lm=lm):
        aligned = PersonaAlignment().compile(agent, trainset=agent.examples(), valset=valset)
    assert aligned.alignment.gate_size == 5
    assert len(agent.memory) == 30
    assert len(aligned.memory) == 35


@pytest.mark.parametrize(("loss", "calls"), [("each", 3), ("batch", 1), (TextualLoss("batch"), 1)])
def test_feedback_is_one_call_a_mistake_or_one_a_step(loss, calls):
    user = SyntheticUser(seed=1, odd_topics=6)
    aligned, lm = align(agent_of(user), loss=loss, proposer=Feedback(), epochs=1)
    assert [s.scores for s in aligned.alignment.steps if s.epoch] == [(0.0, 0.0, 0.0)]
    assert sum("attempt" in p.fields or "lessons" in p.outputs for p in lm.engine.calls) == calls


def test_feedback_that_recurs_reaches_the_proposer():
    user = SyntheticUser(seed=1, odd_topics=6)

    class Stubborn(Feedback):
        def __call__(self, incumbent, evidence):
            self.seen.append(evidence)
            return []

    same = dspy.Prediction(score=0.0, feedback="Never uses the usual tag.")
    proposer = Stubborn()
    align(agent_of(user), metric=lambda gold, pred, trace=None: same, proposer=proposer, patience=3)
    told = "Never uses the usual tag."
    assert [list(e.recurring) for e in proposer.seen] == [[], [(told, 2)], [(told, 3)]]


@pytest.mark.slow
def test_it_stops_when_nothing_helps():
    user = SyntheticUser(seed=1, odd_topics=6)
    useless = lambda incumbent, evidence: []  # noqa: E731
    aligned, _ = align(agent_of(user), proposer=useless, epochs=9, patience=2)
    assert aligned.alignment.stopped.startswith("plateau: 2 steps")
    assert [s.epoch for s in aligned.alignment.steps] == [0, 1, 2]
    (counted,) = aligned.alignment.steps[0].trials
    assert counted.edits == ("count 32 answers",)


def test_it_stops_when_nothing_is_wrong():
    user = SyntheticUser(seed=1, odd_topics=0)
    aligned, lm = align(agent_of(user))
    assert "nothing left to gain" in aligned.alignment.stopped
    assert aligned.persona.value.render() == aligned.persona.initial.render()
    assert len(lm.engine.calls) == 2 * 8, "none and the counts on the held-out interactions"


def test_rejected_edits_are_shown_to_the_next_proposal():
    user, refused = SyntheticUser(seed=1, odd_topics=6), []

    class Bad:
        def __call__(self, incumbent, evidence):
            refused.append(evidence.rejected)
            bullet = Bullet(section="style", text=f"Useless line {len(refused)}.")
            return [Challenger(persona=incumbent.apply([Edit(op="add", bullet=bullet)]), edits=(bullet.text,))]

    align(agent_of(user), proposer=Bad(), epochs=3, patience=3)
    assert [len(r) for r in refused] == [0, 1, 2]


def test_a_reflection_lm_does_all_the_reflecting():
    user, reflecting, lm = SyntheticUser(seed=2), rule_following_lm(), rule_following_lm()
    aligned, _ = align(agent_of(user), lm, reflection_lm=reflecting, proposer=Feedback())
    assert all("description" in p.fields for p in lm.engine.calls)
    assert reflecting.engine.calls
    assert not any("description" in p.fields for p in reflecting.engine.calls)
    assert aligned.alignment.total.calls == len(lm.engine.calls) + len(reflecting.engine.calls)


def feedback_metric(gold, pred, trace, pred_name, pred_trace):
    right = gold.tag == pred.tag
    return dspy.Prediction(score=float(right), feedback="" if right else f"It was {gold.tag}.")


@pytest.mark.parametrize(
    "metric",
    [
        None,
        lambda gold, pred, trace=None: gold.tag == pred.tag,
        lambda gold, pred, trace=None: {"score": float(gold.tag == pred.tag), "feedback": "no"},
        feedback_metric,
    ],
    ids=["none", "bool", "dict", "five arguments"],
)
def test_any_metric_works(metric):
    user = SyntheticUser(seed=2)
    aligned, lm = align(agent_of(user), metric=metric, proposer=Feedback())
    assert aligned.alignment.accepted
    with_feedback = metric is feedback_metric
    if with_feedback:
        assert not any("attempt" in p.fields for p in lm.engine.calls), "the metric's own feedback is enough"


def test_a_metric_out_of_range_is_named():
    def percent(gold, pred, trace=None):
        return 100 * (gold.tag == pred.tag)

    with pytest.raises(InputError, match=r"'percent' gave 100.*\[0, 1\]"):
        align(agent_of(SyntheticUser(seed=2)), metric=percent)


class TwoSteps(dspy.Module):
    def __init__(self):
        super().__init__()
        self.tag = dspy.ChainOfThought(TagFilm)

    def forward(self, description):
        return self.tag(description=description)


def test_any_personalized_program_is_aligned():
    user = SyntheticUser(seed=2)
    program = personalize(TwoSteps(), history=user.interactions(40))
    aligned, _ = align(program)
    assert true_score(aligned, user) > 0.9 > true_score(program, user)
    assert program.persona.value.version == 0


# --- beside DSPy's own optimizers ---------------------------------------------------------------------------------


def number(gold, pred, trace=None):
    return float(gold.tag == pred.tag)


def test_evaluate_scores_an_aligned_agent():
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    aligned, _ = align(agent_of(user), lm)
    devset = [aligned.example(i) for i in user.interactions(10, start=500)]
    with dspy.context(lm=lm):
        found = dspy.Evaluate(devset=devset, metric=number, num_threads=2, display_progress=False)(aligned)
    assert found.score == 100


@pytest.mark.parametrize("first", ["bootstrap", "align"])
def test_bootstrap_before_and_after(first):
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    agent = agent_of(user)

    def bootstrap(program):
        optimizer = dspy.BootstrapFewShot(metric=number, max_bootstrapped_demos=2, max_labeled_demos=2)
        return optimizer.compile(program, trainset=program.examples()[:12])

    with dspy.context(lm=lm):
        align_ = PersonaAlignment()
        if first == "bootstrap":
            made = bootstrap(agent)
            made = align_.compile(made, trainset=made.examples())
        else:
            made = align_.compile(agent, trainset=agent.examples())
            made = bootstrap(made)
    assert made.respond.predict.demos
    assert made.persona.value.section("what decides")
    assert true_score(made, user) > 0.9


@pytest.mark.parametrize("first", ["gepa", "align"])
def test_gepa_before_and_after(first, capsys):
    user, lm = SyntheticUser(seed=2), rule_following_lm()
    agent = agent_of(user, recall_k=0)

    def metric(gold, pred, trace=None, pred_name=None, pred_trace=None):
        right = gold.tag == pred.tag
        return dspy.Prediction(
            score=float(right), feedback="" if right else f'The user\'s own response was "{gold.tag}".'
        )

    def gepa(program):
        optimizer = dspy.GEPA(metric=metric, max_metric_calls=40, reflection_lm=lm, num_threads=1, seed=1)
        return optimizer.compile(program, trainset=program.examples()[:20], valset=program.examples()[-4:])

    with dspy.context(lm=lm):
        if first == "gepa":
            evolved = gepa(agent)
            assert evolved.persona.value == agent.persona.value, "GEPA leaves the persona alone"
            instructions = evolved.respond.predict.signature.instructions
            assert instructions != agent.respond.predict.signature.instructions
            made = PersonaAlignment().compile(evolved, trainset=evolved.examples())
            assert made.respond.predict.signature.instructions == instructions
        else:
            aligned = PersonaAlignment().compile(agent, trainset=agent.examples())
            made = gepa(aligned)
            assert made.persona.value == aligned.persona.value
    assert true_score(made, user) > 0.9
    assert not lm.engine.misses


# --- the paper's mode ---------------------------------------------------------------------------------------------


def test_the_papers_mode_rewrites_without_a_gate():
    user = SyntheticUser(seed=2)
    optimizer = PersonaAlignment.as_in_paper()
    assert isinstance(optimizer.proposer, RewriteProposer)
    lm = rule_following_lm()
    agent = agent_of(user)
    with dspy.context(lm=lm):
        aligned = optimizer.compile(agent, trainset=agent.examples())
    assert aligned.alignment.gate_size == 0
    assert [len(s.simulated) for s in aligned.alignment.steps] == [3, 3, 3]
    assert len({s.simulated for s in aligned.alignment.steps}) == 1, "the same latest three, each iteration"
    assert aligned.alignment.options["gate"] == "AlwaysAccept"


def test_without_feedback_a_rewrite_learns_nothing():
    user = SyntheticUser(seed=2)
    agent = agent_of(user)
    aligned, _ = align(agent, proposer=RewriteProposer(blind=True), summary=None)
    assert true_score(aligned, user) == true_score(agent, user)


# --- warm start ---------------------------------------------------------------------------------------------------


def neighbours(seed, count):
    """Aligned personas of users who share one preference, each with words that nobody else has."""
    made = []
    for n in range(count):
        user = SyntheticUser(seed=seed, user_id=f"neighbour-{n}")
        agent = agent_of(user)
        aligned, _ = align(agent)
        secret = Bullet(section="who", text=f"Lives at canary{n} street.", source="learned")
        word = "canary" + "abcdef"[n]
        rule = Bullet(section="what decides", when=f'it mentions "{word}"', then="horror", source="learned")
        made.append(
            aligned.persona.value.model_copy(update={"bullets": (*aligned.persona.value.bullets, secret, rule)})
        )
    return made


def test_a_cohort_warms_a_new_user_and_gives_away_nobody():
    cohort = Cohort(neighbours(5, 4))
    user, lm = SyntheticUser(seed=5, user_id="new"), rule_following_lm()
    agent = agent_of(user, 3)
    cold, _ = align(agent)
    warm, _ = align(agent, lm, cohort=cohort)
    assert true_score(warm, user) > true_score(cold, user)
    assert "rules of similar users" in warm.alignment.notes[0]
    more, _ = align(agent_of(user, 12), lm, cohort=cohort)
    said = [p.system + p.user + str(p.turns) for p in lm.engine.calls]
    assert said
    for text in [warm.persona.value.to_json(), more.persona.value.to_json(), *said]:
        assert "canary" not in text
        assert "neighbour" not in text


def test_what_two_users_share_stays_with_them():
    kind = agent_of(SyntheticUser()).kind
    rule = Bullet(section="what decides", words=("ghost",), then="comedy", source="learned")
    two = [Persona(user_id=f"u{n}", bullets=(rule,)) for n in range(2)]
    assert Cohort(two).bullets(Persona(user_id="new"), [], kind) == []
    three = [*two, Persona(user_id="u3", bullets=(rule,))]
    assert Cohort(three).bullets(Persona(user_id="new"), [], kind)
    assert Cohort(three).bullets(Persona(user_id="u3"), [], kind) == [], "one's own persona does not count"
    again = [*two, *two, *two]
    assert Cohort(again).bullets(Persona(user_id="new"), [], kind) == [], "one user counts once"
    with pytest.raises(InputError, match="least=2"):
        Cohort(three, least=2)


def test_free_text_never_travels():
    kind = agent_of(SyntheticUser(kind="style")).kind
    rule = Bullet(section="what decides", words=("ghost",), then="my secret", source="learned")
    personas = [Persona(user_id=f"u{n}", bullets=(rule,)) for n in range(5)]
    assert Cohort(personas).bullets(Persona(user_id="new"), [], kind) == []
    labels = agent_of(SyntheticUser()).kind
    assert Cohort(personas).bullets(Persona(user_id="new"), [], labels) == [], "not one of the task's labels"


def test_similar_users_come_first():
    kind = agent_of(SyntheticUser()).kind

    def persona(n, favourite, then):
        liked = Bullet(section="what decides", when="nothing else fits", then=favourite, hits=9, source="fact")
        rule = Bullet(section="what decides", words=("ghost",), then=then, source="learned")
        return Persona(user_id=f"u{n}", bullets=(liked, rule))

    cohort = Cohort(
        [
            *(persona(n, "horror", "comedy") for n in range(3)),
            *(persona(n + 9, "romance", "history") for n in range(3)),
        ],
        nearest=3,
    )
    me = Persona(user_id="new", bullets=persona(0, "romance", "history").bullets[:1])
    assert [b.then for b in cohort.bullets(me, [], kind)] == ["history"]


def timeless(value):
    """JSON without what a clock decides."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in ("created", "created_at", "seconds")}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def record_of(aligned):
    persona, record = aligned.persona.value.model_dump(mode="json"), aligned.alignment.model_dump(mode="json")
    return json.dumps(timeless([persona, record]), sort_keys=True)


class Delayed:
    """An engine whose answers come in another order than they were asked for."""

    def __init__(self, engine, seed=1):
        self.engine, self.random, self.flying, self.peak = engine, random.Random(seed), 0, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    async def complete(self, request):
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        await asyncio.sleep(self.random.uniform(0.0, 0.003))
        self.flying -= 1
        return self.engine.complete(request)


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False], ids=["small", "capable"])
def test_users_aligned_as_tasks_of_one_loop_end_as_one_after_the_other(small):
    """Byte for byte, and with the same requests."""
    users = [SyntheticUser(seed=seed, kind=KINDS[seed % len(KINDS)]) for seed in range(6)]
    agents = [agent_of(user, 16) for user in users]

    async def together(optimizer):
        return await asyncio.gather(*(optimizer.acompile(a, trainset=a.examples()) for a in agents))

    for concurrency in (1, 3):
        optimizer = PersonaAlignment(epochs=2, concurrency=concurrency)
        lm = rule_following_lm(small=small)
        with dspy.context(lm=lm):
            alone = [record_of(optimizer.compile(a, trainset=a.examples())) for a in agents]
        asked, engine = Counter(map(repr, lm.engine.calls)), lm.engine
        engine.calls.clear()
        delayed = Delayed(engine)
        with dspy.context(lm=lm.copy(engine=engine, async_engine=delayed)):
            beside_each_other = [record_of(aligned) for aligned in asyncio.run(together(optimizer))]
        assert beside_each_other == alone
        assert Counter(map(repr, engine.calls)) == asked
        assert delayed.peak > len(agents) // 2


@pytest.mark.slow
def test_a_task_that_is_cancelled_ends_and_the_others_do_not():
    agents = [agent_of(SyntheticUser(seed=seed), 12) for seed in range(3)]
    lm = rule_following_lm()
    delayed = Delayed(lm.engine)

    async def one_cancelled():
        tasks = [asyncio.ensure_future(PersonaAlignment().acompile(a, trainset=a.examples())) for a in agents]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    with dspy.context(lm=lm.copy(engine=lm.engine, async_engine=delayed)):
        first, cancelled, third = asyncio.run(one_cancelled())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [record_of(first), record_of(third)] == [record_of(align(agents[n])[0]) for n in (0, 2)]


def test_a_budget_ends_cleanly_in_the_middle():
    user = SyntheticUser(seed=3)
    aligned, lm = align(agent_of(user), budget=Budget(calls=4))
    assert len(lm.engine.calls) == 4
    assert aligned.alignment.stopped.startswith("budget")
    assert aligned.persona.value.version == 0
    assert aligned.alignment.scores.initial is None, "not all held-out interactions were scored"


def test_a_budget_that_ends_while_a_challenger_leads_returns_it_and_says_so():
    user = SyntheticUser(seed=3)
    agent, events = agent_of(user), []
    full, _ = align(agent, observers=[events.append])
    (lead,) = [e for e in events if e["event"] == "leads"]
    judged = next(e for e in events if e["event"] == "judged" and e["accepted"])
    assert lead["calls"] < judged["calls"]
    assert lead["persona"] == judged["persona"]
    aligned, lm = align(agent, budget=Budget(calls=lead["calls"]))
    assert len(lm.engine.calls) == lead["calls"]
    assert (aligned.persona.value.version, aligned.alignment.accepted) == (1, 1)
    assert "led" in aligned.alignment.notes[-1]
    assert true_score(aligned, user) == true_score(full, user) > true_score(agent, user)


class Rash:
    """Proposes one rule, whatever the evidence."""

    def from_past(self, incumbent, evidence):
        rule = Bullet(section="what decides", words=("rocket",), then="horror", source="learned")
        return [Challenger(persona=incumbent.apply([Edit(op="add", bullet=rule)]), edits=(rule.sentence,))]

    def __call__(self, incumbent, evidence):
        return []


def rockets():
    """Of 20 responses the latest three are what ``Rash`` proposes."""
    said = ["sci-fi"] * 17 + ["horror"] * 3
    past = [Interaction(user_id="u", query=f"rocket to planet {n}", response=r) for n, r in enumerate(said)]
    return PersonaAgent(TagFilm, history=past, persona=Persona.from_text("Likes films.", user_id="u"), recall_k=0)


def test_a_leader_that_all_items_refuse_leaves_the_incumbent():
    """Right on the three latest, wrong on the five before: three pairs speak for it, all held-out ones do not."""
    agent, events = rockets(), []
    aligned, _ = align(agent, proposer=Rash(), gate=HeldOutGate(8), observers=[events.append])
    told = [(e["event"], "rocket" in e["persona"]) for e in events if e["event"] in ("leads", "judged")]
    assert told == [("leads", True), ("judged", False)]
    assert (aligned.alignment.accepted, aligned.persona.value) == (0, agent.persona.value)


@pytest.mark.parametrize(("calls", "version"), [(5, 0), (6, 1), (8, 0)])
def test_a_budget_that_ends_once_a_lead_is_lost_returns_the_incumbent(calls, version):
    """Three pairs gain a little, the fourth (calls 7 and 8) loses more: nobody is given what scores lower so far."""
    agent, events = rockets(), []

    def graded(example, prediction, trace=None):
        late = example["interaction_id"] in {i.id for i in agent.memory.interactions[-3:]}
        return 0.5 if prediction.tag != "horror" else 0.6 if late else 0.0

    options = {"proposer": Rash(), "gate": HeldOutGate(8), "budget": Budget(calls=calls), "observers": [events.append]}
    aligned, _ = align(agent, metric=graded, **options)
    record, told = aligned.alignment, [e for e in events if e["event"] == "leads"]
    assert (aligned.persona.value.version, record.accepted) == (version, version)
    assert ("led" in " ".join(record.notes)) == bool(version)
    assert [bool(e["edits"]) for e in told] == {5: [], 6: [True], 8: [True, False]}[calls]
    assert all(e["persona"] == aligned.persona.value.render() for e in told[-1:])


def test_facts_do_not_count_anchors_while_others_are_simulated():
    said = ["horror"] * 4 + ["sci-fi"] * 8 + ["romance"] * 3 + ["sci-fi"] * 5
    past = [Interaction(user_id="u", query=f"film {n}", response=r, id=f"i{n}") for n, r in enumerate(said)]
    agent = PersonaAgent(TagFilm, history=past, recall_k=0)
    aligned, lm = align(agent, gate=AnchorGate([f"i{n}" for n in range(4)]))
    assert any(step.simulated for step in aligned.alignment.steps)
    told = [
        sentence for call in lm.engine.calls for sentence in call.system.splitlines() if "Answers so far" in sentence
    ]
    assert told and not [sentence for sentence in told if '"horror"' in sentence]


@pytest.mark.parametrize(
    "gate",
    [
        HeldOutGate(4),
        HeldOutGate(2),
        SignTestGate(0.9, size=4),
        SignTestGate(0.9, size=3),
        pytest.param(AnchorGate(["i0"], HeldOutGate(4))),
    ],
    ids=lambda g: f"{type(g).__name__} {getattr(g, 'size', '')}",
)
def test_counts_that_do_harm_are_not_taken_up(gate):
    said = ["horror", "horror", *["sci-fi"] * 18]
    past = [Interaction(user_id="u", query=f"film {n}", response=r, id=f"i{n}") for n, r in enumerate(said)]
    agent = PersonaAgent(TagFilm, history=past, recall_k=0)
    assert agent.persona.value.bullets
    aligned, _ = align(agent, counting_lm("horror"), gate=gate, proposer=lambda *_: [], metric=exact)
    record = aligned.alignment
    assert not aligned.persona.value.bullets
    assert record.scores.without_persona == record.scores.initial == record.scores.final
    (counted,) = record.steps[0].trials
    assert not counted.accepted and counted.outcome in ("worse", "untested")


def counting_lm(counted, else_="sci-fi"):
    """Answers ``counted`` where it is told how often this user gave each answer."""
    told = lambda p: counted if "Answers so far" in p.system else else_  # noqa: E731
    return FakeLM(lambda p: {"tag": told(p)} if "tag" in p.outputs else None)


@pytest.mark.parametrize("gate", [HeldOutGate(4), SignTestGate(0.9, size=4)], ids=lambda g: type(g).__name__)
def test_counts_are_no_version_and_not_accepted_edits(gate):
    past = [Interaction(user_id="u", query=f"film {n}", response="sci-fi", id=f"i{n}") for n in range(20)]
    agent = PersonaAgent(TagFilm, history=past, recall_k=0)
    aligned, _ = align(agent, counting_lm("sci-fi", "horror"), gate=gate, proposer=lambda *_: [], metric=exact)
    record = aligned.alignment
    (counted,) = record.steps[0].trials
    assert (counted.edits, counted.accepted) == (("count 16 answers",), True)
    assert (record.accepted, aligned.persona.value.version, record.steps[0].epoch) == (0, 0, 0)
    assert "(20)" in aligned.persona.value.render(), "brought up to date at the end"
    assert (record.scores.without_persona, record.scores.initial, record.scores.final) == (0, 0, 1)


def test_counts_are_kept_on_a_tie_but_not_where_a_confidence_is_asked_for():
    past = [Interaction(user_id="u", query=f"film {n}", response="sci-fi", id=f"i{n}") for n in range(20)]
    agent = PersonaAgent(TagFilm, history=past, recall_k=0)
    for gate, kept in ((HeldOutGate(4), True), (SignTestGate(size=4), False)):
        aligned, _ = align(agent, counting_lm("horror", "horror"), gate=gate, proposer=lambda *_: [], metric=exact)
        assert bool(aligned.persona.value.bullets) == kept


def test_whoever_has_more_than_counts_begins_with_them():
    """Lines of a person are not weighed against nothing: they stand until something better is found."""
    past = [Interaction(user_id="u", query=f"film {n}", response="sci-fi", id=f"i{n}") for n in range(20)]
    agent = PersonaAgent(TagFilm, history=past, persona=Persona.from_text("Likes films.", user_id="u"), recall_k=0)
    aligned, _ = align(agent, counting_lm("horror"), proposer=lambda *_: [], metric=exact)
    assert not any("count" in edit for s in aligned.alignment.steps for t in s.trials for edit in t.edits)
    assert aligned.persona.value == agent.persona.value


def test_what_a_later_fold_kept_and_the_first_refuses_is_left_out():
    said = ["horror", "sci-fi"] * 6  # the first fold holds the second of each pair
    past = [Interaction(user_id="u", query=f"rocket to planet {n}", response=r) for n, r in enumerate(said)]
    agent = PersonaAgent(TagFilm, history=past, persona=Persona.from_text("Likes films.", user_id="u"), recall_k=0)
    aligned, _ = align(agent, proposer=Rash(), gate=KFoldGate(2))
    record = aligned.alignment
    assert [t.accepted for s in record.steps for t in s.trials] == [True], "by the second fold; the first was perfect"
    assert "left out" in " ".join(record.notes)
    assert [b.text for b in aligned.persona.value.bullets] == ["Likes films."]
    assert record.scores.final == record.scores.without_persona == 1


# --- by the LM that reflects --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "reflecting", "proposer", "loss"),
    [
        (True, None, "KeywordProposer", "each"),
        (False, None, "EditProposer", "batch"),
        (True, False, "EditProposer", "batch"),
        (False, True, "KeywordProposer", "each"),
    ],
)
def test_the_lm_that_reflects_decides_how(own, reflecting, proposer, loss):
    reflection_lm = None if reflecting is None else rule_following_lm(small=reflecting)
    aligned, _ = align(agent_of(SyntheticUser(seed=2)), rule_following_lm(small=own), reflection_lm=reflection_lm)
    options = aligned.alignment.options
    assert (options["proposer"], options["loss"]) == (proposer, loss)
    assert aligned.alignment.accepted


def test_what_is_given_is_used_with_any_lm():
    aligned, _ = align(
        agent_of(SyntheticUser(seed=2)), rule_following_lm(small=True), proposer=EditProposer(), loss="batch"
    )
    assert (aligned.alignment.options["proposer"], aligned.alignment.options["loss"]) == ("EditProposer", "batch")
    assert aligned.alignment.accepted


def test_a_capable_lm_begins_with_a_portrait_and_counts_in_one_trial():
    aligned, lm = align(agent_of(SyntheticUser(seed=2)), rule_following_lm(small=False))
    (first,) = [s for s in aligned.alignment.steps if not s.epoch]
    (trial,) = first.trials
    assert trial.accepted
    assert sum("lines" in p.outputs for p in lm.engine.calls) == aligned.alignment.usage["portrait"].calls == 1
    sources = {b.source for b in aligned.persona.value.bullets}
    assert {"fact", "summary"} <= sources


@pytest.mark.parametrize("small", [True, False], ids=["small", "capable"])
def test_answers_that_cannot_be_read_are_counted_and_cost_nothing_else(small):
    user, inner = SyntheticUser(seed=2), rule_following_lm().engine.handlers[0]
    lm = FakeLM(lambda p: "gibberish" if {"lines", "edits"} & set(p.outputs) else inner(p), small=small)
    with dspy.context(adapter=dspy.JSONAdapter()):
        aligned, _ = align(agent_of(user), lm)
    record = aligned.alignment
    assert record.unread == sum(s.unread for s in record.steps) > 0
    assert record.notes[-1].startswith(
        f"{plural(record.unread, 'answer')} of the reflecting LM could not be read: {record.first_unread}"
    )
    assert record.steps[0].unread == 1
    assert record.nothing_read is small  # a capable one's lessons are read


def test_an_alignment_whose_answers_are_read_has_none_unread():
    aligned, _ = align(agent_of(SyntheticUser(seed=2)), rule_following_lm(small=False))
    assert aligned.alignment.unread == 0 and not aligned.alignment.nothing_read
    assert "could not be read" not in " ".join(aligned.alignment.notes)


# --- how much is spent --------------------------------------------------------------------------------------------


def test_an_amount_sets_what_is_not_given():
    light, heavy = PersonaAlignment(auto="light"), PersonaAlignment(auto="heavy", epochs=2)
    assert (light.recent, light.epochs, light.patience) == (3, 1, 1)
    assert (heavy.recent, heavy.epochs, heavy.patience) == (4, 2, 3)
    assert PersonaAlignment().epochs == PersonaAlignment(auto="medium").epochs
    assert (light.get_params()["auto"], PersonaAlignment().get_params()["auto"]) == ("light", None)
    with pytest.raises(InputError, match=r"auto='huge'.*'light', 'medium', 'heavy'"):
        PersonaAlignment(auto="huge")


@pytest.mark.parametrize("n", [4, 12, 40, 400])
def test_more_is_spent_for_more(n):
    light, medium, heavy = (PersonaAlignment(auto=auto).calls(n) for auto in ("light", "medium", "heavy"))
    assert 0 < light < medium < heavy
    assert PersonaAlignment(auto="light").calls(3) == 0


def test_calls_are_known_before_for_anchors_too():
    assert PersonaAlignment(gate=AnchorGate(["i1"])).calls(40) > 0


def spent(kind, seed, n, auto, noise):
    """Calls of a capable run, and the most that was announced."""
    user = SyntheticUser(seed=seed, kind=kind, noise=noise)
    options = PersonaAlignment(auto=auto)
    agent, lm = agent_of(user, n, recall_k=0), rule_following_lm(small=False)
    with dspy.context(lm=lm):
        aligned = options.compile(agent, trainset=agent.examples())
    assert aligned.alignment.total.calls == len(lm.engine.calls)
    judged = agent.kind.name == "text"
    return aligned.alignment.total.calls, options.calls(n) * (4 / 3 if judged else 1)


@pytest.mark.parametrize(
    ("auto", "kind"),
    [
        pytest.param(auto, kind, marks=() if n % 3 == number else pytest.mark.slow)
        for number, auto in enumerate(["light", "medium", "heavy"])
        for n, kind in enumerate(KINDS)
    ],
)
def test_no_more_calls_are_made_than_were_announced(kind, auto):
    for n in (4, 7, 12, 40):
        calls, most = spent(kind, n, n, auto, 0.4)
        assert calls <= most, n


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("auto", ["light", "medium", "heavy"])
def test_nor_for_many_users(kind, auto):
    over = []
    for n in (4, 5, 9, 11, 12, 16, 25, 40, 90):
        for seed in range(6):
            calls, most = spent(kind, seed, n, auto, seed / 10)
            over += [(n, seed, calls, most)] if calls > most else []
    assert not over


# --- free text ----------------------------------------------------------------------------------------------------


def test_drafts_are_compared_by_a_capable_lm():
    user = SyntheticUser(seed=3, kind="style")
    aligned, lm = align(agent_of(user, recall_k=0), rule_following_lm(small=False))
    record = aligned.alignment
    assert record.usage["judge"].calls == sum("verdicts" in p.outputs for p in lm.engine.calls) > 0
    assert (record.scores.without_persona, record.scores.initial) == (0.5, 0.5)
    assert record.scores.final > 0.9
    assert "compared by the reflecting LM" in " ".join(record.notes)


@pytest.mark.parametrize("options", [{"small": True}, {"small": False, "metric": True}], ids=["small", "a metric"])
def test_no_drafts_are_compared_by_a_small_lm_or_where_a_metric_says(options):
    user = SyntheticUser(seed=3, kind="style")
    metric = (lambda gold, pred, trace=None: float(gold.headline == pred.headline)) if "metric" in options else None
    aligned, _ = align(agent_of(user, recall_k=0), rule_following_lm(small=options["small"]), metric=metric)
    assert "judge" not in aligned.alignment.usage
    assert aligned.alignment.accepted
    assert "compared" not in " ".join(aligned.alignment.notes)


@pytest.mark.slow
def test_after_forty_texts_in_another_style_the_persona_holds_that_one_alone():
    before, after = (SyntheticUser(seed=seed, kind="style") for seed in (1, 5))
    old, lm = before.interactions(40), rule_following_lm(small=False)
    start = old[-1].time
    new = [
        replace(i, user_id=before.user_id, id=f"new{n}", time=start + timedelta(days=n + 1))
        for n, i in enumerate(after.interactions(40, start=100))
    ]
    first, _ = align(PersonaAgent(before.signature, history=old), lm)
    then, _ = align(PersonaAgent(before.signature, history=[*old, *new], persona=first.persona.value), lm)
    for program, holds, lacks in ((first, before, after), (then, after, before)):
        text = program.persona.value.render()
        assert all(phrase in text for phrase in holds.preference.values())
        assert not any(phrase in text for phrase in lacks.preference.values())


def test_a_line_that_quotes_what_judges_is_left_out_and_counted():
    user, inner = SyntheticUser(seed=3, kind="style"), rule_following_lm().engine.handlers[0]
    agent = agent_of(user, recall_k=0)
    told = f"Wrote: {agent.memory.interactions[-1].response}"
    line = {"section": "style", "text": told, "strength": "clear", "examples": [1, 2]}
    lm = FakeLM(lambda p: {"lines": [line]} if "lines" in p.outputs else inner(p), small=False)
    aligned, _ = align(agent, lm)
    assert told not in aligned.persona.value.render()
    assert "lines left out since they quote an answer that judges: 1" in aligned.alignment.notes


@pytest.mark.parametrize("n", [8, 40])
def test_verdicts_that_cannot_be_read_are_draws_and_counted(n):
    user, inner = SyntheticUser(seed=3, kind="style"), rule_following_lm().engine.handlers[0]
    lm = FakeLM(lambda p: "gibberish" if "verdicts" in p.outputs else inner(p), small=False)
    with dspy.context(adapter=dspy.JSONAdapter()):
        aligned, _ = align(agent_of(user, n, recall_k=0), lm)
    record = aligned.alignment
    assert record.scores.final == record.scores.without_persona == 0.5
    (said,) = [note for note in record.notes if "could not be read" in note]
    assert said.startswith(plural(record.unread, "answer"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_fifth_of_the_responses_random_95_of_100_users_are_no_worse(kind):
    worse = []
    for seed in range(100):
        user = SyntheticUser(seed=seed, kind=kind, noise=0.2)
        agent = agent_of(user, recall_k=0)
        aligned, _ = align(agent)
        if true_score(aligned, user, 40) < true_score(agent, user, 40):
            worse.append(seed)
    assert len(worse) <= 5, worse
