"""Fixtures shared by test modules: real local models, loaded once a session."""

from __future__ import annotations

from typing import Any

import pytest


def _model(name: str) -> Any:
    from persona_dspy.errors import PersonaError
    from persona_dspy.local_lm import local_lm

    pytest.importorskip("xllamacpp", reason="pip install 'persona-dspy[local]'")
    try:
        return local_lm(name, cache=False)
    except PersonaError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smol_lm() -> Any:
    """The 135M model without DSPy's cache; skips where its file is not in PERSONA_DSPY_MODELS."""
    return _model("smol")
