"""Resolves LM names to LMs, and checks that an LM answers before any work begins.

Environment: ``PERSONA_DSPY_HOME`` (the store, by default ``~/.persona_dspy``), ``PERSONA_DSPY_MODELS`` (model files).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from persona_dspy.core import remember_secret, scrubbed
from persona_dspy.errors import InputError, ModelError
from persona_dspy.lm.local.catalogue import CATALOGUE, DEFAULT_MODEL, fetch_model, find_model
from persona_dspy.lm.local.files import models_dir

if TYPE_CHECKING:
    import dspy
    from dspy.utils.exceptions import LMError

__all__ = ["check_lm", "home_dir", "lm_errors", "lm_name", "lm_spec", "resolve_lm", "steady_lm"]


def home_dir() -> Path:
    """``$PERSONA_DSPY_HOME``, else ``~/.persona_dspy``: where the store's file is by default. Not created here."""
    folder = os.environ.get("PERSONA_DSPY_HOME")
    return Path(folder).expanduser() if folder else Path.home() / ".persona_dspy"


def resolve_lm(spec: object = "local", **overrides: Any) -> dspy.LM:
    """The ``dspy.LM`` that a value means.

    Args:
        spec: ``"local"`` (the smallest catalogue model, fetched at first use), ``"local:half"`` (another one),
            ``"local:/path/model.gguf"``, ``"replayed:answers.jsonl"`` (recorded answers; with ``@openai/gpt-4o`` behind
            it, what is missing is asked there and added), any other name as ``dspy.LM`` takes it
            (``"openai/gpt-4o-mini"``), ``"small:openai/NAME"`` for a served one that is small and whose name does not
            say so (``is_small``), or an LM object, returned as it is.
        overrides: arguments of ``dspy.LM`` (temperature, max_tokens, cache, seed, api_base, ...); an LM object is
            copied with them.

    Raises:
        InputError: neither a name nor an LM.
        ModelError: a local model that is missing, damaged, or cannot be fetched.

    Example:
        >>> resolve_lm("openai/gpt-4o-mini", temperature=0.7).kwargs["temperature"]
        0.7
    """
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # or its import asks the network for prices
    import dspy

    if isinstance(spec, dspy.BaseLM):
        return cast("dspy.LM", spec.copy(**overrides) if overrides else spec)
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(
            f"lm {spec!r}: expected 'local', 'local:half', 'local:/path/model.gguf', a name such as "
            "'openai/gpt-4o-mini', or a dspy.LM"
        )
    name = spec.strip()
    if name == "local" or name.startswith("local:") or name.endswith(".gguf"):
        from persona_dspy.lm.local.engine import local_lm

        model = name.removeprefix("local").removeprefix(":") if name.startswith("local") else name
        return local_lm(_local_file(model or DEFAULT_MODEL), **overrides)
    if name.startswith("replayed:"):
        from persona_dspy.lm.replayed import replayed_lm

        path, _, source = name.removeprefix("replayed:").partition("@")
        overrides.pop("num_retries", None)  # a missing answer does not come by asking again
        return replayed_lm(path, source=resolve_lm(source, **overrides) if source else None, **overrides)
    if name.startswith("small:"):
        lm: Any = resolve_lm(name.removeprefix("small:"), **overrides)
        lm.small = True
        return lm
    if name.startswith("replayed/"):
        raise InputError(
            f"lm {name!r}: expected a model that runs; what was learned from recorded answers names no other. Type "
            "--lm and one, such as --lm local, or the record: --lm replayed:FILE"
        )
    remember_secret(overrides.get("api_key"))
    return dspy.LM(name, **overrides)


def steady_lm(name: str, *, seed: int, num_retries: int = 6) -> dspy.LM:
    """The LM of a command: ``resolve_lm`` at temperature 0, so that comparisons do not depend on sampling.

    A local model gets the seed too. Where DSPy knows that a model takes no temperature (reasoning models), it is left
    at the provider's own: then ``kwargs["temperature"]`` is None, and single answers vary.

    Example:
        >>> steady_lm("openai/gpt-4o-mini", seed=0).kwargs["temperature"]
        0.0
    """
    if name.startswith("local") or name.endswith(".gguf"):
        return resolve_lm(name, seed=seed)
    try:
        return resolve_lm(name, num_retries=num_retries, temperature=0.0)
    except ValueError:
        return resolve_lm(name, num_retries=num_retries)


