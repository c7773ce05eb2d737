"""A persona per user for any DSPy program. Owns: the public names, imported when first used (``--help`` stays fast)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from persona_dspy.act import Act
    from persona_dspy.agent import PersonaAgent, PersonaPrediction, personalize
    from persona_dspy.alignment import Alignment
    from persona_dspy.errors import PersonaError
    from persona_dspy.export import load_persona, save_persona
    from persona_dspy.fleet import compile_users
    from persona_dspy.knowledge import LocalCorpus, Wikipedia
    from persona_dspy.ledger import Budget, Ledger
    from persona_dspy.memory.episodic import EpisodicMemory
    from persona_dspy.online import OnlineAlignment
    from persona_dspy.persona import Bullet, Edit, Persona
    from persona_dspy.records import Interaction, Usage

_HOME = {
    "Act": "act",
    "Alignment": "alignment",
    "Budget": "ledger",
    "Bullet": "persona",
    "Edit": "persona",
    "EpisodicMemory": "memory.episodic",
    "Interaction": "records",
    "Ledger": "ledger",
    "LocalCorpus": "knowledge",
    "OnlineAlignment": "online",
    "Persona": "persona",
    "PersonaAgent": "agent",
    "PersonaError": "errors",
    "PersonaPrediction": "agent",
    "Usage": "records",
    "Wikipedia": "knowledge",
    "compile_users": "fleet",
    "load_persona": "export",
    "personalize": "agent",
    "save_persona": "export",
}

__all__ = [
    "Act",
    "Alignment",
    "Budget",
    "Bullet",
    "Edit",
    "EpisodicMemory",
    "Interaction",
    "Ledger",
    "LocalCorpus",
    "OnlineAlignment",
    "Persona",
    "PersonaAgent",
    "PersonaError",
    "PersonaPrediction",
    "Usage",
    "Wikipedia",
    "compile_users",
    "load_persona",
    "personalize",
    "save_persona",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'persona_dspy' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"persona_dspy.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
