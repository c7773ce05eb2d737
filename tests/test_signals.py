"""Signals: what a user said about a draft is kept, and is nowhere the user's answer."""

import copy
import json
from datetime import UTC, datetime

import dspy
import pytest

from optimizers.trainset import remembered
from persona_dspy import Interaction, PersonaAgent, Signal, personalize
from persona_dspy.core import ResponseKind, answered
from persona_dspy.data import join_users, read_users
from persona_dspy.errors import DataError, InputError
from persona_dspy.memory import EpisodicMemory, facts
from persona_dspy.store import Store
from persona_dspy.store.rows import interactions_of
from persona_dspy.testing import FakeLM

DRAFT = "We are so sorry! " + "Blah blah. " * 12
DAY = [datetime(2026, 1, n, tzinfo=UTC) for n in range(1, 10)]


@pytest.mark.parametrize(
    "fields",
    [
        {"thumbs": "sideways"},
        {"rating": 7},
        {"rating": True},
        {"rating": 3, "scale": (5, 1)},
        {"rating": 3, "scale": (0, 10**400)},
        {"version": -1},
        {"draft": 3},
        {"rejected": [1]},
    ],
)
def test_a_signal_that_cannot_be_is_refused(fields):
    with pytest.raises(InputError, match="expected"):
        Signal(**fields)


def test_a_signal_is_json_and_back_and_later_words_count():
    first = Signal(draft="a", version=2, thumbs=1, rejected="b", options=["a", "b"], trace="tr-1")
    assert Signal.of(json.loads(first.to_json())) == first == copy.deepcopy(first)
    later = first.updated(Signal(rating=1, comment="no"))
    assert (later.thumbs, later.rating, later.disliked, later.draft) == (None, 1.0, True, "a")
    assert not Signal()
    assert Signal(rating=3).approval == 0.5
    with pytest.raises(InputError, match="stars"):
        Signal.of({"stars": 3})


@pytest.mark.parametrize(
    ("given", "response"),
    [
        ({"signal": {"draft": "d", "comment": "long"}}, ""),
        ({"signal": {"draft": "d", "thumbs": "up"}}, ""),
        ({"signal": {"draft": "d", "rating": 5}}, ""),
        ({"signal": {"draft": "d", "comment": "long"}, "response": "mine"}, "mine"),
        ({"signal": {"draft": "d", "thumbs": "down"}, "response": "D "}, ""),
        ({"signal": {"preferred": "p", "rejected": ["r"]}}, "p"),
        ({"signal": {"rejected": ["r"]}, "response": "r"}, ""),
        ({"signal": {"thumbs": "down"}, "response": "r"}, ""),
        ({"response": "r", "metadata": {"thumbs": "down", "comment": "long"}}, ""),
        ({"response": "r", "metadata": {"thumbs_up": False}}, ""),
        ({"response": "r", "metadata": {"thumbs_down": True}}, ""),
        ({"response": "r", "metadata": {"feedback": "negative", "liked": False}}, "r"),
        ({"response": "r", "metadata": {"feedback": "👎"}}, ""),
        ({"response": "r", "metadata": {"thumbs": "up", "title": "down", "rating": 0}}, "r"),
    ],
)
def test_a_response_is_what_the_user_gave_or_chose(given, response):
    one = Interaction(user_id="u", query="q", **given)
    assert (one.response, one.answered) == (response, bool(response))
    if not response and one.signal.disliked:
        assert one.signal.draft or one.signal.rejected
    assert copy.deepcopy(one) == one


def test_an_interaction_without_response_or_signal_is_refused():
    for signal in (None, {}, Signal()):
        with pytest.raises(InputError, match="or a signal"):
            Interaction(user_id="u", query="q", signal=signal)


def test_ids_tell_signals_apart_and_stay_what_they_were():
    plain = Interaction(user_id="u", query="q", response="r")
    ups = [Interaction(user_id="u", query="q", signal={"draft": "d", "thumbs": t}) for t in ("up", "down")]
    assert plain.id == "d2b6cc53102d"
    assert len({plain.id, *(one.id for one in ups)}) == 3


def test_memory_keeps_judged_drafts_apart():
    own = [Interaction(user_id="u", query=f"q{n}", response="a", time=DAY[n], id=f"a{n}") for n in (0, 2, 4)]
    edit = Interaction(user_id="u", query="q5", response="b", time=DAY[5], id="e", signal={"draft": "c"})
    down = Interaction(user_id="u", query="q3", time=DAY[3], id="d", signal={"draft": "x", "thumbs": "down"})
    memory = EpisodicMemory([*own, down, edit])
    assert [i.id for i in memory.interactions] == ["a0", "a2", "a4", "e"]
    assert (len(memory), memory.position("d"), memory.get("d")) == (4, None, down)
    assert "d" not in {e.id for e in memory.recall("q3 x", k=9)}
    assert [i.id for i in memory.signals] == ["d", "e"]
    assert [i.id for i in memory.signals_before(2)] == ["d"]
    assert [i.id for i in memory.signals_before(DAY[3])] == []
    assert [i.id for i in memory.extended([]).signals] == ["d", "e"]
    for refused in (down, Interaction(user_id="v", query="q", id="n", signal={"draft": "x", "thumbs": "up"})):
        with pytest.raises(InputError):
            memory.extend([refused])
    with pytest.raises(InputError, match="already"):
        memory.append(Interaction(user_id="u", query="q", response="r", id="d"))
    memory.clear()
    assert memory.signals == ()