def lm_spec(model: str) -> str:
    """What ``resolve_lm`` takes for a model as DSPy names it, as in a persona JSON: a local one by its weights.

    Example:
        >>> lm_spec("local/SmolLM2-135M-Instruct.Q4_1-b179c952"), lm_spec("openai/gpt-4o-mini")
        ('local:smol', 'openai/gpt-4o-mini')
    """
    if not model.startswith("local/"):
        return model
    stem, _, weights = model.removeprefix("local/").rpartition("-")
    for known in CATALOGUE.values():
        if known.file == f"{stem}.gguf" and known.sha256.startswith(weights):
            return f"local:{known.name}"
    return f"local:{stem}.gguf"


def lm_name(lm: Any) -> str | None:
    """An LM as persona JSONs name it: as DSPy does, with ``small:`` before it where that was said; None without one.

    Example:
        >>> lm_name(resolve_lm("small:openai/our-model"))
        'small:openai/our-model'
    """
    model = getattr(lm, "model", None)
    return f"small:{model}" if model and getattr(lm, "small", None) is True else model


def _local_file(name: str) -> Path:
    if name in CATALOGUE and not (models_dir() / CATALOGUE[name].file).is_file():
        size = CATALOGUE[name].size / 1e6
        print(f"fetching the local model {name!r} ({size:.0f} MB) into {models_dir()}, once", file=sys.stderr)
        return fetch_model(name)
    return find_model(name)


def check_lm(lm: dspy.LM) -> None:
    """Preflight: makes one tiny call, so that a missing key or a server that is down shows before any work.

    A local model is loaded instead; other engine objects, such as fakes, are not called. DSPy's cache, history,
    callbacks and usage trackers do not see the call, nor does any ledger.

    Raises:
        ModelError: the LM cannot be used; says what to type.
    """
    from persona_dspy.lm.local.engine import LlamaEngine

    engine = getattr(lm, "engine", None)
    if isinstance(engine, LlamaEngine):
        engine.load()
        return
    if not isinstance(engine, str):
        return
    import dspy

    probe = lm.copy(cache=False, num_retries=0)
    probe.callbacks = []
    quiet = {"callbacks": [], "usage_tracker": None, "disable_history": True}
    with dspy.context(**quiet, persona_ledger=None, persona_listeners=()), lm_errors(lm):
        probe("Reply with the word OK.")


@contextmanager
def lm_errors(lm: dspy.LM) -> Generator[None]:
    """What DSPy raises for an LM that cannot be used becomes a ``ModelError`` that says what to type."""
    from dspy.utils.exceptions import ContextWindowExceededError, LMError

    try:
        yield
    except ContextWindowExceededError:
        raise  # the prompt's fault
    except LMError as error:
        remember_secret(lm.kwargs.get("api_key"))
        reason = (scrubbed(str(error)).strip().splitlines() or [type(error).__name__])[0].rstrip(" .")
        reason = re.sub(r"^\[[^\]]*\] (litellm\.)?", "", reason)  # drops the model's name and LiteLLM's class
        raise ModelError(f"lm {lm.model!r}: {reason}; expected an answer; {_advice(lm, error)}") from error


def _advice(lm: dspy.LM, error: LMError) -> str:
    from dspy.utils import exceptions

    provider = lm.model.split("/")[0] if "/" in lm.model else "openai"
    local = "or use a model in this process: --lm local"
    # NOTE LiteLLM reports a missing key and a refused connection as internal errors of the server.
    text = str(error)
    if isinstance(error, (exceptions.LMConfigurationError, exceptions.LMAuthError)) or "Missing credentials" in text:
        return f"type: export {provider.upper().replace('-', '_')}_API_KEY=..., {local}"
    if isinstance(error, (exceptions.LMTransportError, exceptions.LMTimeoutError)) or "Connection error" in text:
        where = lm.kwargs.get("api_base") or lm.kwargs.get("base_url") or os.environ.get("OPENAI_API_BASE")
        return f"start the server{f' at {scrubbed(str(where))}' if where else ''} or check the network, {local}"
    if isinstance(error, exceptions.LMBillingError):
        return f"check the account's balance, {local}"
    if isinstance(error, (exceptions.LMRateLimitError, exceptions.LMServerError)):
        return f"wait and try again, {local}"
    if isinstance(error, exceptions.LMInvalidRequestError) and provider.startswith("ollama"):
        return f"see what is there: ollama list, or type: ollama pull {lm.model.partition('/')[2]}, {local}"
    if isinstance(error, exceptions.LMInvalidRequestError):
        return f"check the name, 'provider/model' such as 'openai/gpt-4o-mini', {local}"
    return f"check the name and its settings, {local}"
