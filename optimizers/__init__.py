"""Optimizers over personas. Owns: the public names, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizers.acceptance import AlwaysAccept, HeldOutGate
    from optimizers.persona_alignment import PersonaAlignment
    from optimizers.proposals import EditProposer, RewriteProposer

_HOME = {
    "AlwaysAccept": "acceptance",
    "EditProposer": "proposals",
    "HeldOutGate": "acceptance",
    "PersonaAlignment": "persona_alignment",
    "RewriteProposer": "proposals",
}

__all__ = ["AlwaysAccept", "EditProposer", "HeldOutGate", "PersonaAlignment", "RewriteProposer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optimizers' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"optimizers.{_HOME[name]}"), name)
