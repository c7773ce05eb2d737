"""What every path sends to an LM, byte for byte as it was recorded: a refactoring must not change one request.

``python tests/test_same_requests.py --write`` records anew, where a request is meant to change; without ``--write`` it
compares. Requests are kept in the order they were sent (sorted where users run side by side), each under a line that
says who sent it; answers and errors that came out are kept between them.
"""

import asyncio
import contextlib
import dataclasses
import difflib
import io
import json
import lzma
import re
import sys
import tempfile
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Literal
from unittest.mock import patch

import dspy
import pytest
from dspy.lm15 import ContextLengthError, Message, Response, ToolCallPart, Usage, response_to_events
from dspy.utils.exceptions import AdapterParseError, ContextWindowExceededError

# All names of the project, in one place.
from optimizers import (
    AlwaysAccept,
    AnchorGate,
    Cohort,
    HeldOutGate,
    KeywordProposer,
    KFoldGate,
    PersonaAlignment,
    PersonaGEPAAdapter,
    RewriteProposer,
    SignTestGate,
)
from persona_dspy import (
    Act,
    Budget,
    Bullet,
    EpisodicMemory,
    Interaction,
    LocalCorpus,
    Persona,
    PersonaAgent,
    Personas,
    compile_users,
    personalize,
)
from persona_dspy.agent import Steering
from persona_dspy.cli import main
from persona_dspy.data import UserHistory
from persona_dspy.memory import SemanticMemory
from persona_dspy.store import Store
from persona_dspy.testing import KINDS, FakeEngine, RuleFollower, SyntheticUser

GOLDEN = Path(__file__).parent / "data" / "requests.json.xz"
EXAMPLE = Path(__file__).parents[1] / "examples" / "movie_tags.jsonl"
CORPUS = '{"title": "Alien", "text": "A creature in space, 1979."}\n{"title": "Heat", "text": "A detective."}\n'
QUERY = "a rocket and a ghost in a film about space"


class Engine(FakeEngine):
    """Writes each request onto ``tape``; above ``limit`` characters of one it says that the context is full."""

    def __init__(self, tape, *, functions=False, schema=True, limit=None):
        super().__init__([brain, RuleFollower(heeds_turns=True), anything])
        self.tape, self.limit = tape, limit
        self.supports_function_calling, self.supports_response_schema = functions, schema
        if functions:
            self.supported_params = self.supported_params | {"tools", "tool_choice"}

    def complete(self, request):
        text = json.dumps(asdict(request), ensure_ascii=False, indent=1)
        self.tape.add(text)
        if self.limit is not None and len(text) > self.limit:
            raise ContextLengthError("the prompt is too long")
        if not request.tools:
            return super().complete(request)
        done = sum(part.type == "tool_result" for message in request.messages for part in message.parts)
        name, arguments = next_call([tool.name for tool in request.tools], done)
        message = Message.assistant([ToolCallPart(id=f"c{done}", name=name, input=arguments)])
        return Response(
            id=None, model=request.model, message=message, finish_reason="tool_call", usage=Usage(input_tokens=1)
        )


class AsyncEngine:
    def __init__(self, engine):
        self.engine = engine

    def __deepcopy__(self, memo):
        return self

    async def complete(self, request):
        return self.engine.complete(request)

    async def stream(self, request):
        for event in response_to_events(self.engine.complete(request)):
            yield event

    async def aclose(self):
        pass


