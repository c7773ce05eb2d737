"""Retrievers by the names that commands take: bm25, dense, hybrid."""

from __future__ import annotations

from functools import cache
from typing import Any

from persona_dspy.errors import InputError
from persona_dspy.memory.dense import Dense, Hybrid
from persona_dspy.memory.retrieval import BM25, Retriever

__all__ = ["named_retriever"]


def named_retriever(name: str, encoder: Any = None) -> Retriever:
    """The retriever of a name.

    Args:
        name: ``"bm25"``: by words. ``"dense"``: by sentence vectors. ``"hybrid"``: both, by reciprocal rank fusion.
        encoder: of the sentence vectors: a ``dspy.Embedder`` or any callable with a ``name``; by default
            all-MiniLM-L6-v2 on this machine (``persona-dspy models pull minilm``).

    Raises:
        InputError: another name.
        ModelError: the encoder is not on this machine; the message says what to type.

    Example:
        >>> type(named_retriever("bm25")).__name__
        'BM25'
    """
    if name == "bm25":
        return BM25()
    if name not in ("dense", "hybrid"):
        raise InputError(f"retrieval {name!r}: expected 'bm25', 'dense' or 'hybrid'")
    dense = Dense(encoder=_own_encoder() if encoder is None else encoder)
    return dense if name == "dense" else Hybrid(parts=(BM25(), dense))


@cache
def _own_encoder() -> Any:
    """One for the whole process: it is read from disk once."""
    from persona_dspy.memory.encoders import minilm_encoder

    return minilm_encoder()
