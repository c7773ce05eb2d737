import dspy
import pytest
from requests_seen import messages, seen_lm

from persona_dspy import Interaction
from persona_dspy.core.text import count_tokens
from persona_dspy.errors import InputError
from persona_dspy.judge.baselines import ICL, PAG, RAG, Direct, Majority, MemoryBank, Nearest, ReAct
from persona_dspy.judge.baselines.membank import retention
from persona_dspy.testing.fake_lm import FakeLM

FILMS = [("robot war", "sci-fi"), ("quiet wedding", "romance"), ("robot love", "sci-fi"), ("old wedding", "drama")]
SIGNATURE = "film -> tag"
WITH_LM = [Direct, ICL, RAG, PAG, ReAct, MemoryBank]


def history(films=FILMS, user="u"):
    return [Interaction(user_id=user, query=q, response=r, id=str(n)) for n, (q, r) in enumerate(films)]


def answering(prompt):
    if "lines" in prompt.outputs:
        return {"lines": [{"line": "Likes robots.", "examples": [1, 3]}]}
    if "action" in prompt.outputs:
        return {"thought": "look", "action": "finish" if "robot war" in prompt.user else "recall", "words": "robot"}
    return {"tag": "sci-fi"} if "tag" in prompt.outputs else None


def ask(kind, query="a robot", **options):
    lm = FakeLM(answering)
    with dspy.context(lm=lm):
        answer = kind(SIGNATURE, **{"history": history(), "k": 2, **options})(film=query).tag
    return answer, lm.engine.calls


def shown(call):
    return [next(q for q, _ in FILMS if q in user) for user, _ in call.turns]


@pytest.mark.parametrize("kind", [*WITH_LM, Majority, Nearest])
def test_all_are_called_alike_and_refuse_an_empty_query(kind):
    assert ask(kind)[0] == "sci-fi"
    if kind is not Majority:
        with pytest.raises(InputError, match="expected a query"):
            ask(kind, "  ")


def test_what_each_shows_of_the_user():
    assert shown(ask(Direct)[1][-1]) == []
    assert shown(ask(ICL)[1][-1]) == ["robot love", "old wedding"]
    assert sorted(shown(ask(RAG)[1][-1])) == ["robot love", "robot war"]
    summary, answer = ask(PAG)[1]
    assert "robot war" in summary.user
    assert "Likes robots." in answer.system
    assert sorted(shown(answer)) == ["robot love", "robot war"]


def test_a_full_context_loses_the_farthest_episodes_first():
    lm = seen_lm(lambda p: {"tag": "sci-fi"})
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        RAG(SIGNATURE, history=history(), k=4)(film="a robot")
    size = sum(len(text) for _, text in messages(lm.engine.requests[0]))
    tight = seen_lm(lambda p: {"tag": "sci-fi"}, limit=size - 50)
    with dspy.context(lm=tight, adapter=dspy.ChatAdapter()):
        assert RAG(SIGNATURE, history=history(), k=4)(film="a robot").tag == "sci-fi"
    kept = tight.engine.calls[0].turns
    assert 0 < len(kept) < 4 and kept == lm.engine.calls[0].turns[4 - len(kept) :]
    with dspy.context(lm=seen_lm(lambda p: None, limit=50)), pytest.raises(dspy.ContextWindowExceededError):
        RAG(SIGNATURE, history=history(), k=4)(film="a robot")


def test_a_profile_is_made_once_and_an_unreadable_one_is_none():
    lm = FakeLM(lambda p: "no json" if "lines" in p.outputs else {"tag": "drama"})
    with dspy.context(lm=lm, adapter=dspy.JSONAdapter()):
        program = PAG(SIGNATURE, history=history())
        program.prepare()
        spent = len(lm.engine.calls)
        assert [program(film="x").tag, program(film="y").tag] == ["drama", "drama"]
    assert program.profile == ""
    assert len(lm.engine.calls) == spent + 2


def test_react_looks_up_and_then_answers_from_what_it_saw():
    _, calls = ask(ReAct)
    thinking, answer = [c for c in calls if "action" in c.outputs], calls[-1]
    assert len(thinking) == 2
    assert "robot war" in answer.user
    assert "old wedding" not in answer.user  # k = 2: only what was recalled by its words


@pytest.mark.parametrize("kind", WITH_LM)
def test_shown_queries_are_cut_and_another_users_memory_is_never_seen(kind):
    long = [(f"robot {n} " + "long " * 400, "sci-fi") for n in range(4)]
    theirs = history([("SECRET robot", "horror")], user="v")
    _, calls = ask(kind, history=history(long), turn_tokens=20)
    assert all("SECRET" not in c.system + c.user + str(c.turns) for c in calls)
    assert all(count_tokens(user) < 60 for c in calls for user, _ in c.turns)
    with pytest.raises(InputError, match="expected interactions of"):
        kind(SIGNATURE, history=[*history(), *theirs])


def test_forgetting_follows_the_curve_and_recall_strengthens():
    assert retention(0, 1) == 1
    assert retention(2, 1) < retention(2, 2) < retention(1, 2)
    films = [("robot war", "old")] + [("robot love", "used")] * 3 + [("meadow", "other")] * 16 + [("robot", "asked")]
    bank = MemoryBank(SIGNATURE, history=history(films), k=1)
    bank.episodes("robot")
    strengths = [round(strength) for strength, _ in bank._curve]
    assert max(strengths) > 1, "some memory was recalled while the history was lived through"
    assert sum(strengths) == len(films) + len(films) - 1  # each query but the first recalled k = 1 memory


def test_what_is_never_recalled_fades_behind_weaker_but_fresh_memories():
    meadows = [("meadow flower", "other")] * 18
    films = [("robot war story", "old"), *meadows, ("ship voyage", "sea"), ("ship voyage story", "new")]
    options = {"history": history(films), "k": 1}
    assert RAG(SIGNATURE, **options).episodes("robot war story")[0].interaction.response == "old"
    assert MemoryBank(SIGNATURE, **options).episodes("robot war story")[0].interaction.response == "new"


def test_votes_without_an_lm():
    films = [
        ("robot", "a"),
        ("robot arm", "a"),
        ("wedding", "b"),
        ("wedding bells", "b"),
        ("sea", "c"),
        ("wedding", "b"),
    ]
    with dspy.context(lm=None):
        assert Majority(SIGNATURE, history=history(films))(film="robot").tag == "b"
        assert Majority(SIGNATURE, history=history(films[:4]))(film="robot").tag == "b", "of equals the most recent"
        assert Nearest(SIGNATURE, history=history(films[:2] + films[4:5]))(film="robot").tag == "a"
        assert Majority(SIGNATURE)(film="robot").tag == ""
