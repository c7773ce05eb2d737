"""The work behind ``persona-dspy serve``: what one worker process serves."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["SETTINGS", "ServeSettings", "application"]

SETTINGS = "PERSONA_DSPY_SERVE"  # what the command was given, for the workers it starts; no secrets
_NEVER = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """What ``persona-dspy serve`` was given; ``model`` None = nobody is aligned."""

    store: str
    upstream: str
    model: str | None
    every: int
    queue: str
    tracking_uri: str
    max_bytes: int

    def to_environment(self) -> None:
        os.environ[SETTINGS] = json.dumps(asdict(self))


def application() -> Starlette:
    """The proxy of this worker; called in each by uvicorn.

    Raises:
        InputError: no token, or no key for the model that aligns.
        StoreError: the store cannot be opened.
    """
    import dspy

    from optimizers import PersonaAlignment
    from persona_dspy.agent import PersonaAgent
    from persona_dspy.cli.programs import forgettable
    from persona_dspy.service import Metrics, Personas, ProxyOptions, ServiceOptions, proxy_app
    from persona_dspy.store import Store
    from persona_dspy.tracking import is_off, tracker_for

    settings = ServeSettings(**json.loads(os.environ[SETTINGS]))
    forgettable()
    if settings.model is not None:
        dspy.configure(lm=alignment_lm(settings.model, settings.upstream))
    metrics = Metrics()
    personas = Personas(
        Store.open(settings.store),
        PersonaAgent("message -> reply"),
        PersonaAlignment(),
        tracker=None if is_off(settings.tracking_uri) else tracker_for(settings.tracking_uri),
        every=settings.every if settings.model is not None else _NEVER,
        options=ServiceOptions(queue=settings.queue, on_done=metrics.count_alignment),
    )
    options = ProxyOptions(upstream=settings.upstream, max_bytes=settings.max_bytes)
    gc.collect()
    gc.freeze()  # looking through all that was imported holds every request for a tenth of a second
    return proxy_app(personas, os.environ.get("PERSONA_DSPY_TOKEN"), options, metrics=metrics)


def alignment_lm(model: str, upstream: str) -> object:
    """The LM that alignments ask: the upstream's ``model``, with the key of this server's own environment.

    Raises:
        InputError: there is no key.
    """
    from persona_dspy.errors import InputError
    from persona_dspy.lm import resolve_lm

    key = os.environ.get("OPENAI_API_KEY")
    if not key:
        raise InputError(
            f"--model {model!r}: OPENAI_API_KEY is not set; expected a key of {upstream} for alignments (callers' keys "
            "are theirs alone), type: export OPENAI_API_KEY=..., or leave --model out and nobody is aligned"
        )
    return resolve_lm(f"openai/{model}", api_base=upstream, api_key=key, cache=False)