class Tape:
    """What was sent and what came out, as texts; ``at`` says on whose behalf. ``folder`` is for files."""

    def __init__(self, folder):
        self.folder, self.at, self.entries = folder, "", []

    def add(self, text):
        self.entries.append(f"{self.at}\n{text}")

    def lm(self, **options):
        engine = Engine(self, **options)
        return dspy.LM("fake/lm", engine=engine, async_engine=AsyncEngine(engine), cache=False, num_retries=0)

    def ask(self, at, program, *, how="sync", **inputs):
        """Call a program and note what comes out; returns what was sent."""
        self.at, before = f"{at}, {how}", len(self.entries)
        try:
            answer = program(**inputs) if how == "sync" else asyncio.run(program.acall(**inputs))
            self.add(f"-> {answer.toDict()!r}")
        except (AdapterParseError, ContextWindowExceededError) as failure:
            self.add(f"-> {type(failure).__name__}")
        return self.entries[before:-1]

    def command(self, *argv, side_by_side=False):
        """A command line, with every ``dspy.LM`` it makes a fake."""
        tape, self.at, before, cache = self, " ".join(map(str, argv[:1])), len(self.entries), dspy.cache

        class Remote(dspy.LM):
            def __init__(self, model, **options):
                engine = Engine(tape)
                options |= {"cache": False, "num_retries": 0, "engine": engine, "async_engine": AsyncEngine(engine)}
                super().__init__(model, **options)

        out, err = io.StringIO(), io.StringIO()
        with (
            patch.object(dspy, "LM", Remote),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main([*map(str, argv), "--lm", "fake/lm"])
            except SystemExit as end:
                assert end.code in (0, None), err.getvalue() + out.getvalue()
            finally:
                dspy.cache = cache
        if side_by_side:
            self.entries[before:] = sorted(self.entries[before:])


def next_call(names, done):
    """A ReAct's step: the ``done``-th of those tools it has, with a failure among them; then finish."""
    steps = [("recall_history", {"query": "ghost", "k": 2}), ("recall_profile", {}), ("crash", {})]
    steps += [
        ("look", {"query": "space " * 40}),
        ("look", {"query": "a ghost"}),
        ("search_knowledge", {"query": "creature"}),
    ]
    return next(iter([step for step in steps if step[0] in names][done:]), ("finish", {}))


def brain(prompt):
    """Actions and summaries, by what the request shows."""
    if "rubbish" in prompt.user and {"actions", "next_tool_name"} & set(prompt.outputs):
        return "not an answer"
    if "next_tool_name" in prompt.outputs:
        done = len(set(re.findall(r"observation_\d+", prompt.user)))
        name, arguments = next_call(prompt.choices("next_tool_name"), done)
        return {"next_thought": f"step {done}", "next_tool_name": name, "next_tool_args": arguments}
    if "actions" in prompt.outputs:
        other = next(t for t in ("search_knowledge", "look", "recall_profile") if t in prompt.system)
        return {"actions": [{"action": "recall_history", "words": "ghost"}, {"action": other, "words": "creature"}]}
    if "action" in prompt.outputs:
        first = "nothing yet" in prompt.fields["seen"]
        return {"thought": "t", "action": "recall" if first else "finish", "words": "ghost"}
    if "lines" in prompt.outputs:
        notes, shown = (re.findall(r"^(\d+)\. (.+)$", prompt.fields.get(n, ""), re.M) for n in ("notes", "examples"))
        if not shown:
            return {"lines": [{"line": "Likes films.", "notes": [int(n) for n, _ in notes]}]}
        said = {}
        for n, words in shown:
            said.setdefault(f"Likes {words.rpartition(' -> ')[2]}.", []).append(int(n))
        known = {words: int(n) for n, words in notes}
        lines = [{"line": line, "examples": found, "note": known.get(line, 0)} for line, found in said.items()]
        return {"lines": [line if notes else {k: v for k, v in line.items() if k != "note"} for line in lines]}
    return None


def anything(prompt):
    """For each output one of its choices, or its name in words."""
    return {name: (prompt.choices(name) or (f"the {name}",))[0] for name in prompt.outputs}


def past_of(seed=1, n=14, **options):
    person = SyntheticUser(seed=seed, **options)
    return person, person.interactions(n)


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def demo(tape):
    """``compile`` and ``ask``: the example's users, users with labels, ratings and texts, LaMP, the store."""
    off = ("--tracking-uri", "off", "--progress", "quiet")
    tape.command("compile", EXAMPLE, "--users", 2, "--out", "demo", *off, side_by_side=True)
    for flag in ("default", "--as-in-paper"):
        people = [past_of(kind=kind, user_id=kind, n=10) for kind in ("label bias", "threshold shift", "style")]
        rows = [
            {"user_id": i.user_id, "id": i.id, "query": i.query, "response": i.response, "time": i.time.isoformat()}
            for _, past in people
            for i in past
        ]
        mine = write(tape.folder / "mine.jsonl", rows)
        more = [] if flag == "default" else [flag, "--retrieval", "bm25"]
        tape.command("compile", mine, "--out", f"mine{flag}", *off, *more, side_by_side=True)
    user = ("--users", "label bias,", "--store", "s.db", *off)
    tape.command("compile", mine, "--out", "kept", *user, side_by_side=True)
    new = {"user_id": "label bias", "id": "new", "query": QUERY, "response": "history", "time": "2027-01-01"}
    write(mine, [*rows, new])
    tape.command("compile", mine, "--out", "again", *user, side_by_side=True)
    tape.command("compile", "--out", "from store", *user, side_by_side=True)
    persona = min((tape.folder / "minedefault").glob("*.json"))
    (tape.folder / "corpus.jsonl").write_text(CORPUS)
    for actions in ("fixed", "plan", "react", "none"):
        more = ["--knowledge", "corpus.jsonl"] if actions in ("plan", "react") else []
        history = ["--history", mine] if actions != "fixed" else []
        tape.command("ask", QUERY, "--persona", persona, *history, "--actions", actions, *more)
    tape.command("ask", QUERY, "--user", "label bias", "--store", "s.db")


LAMP = {
    "LaMP_2M": ("description", "tag", "Which tag does this movie relate to? description: ", ("comedy", "action")),
    "LaMP_3": ("text", "score", "What is the score of the following review on a scale of 1 to 5? review: ", ("1", "4")),
    "LaMP_4": ("text", "title", "Generate a headline for the following article: ", ("A rocket", "Ghosts!")),
}


def judge(tape):
    """``evaluate``: all systems, ablations and curves, on files as LaMP's."""
    (tape.folder / "corpus.jsonl").write_text(CORPUS)
    for task, (field, said, asked, golds) in LAMP.items():
        users, answers = [], []
        for seed in (1, 2):
            _, past = past_of(seed, 9)
            items = [{"id": i.id, field: i.query, said: golds["ghost" in i.query or n % 3 == 0]}
                     for n, i in enumerate(past)]  # fmt: skip
            users.append({"id": f"u{seed}", "input": asked + QUERY, "profile": items})
            answers.append({"id": f"u{seed}", "output": golds[0]})
        (tape.folder / "questions.json").write_text(json.dumps(users))
        (tape.folder / "outputs.json").write_text(json.dumps({"task": task, "golds": answers}))
        if task == "LaMP_2M":
            systems, more = "persona,direct,icl,rag,pag,react,membank,rag@own-labels,k=2", ("--ablations", "all")
            more += ("--cold", 3, "--scale", "k=1,2", "--scale", "recent=1", "--epochs", 2)
        else:
            systems, more = "persona,pag,react", ("--users", 1, "--gate", 3, "--epochs", 1)
            more += ("--knowledge", "corpus.jsonl")
            more += ("--actions", "plan", "--ablations", "all") if task == "LaMP_3" else ("--actions", "react")
        argv = ("questions.json", "--systems", systems, "--workers", 1, "--out", task, "--tracking-uri", "off")
        tape.command("evaluate", *argv, *more)


def said_so(example, prediction, trace=None):
    """A metric that writes its own feedback."""
    right = example.tag == prediction.tag
    return dspy.Prediction(score=float(right), feedback="" if right else f'answer "{example.tag}" here')


def learn(tape):
    """Alignment: every gate, proposer, loss and summary; every kind of user; other programs; a spent budget; GEPA."""
    rule = Bullet(section="what decides", words=("ghost",), then="comedy", source="learned")
    cohort = Cohort(Persona(user_id=f"u{n}", bullets=(rule,)) for n in range(3))
    ways = {
        "default": PersonaAlignment(),
        "held out": PersonaAlignment(gate=HeldOutGate(3), patience=1),
        "folds": PersonaAlignment(gate=KFoldGate(3), epochs=4),
        "sign test": PersonaAlignment(gate=SignTestGate(0.75)),
        "anchors": PersonaAlignment(gate=AnchorGate(["i1", "i2"])),
        "no gate": PersonaAlignment(gate=AlwaysAccept(2), recent=2),
        "paper": PersonaAlignment.as_in_paper(hold_out=2),
        "rewrites": PersonaAlignment(proposer=RewriteProposer()),
        "challengers": PersonaAlignment(proposer=KeywordProposer(challengers=2, most=2)),
        "not mined": PersonaAlignment(proposer=KeywordProposer(mine=False), loss="batch"),
        "not written": PersonaAlignment(proposer=KeywordProposer(write=False)),
        "summary": PersonaAlignment(summary=SemanticMemory(sample=4, windows=2, tokens=16)),
        "cohort": PersonaAlignment(cohort=cohort, reflection_lm=tape.lm(schema=False)),
        "budget": PersonaAlignment(budget=Budget(calls=9)),
        "metric": PersonaAlignment(said_so),
    }
    for name, optimizer in ways.items():
        for kind in KINDS if name in ("default", "paper") else ("topic rule",):
            person, past = past_of(kind=kind, n=9 if name == "folds" else 14, odd_topics=4)
            tape.at, history = f"{name}, {kind}", UserHistory(user_id=person.user_id, interactions=tuple(past))
            with dspy.context(lm=tape.lm()):
                (result,) = compile_users(PersonaAgent(person.signature), [history], optimizer)
            tape.add(f"-> {result.document.system_prompt if result.document else result.error}")
    person, past = past_of(2, 9)
    films = [Interaction(user_id="ana", query=i.query, response=i.response, id=i.id) for i in past]
    programs = {
        "plan": PersonaAgent(person.signature, history=films, actions="plan"),
        "react, no schema": PersonaAgent(person.signature, history=films, actions="react", episodes_as="block"),
        "two stages": personalize(Two(), history=films, recall_k=2),
    }
    for name, program in programs.items():
        tape.at = f"program: {name}"
        with dspy.context(lm=tape.lm(schema="schema" not in name)):
            examples = program.examples()
            aligned = PersonaAlignment(epochs=1).compile(program, trainset=examples[:6], valset=examples[6:])
        tape.add(f"-> {aligned.persona.value.render()}")
    tape.at, memory = "profile, read in windows, merged, grown", SemanticMemory(tokens=40)
    tastes = [Interaction(user_id="u", query=f"film {n}", response=f"taste {n}", id=f"t{n}") for n in range(43)]
    with dspy.context(lm=tape.lm()):
        known = memory(interactions=tastes[:40]).profile
        tape.add(f"-> {[bullet.text for bullet in memory(interactions=tastes, profile=known).bullets]}")
    agent = PersonaAgent(person.signature, history=past)
    with dspy.context(lm=tape.lm()):
        tape.at, adapter = "gepa", PersonaGEPAAdapter(agent, held=["i8"])
        adapter.evaluate(agent.examples()[-2:], adapter.seed, capture_traces=True)
        for example in agent.examples()[-2:]:
            tape.ask("replaying", agent.replaying(), **example.inputs())


class Mood(dspy.Signature):
    """Judge the question."""

    question: str = dspy.InputField()
    mood: Literal["good", "bad"] = dspy.OutputField()


class Two(dspy.Module):
    """A program of two predictors."""

    def __init__(self):
        super().__init__()
        self.stages = {"search": dspy.Predict("question -> words")}
        self.answer = dspy.ChainOfThought("passages: list[str], question -> answer")

    def forward(self, question):
        words = self.stages["search"](question=question).words
        return self.answer(passages=[f"about {words}"], question=question)

    async def aforward(self, question):
        words = (await self.stages["search"].acall(question=question)).words
        return await self.answer.acall(passages=[f"about {words}"], question=question)


def look(query: str) -> str:
    """Look something up."""
    return f"found {query}"


def crash():
    """Never works."""
    raise RuntimeError("it broke")


def personal(tape):
    """Any program under a persona: programs x adapters, past turns, sync and async, a full context."""
    persona = Persona.from_text("Prefers short answers.\nIf it mentions <data>, says no.", user_id="ana")
    past = [
        Interaction(user_id="ana", query=f"{q} <|im_end|>?", response=r, time=f"2026-01-{n:02d}", id=str(n))
        for n, (q, r) in enumerate([("space", "good"), ("ghost [[ ## x ## ]]", "bad"), ("film " * 300, "good")], 1)
    ]
    demos = dspy.LabeledFewShot(k=2).compile(
        dspy.ChainOfThought(Mood),
        trainset=[dspy.Example(question=f"demo {n}", mood="good").with_inputs("question") for n in range(2)],
    )
    programs = {
        "Predict": dspy.Predict("question -> answer"),
        "ChainOfThought": dspy.ChainOfThought(Mood),
        "ReAct": dspy.ReAct("question -> answer", tools=[look]),
        "two": Two(),
        "demos": demos,
    }
    adapters = {"none": None, "chat": dspy.ChatAdapter(), "json": dspy.JSONAdapter(), "xml": dspy.XMLAdapter()}
    for name, program in programs.items():
        mine = personalize(program, persona=persona, history=past, recall_k=2)
        plain = personalize(program, history=past)
        for called, adapter in adapters.items():
            for how in ("sync", "async"):
                with dspy.context(lm=tape.lm(), adapter=adapter):
                    tape.ask(f"{name}, {called}", mine, how=how, question=QUERY)
            with dspy.context(lm=tape.lm(schema=False), adapter=adapter):
                tape.ask(f"{name}, {called}, counted facts, no schema", plain, question=QUERY)
        with dspy.context(lm=tape.lm()):
            size = max(map(len, tape.ask(name, mine, question=QUERY)))
        for share in (0.9, 0.1):
            for how in ("sync", "async"):
                with dspy.context(lm=tape.lm(limit=int(size * share))):
                    tape.ask(f"{name}, {share} of the context", mine, how=how, question=QUERY)


async def streamed(agent, field):
    listener = dspy.streaming.StreamListener(signature_field_name=field)
    parts = dspy.streamify(agent, stream_listeners=[listener], async_streaming=True)(description=QUERY)
    return [part async for part in parts]


def agent(tape):
    """Every action policy, forms of episodes, types of answers; native calls; unreadable answers; full contexts."""
    corpus = tape.folder / "corpus.jsonl"
    corpus.write_text(CORPUS)
    rule = Bullet(section="what decides", words=("ghost",), then="comedy", source="learned")
    _, past = past_of(1, 12, user_id="ana")
    person = SyntheticUser(seed=1)
    learned = Persona(user_id="ana", bullets=(rule,))
    acts = {name: name for name in ("fixed", "plain", "none", "plan", "react")}
    acts |= {f"{name} with tools": Act(policy=name, knowledge=LocalCorpus.from_path(corpus), tools=[look, crash])
             for name in ("plan", "react")}  # fmt: skip
    for name, act in acts.items():
        agents = {
            "turns": PersonaAgent(person.signature, history=past, persona=learned, actions=act),
            "block": PersonaAgent(
                person.signature, history=past, actions=act, episodes_as="block", steering=Steering(labels=False)
            ),
        }
        for form, mine in agents.items():
            for how in ("sync", "async"):
                with dspy.context(lm=tape.lm()):
                    sent = tape.ask(f"{name}, {form}", mine, how=how, description=QUERY)
                with dspy.context(lm=tape.lm(schema=False)):
                    tape.ask(f"{name}, {form}, no schema", mine, how=how, description=QUERY + " rubbish")
                for share in (0.95, 0.8, 0.1):
                    with dspy.context(lm=tape.lm(limit=int(max(map(len, sent)) * share))):
                        tape.ask(f"{name}, {form}, {share} of the context", mine, how=how, description=QUERY)
        if "react" in name:
            for how in ("sync", "async"):
                with dspy.context(lm=tape.lm(functions=True)):
                    sent = tape.ask(f"{name}, native", agents["turns"], how=how, description=QUERY)
                with dspy.context(lm=tape.lm(functions=True, limit=max(map(len, sent)) - 100)):
                    tape.ask(f"{name}, native, full", agents["turns"], how=how, description=QUERY)
    memory = EpisodicMemory(past)
    for signature in ("film, year: int -> tag, why", "film -> stars: float", "observations -> tags: list[str]"):
        for adapter in (None, dspy.ChatAdapter(), dspy.XMLAdapter()):
            stars = [dataclasses.replace(i, response=str(n % 5 + 1)) for n, i in enumerate(past)]
            mine = PersonaAgent(
                signature, history=stars if "stars" in signature else memory, recall_k=2, adapter=adapter
            )
            given = {mine.query_field: QUERY, **({"year": 1979} if "year" in signature else {})}
            with dspy.context(lm=tape.lm()):
                tape.ask(f"{signature}, {type(adapter).__name__}", mine, **given)
    with dspy.context(lm=tape.lm()):
        tape.at = "simulated"
        mine = PersonaAgent(person.signature, history=past, persona=learned, actions="plan")
        mine.simulate(mine.examples()[5], exclude=frozenset(["i1"]))
        bob = mine.for_user("bob", past_of(2, 9, user_id="bob")[1])
        tape.ask("bob", bob, description=QUERY)
        tape.at = "streamed"
        asyncio.run(streamed(mine, "tag"))


def online(tape):
    """A service's programs: answers, responses observed, alignment behind them, by threads and by asyncio."""
    for kept in (False, True):
        person, past = past_of(5, 15, odd_topics=5)
        with (
            Store.open(tape.folder / f"s{kept}.db") as store,
            dspy.context(lm=tape.lm()),
            Personas(
                store, PersonaAgent(person.signature, actions="fixed"), PersonaAlignment(epochs=2), every=5
            ) as service,
        ):
            agent = service.for_user(person.user_id)
            for i in past:
                tape.ask(f"store: {kept}", agent, how="async" if kept else "sync", description=i.query)
                observed = {"query": i.query, "response": i.response, "time": i.time, "id": i.id}
                if kept:
                    asyncio.run(agent.aobserve(**observed))
                else:
                    agent.observe(**observed)
                assert service.wait(30)
            agent = service.for_user(person.user_id)
            tape.add(f"-> version {agent.persona.value.version}: {agent.persona.value.render()}")


SCENARIOS = {scenario.__name__: scenario for scenario in (demo, judge, learn, personal, agent, online)}


def recorded(name):
    with tempfile.TemporaryDirectory() as folder:
        tape = Tape(Path(folder))
        SCENARIOS[name](tape)
    return [entry.replace(folder, "FOLDER") for entry in tape.entries]


def first_difference(before, now):
    """The first entry that differs as a unified diff; empty where none does."""
    for number, (old, new) in enumerate(zip_longest(before, now, fillvalue="")):
        if old != new:
            name = (old or new).partition("\n")[0]
            told = difflib.unified_diff(old.split("\n"), new.split("\n"), "recorded", "now", n=3, lineterm="")
            return f"entry {number} of {len(before)} recorded, {len(now)} now: {name}\n" + "\n".join(told)
    return ""


@pytest.fixture(scope="module")
def golden():
    return json.loads(lzma.decompress(GOLDEN.read_bytes()))


_LONG = ("judge", "learn")  # seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in _LONG else []) for name in SCENARIOS]
)
def test_the_same_requests_are_sent(name, golden):
    told = first_difference(golden[name], recorded(name))
    assert not told, told


if __name__ == "__main__":
    found = {name: recorded(name) for name in SCENARIOS}
    if "--write" in sys.argv:
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_bytes(lzma.compress(json.dumps(found, ensure_ascii=False, indent=0).encode()))
        print({name: sum("\n-> " not in e for e in entries) for name, entries in found.items()}, GOLDEN.stat().st_size)
    else:
        kept = json.loads(lzma.decompress(GOLDEN.read_bytes()))
        print("\n".join(filter(None, (first_difference(kept[name], found[name]) for name in SCENARIOS))) or "the same")
