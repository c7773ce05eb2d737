"""Many users of a service at once, through every way DSPy runs a program, with its caches on: no persona, episode or
answer, fresh or cached, of one user in another's request or response."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import multiprocessing
import random
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import dspy
import pytest
from requests_seen import messages, seen_lm

from optimizers import PersonaAlignment
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.core.document import PersonaDocument
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.service.personas import Personas, ServiceOptions
from persona_dspy.store.store import Store

USERS = [f"user{n:02d}" for n in range(50)]
QUESTIONS = ("film", "a heist")  # the same of all users: an answer kept for one could be taken for another's
MARK = re.compile(r"(?:persona|episode|answer)-of-(user\d\d)")


class Rag(dspy.Module):
    def __init__(self):
        super().__init__()
        self.rewrite = dspy.Predict("film -> words")
        self.answer = dspy.ChainOfThought("context, film -> tag")

    def forward(self, film):
        words = self.rewrite(film=film).words
        return self.answer(context=f"what all may read of {words[:5]}", film=film)

    async def aforward(self, film):
        words = (await self.rewrite.acall(film=film)).words
        return await self.answer.acall(context=f"what all may read of {words[:5]}", film=film)


def look_up(query: str) -> str:
    """Looks up what all may read."""
    return "a film is a film"


def answered(prompt):
    user = MARK.search(prompt.system)[1]
    if "next_tool_name" in prompt.outputs:
        done = "observation_0" in prompt.user
        args = {} if done else {"query": "film"}
        return {"next_thought": "t", "next_tool_name": "finish" if done else "look_up", "next_tool_args": args}
    return dict.fromkeys(prompt.outputs, f"answer-of-{user}")


KINDS = {
    "agent": lambda: PersonaAgent("film -> tag", recall_k=3),
    "rag": lambda: personalize(Rag(), fields=("film", "tag"), recall_k=2),
    "react": lambda: personalize(dspy.ReAct("film -> tag", tools=[look_up])),
}


def filled(url):
    with Store.open(url) as store:
        for user in USERS:
            past = [
                Interaction(user_id=user, query=f"film {n} episode-of-{user}", response=f"answer-of-{user}", id=str(n))
                for n in range(4)
            ]
            store.add_episodes(user, past)
            persona = Persona.from_text(f"Marked persona-of-{user}.", user_id=user)
            store.put_persona(user, PersonaDocument.of(persona).to_json())


@contextmanager
def caching(folder):
    """DSPy's caches on, in a folder of the test's own."""
    cache = dspy.cache
    dspy.configure_cache(enable_disk_cache=True, enable_memory_cache=True, disk_cache_dir=str(folder))
    try:
        yield
    finally:
        dspy.cache = cache


def check(model, answers):
    for user, prediction in answers:
        assert prediction.tag == f"answer-of-{user}", (user, prediction.tag)
        trace = getattr(prediction, "_trace", None)
        if trace is not None:
            assert trace.user_id == user and set(MARK.findall(trace.to_json())) == {user}
    for request in model.engine.requests:
        text = " ".join(text for _, text in messages(request))
        assert len(set(MARK.findall(text))) == 1 and "persona-of-" in text, "a prompt with marks of two users, or none"


def by_threads(personas, users):
    with ThreadPoolExecutor(16) as pool:
        runs = [
            (user, pool.submit(contextvars.copy_context().run, lambda u=user, q=question: personas.for_user(u)(film=q)))
            for user, question in zip(users, itertools.cycle(QUESTIONS))
        ]
        return [(user, run.result()) for user, run in runs]


def by_tasks(personas, users):
    async def answer(user, question):
        program = await personas.afor_user(user)
        return user, await program.acall(film=question)

    async def all_of_them():
        asked = zip(users, itertools.cycle(QUESTIONS))
        return await asyncio.gather(*[answer(user, question) for user, question in asked])

    return asyncio.run(all_of_them())


def by_streams(personas, users):
    async def answer(user, question):
        listener = dspy.streaming.StreamListener(signature_field_name="tag", allow_reuse=True)
        program = await personas.afor_user(user)
        stream = dspy.streamify(
            program, stream_listeners=[listener], include_final_prediction_in_output_stream=True, async_streaming=True
        )
        parts = [part async for part in stream(film=question)]
        chunks = "".join(part.chunk for part in parts if isinstance(part, dspy.streaming.StreamResponse))
        assert set(MARK.findall(chunks)) <= {user}, "a piece of another user's answer"
        return user, parts[-1]

    async def all_of_them():
        asked = zip(users, itertools.cycle(QUESTIONS))
        return await asyncio.gather(*[answer(user, question) for user, question in asked])

    return asyncio.run(all_of_them())


def by_parallel(personas, users):
    pairs = [
        (personas.for_user(user), dspy.Example(film=question).with_inputs("film"))
        for user, question in zip(users, itertools.cycle(QUESTIONS))
    ]
    parallel = dspy.Parallel(num_threads=16, timeout=0, disable_progress_bar=True)
    return list(zip(users, parallel(pairs), strict=True))


def by_best_of_n(personas, users):
    def best(user, question):
        reward = lambda arguments, prediction: float(prediction.tag == "nobody's")  # noqa: E731 - all attempts are made
        return dspy.BestOfN(module=personas.for_user(user), N=2, reward_fn=reward, threshold=1.0)(film=question)

    with ThreadPoolExecutor(16) as pool:
        runs = [
            (user, pool.submit(contextvars.copy_context().run, best, user, question))
            for user, question in zip(users, itertools.cycle(QUESTIONS))
        ]
        return [(user, run.result()) for user, run in runs]


WAYS = {"threads": by_threads, "tasks": by_tasks, "streams": by_streams, "parallel": by_parallel, "best": by_best_of_n}


def served(url, kind, way, seed, answers, open_users=20):
    """Answers to users drawn at random, each asked at least twice; fewer programs are kept open than users."""
    rng = random.Random(seed)
    users = [user for user in rng.choices(USERS, k=answers // 2) for _ in range(2)]
    rng.shuffle(users)
    model = seen_lm(answered, cache=True)
    model.engine.pause = lambda request: rng.random() / 1000
    options = ServiceOptions(open_users=open_users)
    with (
        Store.open(url) as store,
        dspy.context(lm=model),
        Personas(store, KINDS[kind](), PersonaAlignment(), options=options) as personas,
    ):
        check(model, WAYS[way](personas, users))
    return len(model.engine.requests)


@pytest.fixture
def url(tmp_path):
    filled(f"sqlite:///{tmp_path}/personas.db")
    return f"sqlite:///{tmp_path}/personas.db"


QUICK = {("agent", "threads"), ("react", "tasks"), ("rag", "streams"), ("agent", "parallel"), ("rag", "best")}


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        pytest.param(kind, way, marks=() if (kind, way) in QUICK else pytest.mark.slow)
        for kind, way in itertools.product(KINDS, WAYS)
    ],
)
def test_no_user_meets_another(url, tmp_path, kind, way):
    with caching(tmp_path / "cache"):
        assert served(url, kind, way, seed=1, answers=40) > 0


def test_the_test_would_notice(url, tmp_path):
    model = seen_lm(answered)
    with (
        Store.open(url) as store,
        dspy.context(lm=model),
        Personas(store, KINDS["agent"](), PersonaAlignment()) as personas,
    ):
        mixed = personas.for_user("user00")
        mixed.online._memory = personas.for_user("user01").memory  # another's persona the program itself refuses
        with pytest.raises(AssertionError):
            check(model, [("user00", mixed(film="film"))])


def serve_all(url, folder, seed):
    with caching(f"{folder}/cache"):
        for kind, way in itertools.product(KINDS, WAYS):
            served(url, kind, way, seed=seed, answers=100)


@pytest.mark.slow
def test_four_processes_share_a_store_and_a_cache(url, tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=serve_all, args=(url, str(tmp_path), seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0] * 4
