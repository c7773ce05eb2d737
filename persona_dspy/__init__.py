"""A persona per user for any DSPy program.

The public names are imported when first used, so that ``--help`` stays fast.
"""

# pyright: reportUnsupportedDunderAll=false
from importlib import import_module
from typing import Any

_ROOMS = {
    "Act": "agent",
    "Alignment": "core",
    "Budget": "lm",
    "Bullet": "core",
    "Edit": "core",
    "EpisodicMemory": "memory",
    "Interaction": "core",
    "Ledger": "lm",
    "LocalCorpus": "agent",
    "Persona": "core",
    "PersonaAgent": "agent",
    "PersonaError": "errors",
    "PersonaPrediction": "agent",
    "Personas": "service",
    "Signal": "core",
    "Usage": "core",
    "Wikipedia": "agent",
    "compile_users": "fleet",
    "load_persona": "core",
    "personalize": "agent",
    "save_persona": "core",
}
# NOTE PersonaAlignment lives in `optimizers`, which a user's own folder of that name hides from `import optimizers`.
_OPTIMIZERS = ("PersonaAlignment",)

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
    "Persona",
    "PersonaAgent",
    "PersonaAlignment",
    "PersonaError",
    "PersonaPrediction",
    "Personas",
    "Signal",
    "Usage",
    "Wikipedia",
    "compile_users",
    "load_persona",
    "personalize",
    "save_persona",
]


def __getattr__(name: str) -> Any:
    if name in _OPTIMIZERS:
        return getattr(import_module("optimizers"), name)
    if name not in _ROOMS:
        raise AttributeError(f"module 'persona_dspy' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"persona_dspy.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
