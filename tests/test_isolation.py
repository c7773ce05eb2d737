"""Many users at once: no persona, episode or observation ever in another user's prompt, by what the engine saw."""

import asyncio
import contextvars
import random
import re
from concurrent.futures import ThreadPoolExecutor

import dspy
import pytest
from requests_seen import messages, seen_lm

from persona_dspy.agent.actions import Act
from persona_dspy.agent.agent import PersonaAgent, personalize
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona

USERS = [f"user{n:02d}" for n in range(20)]
COUNT = {"fixed": 120, "plan": 60, "react": 40, "personalize": 80}  # answers over threads; those of ReAct take longest
MARK = re.compile(r"(?:persona|episode|answer|ask)-of-(user\d\d)")


def history(user):
    return [
        Interaction(user_id=user, query=f"film {n} episode-of-{user}", response=f"answer-of-{user}", id=f"{n}")
        for n in range(5)
    ]


def lm(prompt):
    if "actions" in prompt.outputs:
        return {"actions": [{"action": "recall_history", "words": "film"}, {"action": "recall_profile", "words": ""}]}
    if "next_tool_name" in prompt.outputs:
        done = "observation_0" in prompt.user
        args = {} if done else {"query": "film"}
        return {"next_thought": "t", "next_tool_name": "finish" if done else "recall_history", "next_tool_args": args}
    return {name: f"answer-of-{MARK.search(prompt.system)[1]}" for name in prompt.outputs}


def programs(kind):
    """A program for each user, over shared predictors."""
    if kind == "personalize":
        shared = dspy.ChainOfThought("film -> tag")
        return {u: personalize(shared, history=history(u), persona=persona(u), recall_k=3) for u in USERS}
    shared = PersonaAgent("film -> tag", user_id="nobody", actions=Act(policy=kind))
    return {u: shared.for_user(u, history(u), persona(u)) for u in USERS}


def persona(user):
    return Persona.from_text(f"Marked persona-of-{user}.", user_id=user)


def check(model, answers, n):
    assert len(answers) == n
    for user, answer in answers:
        assert answer.tag == f"answer-of-{user}" and answer.trace.user_id == user
        assert set(MARK.findall(answer.trace.to_json())) == {user}
    seen = [" ".join(text for _, text in messages(r)) for r in model.engine.requests]
    assert len(seen) >= n
    for text in seen:
        assert len(set(MARK.findall(text))) == 1, "a prompt with marks of two users"
        assert "persona-of-" in text
    assert sum("episode-of-" in text for text in seen) >= n


def asked(n):
    rng = random.Random(1)
    return [rng.choice(USERS) for _ in range(n)]


def kinds(*quick):
    every = ["fixed", "plan", "react", "personalize"]
    return pytest.mark.parametrize(
        "kind", [pytest.param(k, marks=() if k in quick else pytest.mark.slow) for k in every]
    )


@kinds("react", "personalize")
def test_eight_threads_over_twenty_users(kind):
    made, model = programs(kind), seen_lm(lm)
    with dspy.context(lm=model), ThreadPoolExecutor(8) as pool:
        runs = [
            (u, pool.submit(contextvars.copy_context().run, lambda u=u: made[u](film=f"film ask-of-{u}")))
            for u in asked(COUNT[kind])
        ]
        answers = [(u, run.result()) for u, run in runs]
    check(model, answers, COUNT[kind])


@kinds("fixed", "plan")
def test_fifty_tasks_over_twenty_users(kind):
    made, model = programs(kind), seen_lm(lm)
    rng = random.Random(2)
    model.engine.pause = lambda request: rng.random() / 500  # tasks take turns in the middle of an answer

    async def all_of_them():
        users = asked(50)
        return list(
            zip(users, await asyncio.gather(*[made[u].acall(film=f"film ask-of-{u}") for u in users]), strict=True)
        )

    with dspy.context(lm=model):
        answers = asyncio.run(all_of_them())
    check(model, answers, 50)


def test_the_test_would_notice():
    made, model = programs("fixed"), seen_lm(lm)
    made["user00"].memory = made["user01"].memory
    with dspy.context(lm=model):
        answers = [("user00", made["user00"](film="film ask-of-user00"))]
    with pytest.raises(AssertionError, match="two users"):
        check(model, answers, 1)


def test_a_raw_thread_without_context_speaks_for_nobody_else():
    made, model = programs("fixed"), seen_lm(lm)
    for program in made.values():
        program.set_lm(model)
    with ThreadPoolExecutor(4) as pool:  # no copied context: what an agent needs it sets itself
        answers = [(u, pool.submit(made[u], film=f"film ask-of-{u}")) for u in USERS]
        check(model, [(u, run.result()) for u, run in answers], len(USERS))
