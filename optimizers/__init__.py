"""Optimizers over personas. Owns: the public names, imported when first used."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimizers.acceptance import AlwaysAccept, AnchorGate, HeldOutGate, KFoldGate, SignTestGate
    from optimizers.cohort import Cohort
    from optimizers.gepa_adapter import PersonaGEPAAdapter
    from optimizers.persona_alignment import PersonaAlignment
    from optimizers.proposals import EditProposer, RewriteProposer

_HOME = {
    "AlwaysAccept": "acceptance",
    "AnchorGate": "acceptance",
    "Cohort": "cohort",
    "EditProposer": "proposals",
    "HeldOutGate": "acceptance",
    "KFoldGate": "acceptance",
    "PersonaAlignment": "persona_alignment",
    "PersonaGEPAAdapter": "gepa_adapter",
    "RewriteProposer": "proposals",
    "SignTestGate": "acceptance",
}

__all__ = [
    "AlwaysAccept",
    "AnchorGate",
    "Cohort",
    "EditProposer",
    "HeldOutGate",
    "KFoldGate",
    "PersonaAlignment",
    "PersonaGEPAAdapter",
    "RewriteProposer",
    "SignTestGate",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'optimizers' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"optimizers.{_HOME[name]}"), name)
