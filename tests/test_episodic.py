"""Time order, cuts without leakage, recall, and one shared module for many users."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from persona_dspy.agent.context import answering
from persona_dspy.agent.recall import Recall
from persona_dspy.core.interactions import Interaction, in_time_order
from persona_dspy.errors import InputError
from persona_dspy.memory.dense import Dense, Hybrid
from persona_dspy.memory.episodic import EpisodicMemory, MemoryCut, episode_text
from persona_dspy.memory.retrieval import BM25, Recency

START = datetime(2026, 1, 1, tzinfo=UTC)
QUERY = st.lists(st.sampled_from(["cat", "dog", "sea", "red", "the", "zebra"]), min_size=1, max_size=5).map(" ".join)


def one(number: int, query: str = "query", *, day: float | None = None, user: str = "u1") -> Interaction:
    time = None if day is None else START + timedelta(days=day)
    return Interaction(user_id=user, query=query, response=f"r{number}", time=time, id=f"i{number}")


def ids(items) -> list[str]:
    return [item.id for item in items]


@st.composite
def histories(draw):
    queries = draw(st.lists(QUERY, max_size=9))
    timed = draw(st.booleans())
    days = [draw(st.integers(0, 5)) if timed else draw(st.one_of(st.none(), st.integers(0, 5))) for _ in queries]
    return [one(n, query, day=day) for n, (query, day) in enumerate(zip(queries, days, strict=True))]


def test_episode_text_is_title_query_response():
    item = Interaction(user_id="u", query="A crew.", response="sci-fi", metadata={"title": "Alien", "year": 1979})
    assert episode_text(item) == "Alien\nA crew.\nsci-fi"
    assert episode_text(item, fields=("year", "absent")) == "1979\nA crew.\nsci-fi"
    same = Interaction(user_id="u", query="Alien", response="sci-fi", metadata={"title": "Alien"})
    assert episode_text(same) == "Alien\nsci-fi"


@given(histories(), st.integers(0, 9))
def test_order_is_that_of_records_however_they_arrive(history, cut):
    memory = EpisodicMemory(history[:cut])
    for item in history[cut:]:
        memory.append(item)
    assert list(memory.interactions) == in_time_order(history)
    assert [memory.position(item.id) for item in memory.interactions] == list(range(len(history)))
    assert memory.position("absent") is None


def letters(texts):
    return np.array([[t.count(c) for c in "caz"] for t in texts], dtype=np.float32)


DENSE = Dense(encoder=letters, name="letters")
RETRIEVERS = [BM25(), DENSE, Hybrid(parts=(BM25(), DENSE))]
RECENCIES = [None, Recency(half_life=2), Recency(half_life=1, unit="days")]


@given(histories(), QUERY, st.sampled_from(RETRIEVERS), st.sampled_from(RECENCIES), st.data())
def test_recall_as_of_then_equals_a_memory_of_only_that(history, query, retriever, recency, data):
    """No leakage: neither candidates, nor ranks, nor scores depend on what may not be seen."""
    memory = EpisodicMemory(history, retriever=retriever, recency=recency)
    before = data.draw(st.one_of(st.none(), st.integers(0, 10), st.integers(0, 6).map(lambda d: START + timedelta(d))))
    exclude = data.draw(st.frozensets(st.sampled_from([i.id for i in history] or ["x"])))
    seen = memory.before(before, exclude)
    assume(list(seen) == in_time_order(seen))  # where some lack a time, the order as given holds for the whole
    whole = memory.recall(query, 5, before=before, exclude=exclude)
    as_of = before if isinstance(before, datetime) else None  # age in days counts from the cut
    alone = EpisodicMemory(seen, user_id="u1", retriever=retriever, recency=recency).recall(query, 5, before=as_of)
    assert ids(whole) == ids(alone)
    np.testing.assert_allclose([e.score for e in whole], [e.score for e in alone], rtol=1e-5)
    assert len(whole) == min(5, len(seen))
    assert all(memory.position(e.id) == e.position for e in whole)


@given(histories(), QUERY, st.integers(0, 9), st.sampled_from(RETRIEVERS), st.sampled_from(RECENCIES))
def test_appending_equals_building(history, query, cut, retriever, recency):
    grown = EpisodicMemory(history[:cut], retriever=retriever, recency=recency)
    grown.recall(query, 3)
    for item in history[cut:]:
        grown.append(item)
    assert grown.recall(query, 4) == EpisodicMemory(history, retriever=retriever, recency=recency).recall(query, 4)


def test_recency_outweighs_likeness_with_age():
    history = [one(0, "cat cat", day=0), one(1, "cat sea", day=50), one(2, "dog", day=51)]

    def best(recency):
        return EpisodicMemory(history, recency=recency).recall("cat", 3)

    assert ids(best(None)) == ["i0", "i1", "i2"]
    assert ids(best(Recency(half_life=10, unit="days"))) == ["i1", "i0", "i2"]
    plain, aged = best(None)[0], best(Recency(half_life=10, unit="days"))[1]
    assert aged.score == pytest.approx(plain.score * 0.5 ** (51 / 10), rel=1e-5)
    assert best(Recency(half_life=2))[0].score == pytest.approx(plain.score * 0.5 ** (2 / 2), rel=1e-5)


def test_known_vectors_are_not_embedded_again():
    asked = []

    def encoder(texts):
        asked.extend(texts)
        return letters(texts)

    vectors = {"i0": np.array([1, 0, 0], dtype=np.float32)}
    memory = EpisodicMemory([one(0, "x"), one(1, "az")], retriever=Dense(encoder=encoder, name="l"), vectors=vectors)
    assert ids(memory.recall("c", 1)) == ["i0"]
    assert asked == ["az\nr1", "c"]


def test_before_is_strict():
    memory = EpisodicMemory([one(0, day=0), one(1, day=1), one(2, day=1), one(3, day=2)])
    assert ids(memory.before(2)) == ["i0", "i1"]
    assert ids(memory.before(START + timedelta(days=1))) == ["i0"]
    assert ids(memory.before(datetime(2026, 1, 2))) == ["i0"]  # a naive time is UTC
    assert ids(memory.before(None, {"i3", "absent"})) == ["i0", "i1", "i2"]
    assert memory.before(0) == ()


def test_unknown_times_are_not_earlier_than_a_time():
    memory = EpisodicMemory([one(0), one(1, day=0)])
    assert ids(memory.before(START + timedelta(days=9))) == ["i1"]
    assert ids(memory.before(2)) == ["i0", "i1"]


def test_recency_decides_where_nothing_matches():
    memory = EpisodicMemory([one(n, "about cats" if n == 1 else f"topic{n}", day=n) for n in range(6)])
    assert ids(memory.recall("nothing of that", 3)) == ["i5", "i4", "i3"]
    assert ids(memory.recall("cats", 3)) == ["i1", "i5", "i4"]
    assert ids(memory.recall("cats", 3, before=1)) == ["i0"]
    assert ids(memory.recall("", 2)) == ["i5", "i4"]


def test_empty_memory():
    memory = EpisodicMemory(user_id="u1")
    assert memory.recall("q", 4) == [] and memory.interactions == () and len(memory) == 0
    assert EpisodicMemory([one(0)]).recall("q", 4, before=0) == []
    assert EpisodicMemory([one(0)]).recall("q", 0) == []


def test_what_is_refused():
    with pytest.raises(InputError, match="interactions of 'u1' only; make one EpisodicMemory per user"):
        EpisodicMemory([one(0), one(1, user="u2")])
    with pytest.raises(InputError, match="interactions of 'u2' only"):
        EpisodicMemory([one(0)], user_id="u2")
    memory = EpisodicMemory([one(0)])
    with pytest.raises(InputError, match="'i0': already in the memory"):
        memory.append(one(0))
    with pytest.raises(InputError, match="only"):
        memory.append(one(1, user="u2"))
    with pytest.raises(InputError, match=r"recall\(k=-1\)"):
        memory.recall("q", -1)
    with pytest.raises(InputError, match="before=-1"):
        memory.recall("q", 1, before=-1)
    assert ids(memory.interactions) == ["i0"] and ids(memory.recall("q", 5)) == ["i0"]


def test_a_copy_is_the_handle_itself():
    memory = EpisodicMemory([one(0)])
    assert copy.deepcopy(memory) is memory and copy.copy(memory) is memory
    assert copy.deepcopy({"m": memory})["m"] is memory


def test_encoders_run_outside_the_lock():
    """A slow retriever never blocks an append."""
    started, release = threading.Event(), threading.Event()

    class Slow:
        def encode(self, texts, vectors=None):
            started.set()
            assert release.wait(10)
            return list(texts)

        def index(self):
            return Counting()

    class Counting:
        size = 0

        def add(self, items):
            self.size += len(items)

        def scores(self, query, live):
            return np.zeros(self.size, dtype=np.float32)

    memory = EpisodicMemory([one(0, day=0)], retriever=Slow())
    with ThreadPoolExecutor(1) as pool:
        recalled = pool.submit(memory.recall, "q", 5)
        assert started.wait(10)
        memory.append(one(1, day=1))  # returns although the index is being built
        memory.append(one(2, day=-1))
        release.set()
        assert ids(recalled.result(10)) == ["i0"]
    assert ids(memory.recall("q", 5)) == ["i1", "i0", "i2"]


def test_append_while_recalling():
    memory = EpisodicMemory(user_id="u1")

    def read():
        for _ in range(150):
            episodes = memory.recall("cat sea", 5)
            assert len({e.id for e in episodes}) == len(episodes)
            assert all(memory.position(e.id) is not None for e in episodes)

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for n in range(300):
            memory.append(one(n, "cat" if n % 3 else "sea", day=n % 17))
        for reader in readers:
            reader.result(60)
    assert len(memory.recall("cat", 400)) == 300


def test_recall_module_reads_the_ambient_user():
    recall = Recall(k=2)
    assert recall(query="anything").episodes == []
    memory = EpisodicMemory([one(n, "cat", day=n) for n in range(5)])
    with answering(memory=memory):
        assert ids(recall(query="cat").episodes) == ["i4", "i3"]
        assert ids(recall(query="cat", k=1).episodes) == ["i4"]
        with answering(cut=MemoryCut(before=3, exclude=frozenset({"i2"}))):
            assert ids(recall(query="cat").episodes) == ["i1", "i0"]
    assert recall(query="anything").episodes == []


def test_one_module_many_users_many_threads():
    recall = Recall(k=3)
    memories = [EpisodicMemory([one(n, "cat", user=f"u{u}") for n in range(4)]) for u in range(40)]

    def ask(memory):
        with answering(memory=memory):
            return {e.interaction.user_id for e in recall(query="cat").episodes}

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, memories * 5))
    assert answers == [{m.user_id} for m in memories * 5]


def test_recall_survives_copies_and_state():
    recall = copy.deepcopy(Recall(k=2))
    recall.load_state(recall.dump_state())
    with answering(memory=EpisodicMemory([one(0)])):
        assert ids(recall(query="q").episodes) == ["i0"]
