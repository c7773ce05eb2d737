"""BM25 against bm25s, selection against sorting."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.core import words_of
from persona_dspy.errors import InputError
from persona_dspy.memory.retrieval import BM25, Recency, top

WORDS = st.lists(st.sampled_from(["cat", "dog", "sea", "red", "the", "a", "zebra"]), min_size=1, max_size=8)
DOCUMENTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=12)


def ranked(retriever, documents, query, live=None):
    index = retriever.index()
    index.add(retriever.encode(documents))
    return index.scores(retriever.encode([query])[0], live)


def reference(documents, query):
    """Scores of the bm25s library over exactly these documents."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bm25s = pytest.importorskip("bm25s")
        peer = bm25s.BM25(k1=1.5, b=0.75, method="lucene")
        peer.index([words_of(d) for d in documents], show_progress=False)
        known = [w for w in words_of(query) if w in peer.vocab_dict]
        return peer.get_scores(known) if known else np.zeros(len(documents))


@settings(deadline=None)  # the first example imports bm25s
@given(DOCUMENTS, WORDS.map(" ".join))
def test_same_scores_as_bm25s(documents, query):
    np.testing.assert_allclose(ranked(BM25(), documents, query), reference(documents, query), rtol=2e-5, atol=1e-6)


@given(DOCUMENTS, WORDS.map(" ".join), st.data())
def test_hidden_episodes_change_nothing(documents, query, data):
    live = np.array(data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents))))
    kept = [d for d, seen in zip(documents, live, strict=True) if seen]
    scores = ranked(BM25(), documents, query, live)[live]
    np.testing.assert_allclose(scores, ranked(BM25(), kept, query) if kept else [], rtol=1e-6)


@given(DOCUMENTS, WORDS.map(" ".join), st.integers(0, 12))
def test_growing_is_building(documents, query, cut):
    retriever = BM25()
    index = retriever.index()
    index.add(retriever.encode(documents[:cut]))
    index.scores(retriever.encode([query])[0], None)
    index.add(retriever.encode(documents[cut:]))
    np.testing.assert_array_equal(index.scores(retriever.encode([query])[0], None), ranked(retriever, documents, query))


def test_texts_without_words_score_nothing():
    assert ranked(BM25(), ["", "!!!"], "cat").tolist() == [0, 0]


@pytest.mark.parametrize("options", [{"k1": -1}, {"b": 1.1}, {"k1": float("nan")}])
def test_impossible_parameters_are_refused(options):
    with pytest.raises(InputError, match="expected k1 >= 0"):
        BM25(**options)


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, -1.0, 3.0]), max_size=30), st.integers(0, 35), st.integers(1, 40))
def test_top_is_a_stable_sort(values, k, repeats):
    scores = np.array(values * repeats, dtype=np.float32)
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], -i))[:k]
    assert top(scores, k).tolist() == expected


def test_top_of_many():
    rng = np.random.default_rng(0)
    for size in (63, 64, 641, 10_000):
        scores = rng.standard_normal(size).astype(np.float32).round(2)
        assert top(scores, 10).tolist() == sorted(range(size), key=lambda i: (-scores[i], -i))[:10]


def test_recency_halves():
    assert Recency(half_life=2).weights(np.array([0, 2, 4])).tolist() == [1, 0.5, 0.25]
    for wrong in ({"half_life": 0}, {"half_life": float("nan")}, {"half_life": 1, "unit": "weeks"}):
        with pytest.raises(InputError, match="half-life above 0"):
            Recency(**wrong)
