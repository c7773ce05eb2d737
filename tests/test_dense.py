"""Dense against the cosine's formula, fusion against its own; what a broken encoder does."""

from __future__ import annotations

import dspy
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona_dspy.errors import InputError
from persona_dspy.memory.dense import Dense, Hybrid, dense_part
from persona_dspy.memory.retrieval import BM25

WORDS = st.lists(st.sampled_from(["cat", "dog", "sea", "red", "the", "a", "zebra"]), min_size=1, max_size=8)
DOCUMENTS = st.lists(WORDS.map(" ".join), min_size=1, max_size=12)


def ranked(retriever, documents, query, live=None):
    index = retriever.index()
    index.add(retriever.encode(documents))
    return index.scores(retriever.encode([query])[0], live)


def letters(texts):
    """A deterministic encoder: counts of a, b, c."""
    return np.array([[t.count(c) for c in "abc"] for t in texts], dtype=np.float64)


TEXTS = st.lists(st.text("abc ", max_size=6), min_size=1, max_size=10)


@given(TEXTS, st.text("abc", min_size=1, max_size=4), st.integers(1, 4))
def test_dense_is_the_cosine(texts, query, batch_size):
    scores = ranked(Dense(encoder=letters, name="letters", batch_size=batch_size), texts, query)
    q = letters([query])[0]
    for text, score in zip(texts, scores, strict=True):
        v = letters([text])[0]
        assert score == pytest.approx(v @ q / (np.linalg.norm(v) * np.linalg.norm(q) or 1), abs=1e-5)
    assert scores.dtype == np.float32


def test_dense_embeds_only_what_is_missing_in_batches():
    asked = []

    def encoder(texts):
        asked.append(list(texts))
        return letters(texts)

    dense = Dense(encoder=encoder, name="letters", batch_size=2)
    known = np.array([3, 0, 0], dtype=np.float32)
    items = dense.encode(["a", "b", "c", "ab"], [None, known, None, None])
    assert asked == [["a", "c"], ["ab"]]
    np.testing.assert_allclose(items, [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0.5**0.5, 0.5**0.5, 0]], rtol=1e-6)
    assert dense.encode([]) == []


@pytest.mark.parametrize(
    "wrong", [lambda t: [1.0, 2.0], lambda t: [[1.0]], lambda t: [[float("nan")]] * len(t), lambda t: [[]] * len(t)]
)
def test_dense_refuses_a_broken_encoder(wrong):
    with pytest.raises(InputError, match=r"encoder 'w' gave shape .* for 2 texts"):
        Dense(encoder=wrong, name="w").encode(["a", "b"])


def test_dense_refuses_another_width():
    index = Dense(encoder=letters, name="letters").index()
    index.add([np.ones(3, dtype=np.float32)])
    for use in (lambda v: index.add([v]), lambda v: index.scores(v, None)):
        with pytest.raises(InputError, match=r"encoder 'letters' has shape \(4,\): expected \(3,\)"):
            use(np.ones(4, dtype=np.float32))


def test_names_of_encoders():
    with pytest.raises(InputError, match="expected a name"):
        Dense(encoder=letters)
    embedder = dspy.Embedder("hosted/model-1")
    assert Dense(encoder=embedder).name == "hosted/model-1"
    with pytest.raises(InputError, match="expected a name"):
        Dense(encoder=dspy.Embedder(letters))


def test_a_dspy_embedder_is_asked_without_its_cache():
    """Its cache key knows neither the function nor the user: two functions would share answers."""
    one = Dense(encoder=dspy.Embedder(letters), name="one")
    two = Dense(encoder=dspy.Embedder(lambda texts: letters(texts)[:, ::-1]), name="two")
    assert one.encode(["aac"])[0].tolist() == two.encode(["aac"])[0].tolist()[::-1]


@given(DOCUMENTS, WORDS.map(" ".join), st.data())
def test_hybrid_is_reciprocal_rank_fusion(documents, query, data):
    live = np.array(data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents))))
    parts = (BM25(), Dense(encoder=letters, name="letters"))
    fused = ranked(Hybrid(parts=parts), documents, query, live)
    expected = np.zeros(len(documents))
    for part in parts:
        scores = ranked(part, documents, query, live)
        found = np.flatnonzero(live & (scores > 0))
        for i in found:
            expected[i] += 1 / (60 + 1 + (scores[found] > scores[i]).sum())
    np.testing.assert_allclose(fused[live], expected[live], rtol=1e-5)
    kept = [d for d, seen in zip(documents, live, strict=True) if seen]
    if kept:
        np.testing.assert_allclose(fused[live], ranked(Hybrid(parts=parts), kept, query), rtol=1e-5)


def test_hybrid_grows_and_knows_its_dense_part():
    dense = Dense(encoder=letters, name="letters")
    hybrid = Hybrid(parts=(BM25(), Hybrid(parts=(dense,))))
    assert dense_part(hybrid) is dense and dense_part(dense) is dense
    assert dense_part(BM25()) is None and dense_part(None) is None
    index = hybrid.index()
    for text in ("a", "b", "a b"):
        index.add(hybrid.encode([text]))
    assert index.scores(hybrid.encode(["b"])[0], None).argmax() == 1
    assert hybrid.encode([]) == []
    with pytest.raises(InputError, match="one part or more"):
        Hybrid(parts=())