def test_a_draft_that_was_disliked_is_no_past_answer():
    """The case of a new user who put thumbs and comment into the metadata of ``observe``."""
    lm = FakeLM(lambda prompt: {"reply": DRAFT})
    with dspy.context(lm=lm):
        app = personalize(dspy.Predict("ticket -> reply"), user_id="tom", recall_k=2)
        for n in range(4):
            query = f"Where is my parcel no {n}?"
            draft = app(ticket=query).reply
            app.observe(query, draft, metadata={"thumbs": "down", "comment": "too long, do not apologise"})
        app(ticket="Where is my parcel?")
    prompt = lm.engine.calls[-1]
    assert prompt.turns == [] or not prompt.turns
    assert "sorry" not in prompt.system + prompt.user
    assert facts(app.memory.interactions, app.kind) == []
    assert [i.signal.comment for i in app.memory.signals] == ["too long, do not apologise"] * 4
    assert app.examples() == []


def test_a_typed_program_takes_signals_and_labels_apart():
    past = [Interaction(user_id="u", query=f"q{n}", response="ab"[n % 2]) for n in range(4)]
    past += [Interaction(user_id="u", query="q9", signal={"draft": "z", "thumbs": "down"})]
    agent = PersonaAgent("film -> tag", history=past)
    assert "z" not in (agent.kind.labels or ())
    assert len(agent.examples()) == 4
    assert "tag" not in agent.example(past[-1])
    assert agent.kind == ResponseKind.of_field(
        agent.respond.predictors()[0].signature.output_fields["tag"], [i.response for i in answered(past)]
    )


def test_a_history_takes_dictionaries_with_signals():
    rows = [{"query": "q", "draft": "d", "thumbs": "down"}, {"query": "q", "response": "r", "draft": "d"}]
    agent = PersonaAgent("film -> tag", history=rows, user_id="u")
    assert [i.response for i in agent.memory.interactions] == ["r"]
    assert [i.signal.draft for i in agent.memory.signals] == ["d", "d"]


def test_a_trainset_with_signals_is_no_answer_key():
    agent = PersonaAgent("film -> reply", user_id="u")
    edit = Interaction(user_id="u", query="q4", response="mine", signal={"draft": "d"})
    items = [
        dspy.Example(film="q1", reply="ours", thumbs="down", comment="too long").with_inputs("film"),
        {"film": "q2", "draft": "ours", "comment": "too long"},
        {"film": "q3", "reply": "mine", "draft": "ours"},
        edit,
    ]
    examples = remembered(agent, items)
    assert [e.reply for e in examples] == ["mine", "mine"]
    assert {i.query: i.response for i in agent.memory.signals} == {"q1": "", "q2": "", "q3": "mine", "q4": "mine"}
    assert agent.memory.get(edit.id).signal == edit.signal


def test_files_take_signals_nested_or_flat(tmp_path):
    rows = [
        {"user_id": "u", "query": "q1", "draft": "d", "comment": "too long", "version": 3},
        {"user_id": "u", "query": "q2", "signal": {"draft": "d", "thumbs": False}},
        {"user_id": "u", "query": "q3", "draft": "d", "response": "edited"},
        {"user_id": "u", "query": "q4", "preferred": "p", "rejected": ["r"]},
    ]
    file = tmp_path / "signals.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    (user,) = read_users(file)
    assert [i.response for i in user.interactions] == ["", "", "edited", "p"]
    assert [i.signal.draft for i in user.interactions] == ["d", "d", "d", ""]
    assert user.interactions[0].signal.version == 3
    (joined,) = join_users([user, user])
    assert joined.interactions == user.interactions
    for bad, message in (({"thumbs": "x"}, "up"), ({"signal": "x"}, "object"), ({"coment": "x"}, "comment")):
        file.write_text(json.dumps({"user_id": "u", "query": "q", "draft": "d", **bad}))
        with pytest.raises(DataError, match=message):
            list(read_users(file))


def test_the_store_keeps_and_forgets_signals(tmp_path):
    down = Interaction(user_id="u", query="q", signal=Signal(draft="x", thumbs="down", rejected=("y",), rating=None))
    rated = Interaction(user_id="u", query="q", signal=Signal(draft="x", rating=2, version=1))
    edit = Interaction(user_id="u", query="q", response="b", signal={"draft": "c"}, time=DAY[0])
    with Store.open(tmp_path / "p.db") as store:
        assert store.add_episodes("u", [down, rated, edit]) == 3
        assert store.add_episodes("u", [down, rated, edit]) == 0
        assert store.episodes("u") == [down, rated, edit]
        memory = store.memory("u")
        assert (len(memory), len(memory.signals)) == (1, 3)
        assert len(store.memory("u").signals) == 3
        store.forget("u")
        assert memory.signals == ()
        old = {"query": "q", "response": "r", "metadata": {"thumbs": "down"}}  # from before there were signals
        (read,) = interactions_of("u", [("x", json.dumps(old))])
        assert (read.answered, read.signal.draft) == (False, "r")
