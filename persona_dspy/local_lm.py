"""llama.cpp inside this process, behind ``dspy.LM``. Owns: the engine, its request and answer translation.
Not here: which file is meant (models), what a name means (settings), DSPy's cache and retries.

``LlamaEngine`` follows ``dspy.clients.engines.base``: one attempt per call, canonical lm15 values in and out,
lm15 errors. One engine per model file per process; its slots batch whoever calls at the same time, and a prompt that
starts like an earlier one is not computed again.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import queue
import secrets
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.errors import InputError, ModelError
from persona_dspy.local_schema import constraint
from persona_dspy.models import check_gguf, find_model, model_name, weights_hash

if TYPE_CHECKING:
    import dspy
    from dspy.lm15 import Request, Response

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "local_lm", "shared_engine", "to_server"]

_PROVIDER = "local"
_ENGINES: dict[str, LlamaEngine] = {}
_ENGINES_LOCK = threading.Lock()
DEFAULT_MAX_TOKENS = 512


# --- request -> server JSON ---------------------------------------------------------------------------------------


def to_server(request: Request) -> dict[str, Any]:
    """A canonical request as the JSON llama.cpp's chat endpoint takes.

    Temperature 0 and ``DEFAULT_MAX_TOKENS`` where the request is silent: answers repeat and cannot run away.

    Raises:
        UnsupportedFeatureError: images, tools, log-probabilities or other knobs this engine cannot honour.
    """
    config = request.config
    body: dict[str, Any] = {
        "messages": _messages(request),
        "temperature": 0.0 if config.temperature is None else config.temperature,
        "max_tokens": config.max_tokens or DEFAULT_MAX_TOKENS,
        "cache_prompt": True,
    }
    for key in ("top_p", "top_k", "seed", "frequency_penalty", "presence_penalty"):
        if getattr(config, key) is not None:
            body[key] = getattr(config, key)
    if config.stop:
        body["stop"] = list(config.stop)
    for knob in ("logprobs", "reasoning", "service_tier", "store", "probabilities", "extensions"):
        if getattr(config, knob):
            raise _unsupported(f"config.{knob}={getattr(config, knob)!r}")
    if request.tools:
        raise _unsupported("tools (give the model a response schema instead)")
    if config.response_format is not None:
        body.update(constraint(config.response_format, body["max_tokens"]))
    return body


def _messages(request: Request) -> list[dict[str, str]]:
    system = request.system if isinstance(request.system, str) else _text(request.system or ())
    turns = [{"role": "system", "content": system}] if system else []
    for message in request.messages:
        role = "system" if message.role == "developer" else message.role
        if role == "tool":
            raise _unsupported("tool messages")
        turns.append({"role": role, "content": _text(message.parts)})
    return turns


def _text(parts: Any) -> str:
    for part in parts:
        if part.type not in ("text", "thinking"):
            raise _unsupported(f"{part.type} parts")
    return "".join(part.text for part in parts if part.type == "text")


# --- server JSON -> answer ----------------------------------------------------------------------------------------


def _response(request: Request, reply: Mapping[str, Any]) -> Response:
    from dspy.lm15 import Message, Response, TextPart, ThinkingPart

    choice = reply["choices"][0]
    message = choice["message"]
    parts: list[Any] = []
    if message.get("reasoning_content"):
        parts.append(ThinkingPart(message["reasoning_content"]))
    parts.append(TextPart(message.get("content") or ""))
    return Response(
        id=reply.get("id"),
        model=request.model,
        message=Message.assistant(parts),
        finish_reason="length" if choice.get("finish_reason") == "length" else "stop",
        usage=_usage(reply),
        provider_data={"timings": reply.get("timings") or {}},
    )


def _usage(reply: Mapping[str, Any]) -> Any:
    from dspy.lm15 import Usage

    usage = reply.get("usage") or {}
    return Usage(
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
        cache_read_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
    )


def _failure(error: Mapping[str, Any]) -> Exception:
    from dspy.lm15 import ContextLengthError, InvalidRequestError, ServerError

    message = str(error.get("message") or error)
    if error.get("type") == "exceed_context_size_error" or "context size" in message.lower():
        return ContextLengthError(message, provider=_PROVIDER)
    if error.get("type") == "invalid_request_error":
        return InvalidRequestError(message, provider=_PROVIDER)
    return ServerError(message, provider=_PROVIDER)


def _unsupported(what: str) -> Exception:
    from dspy.lm15 import UnsupportedFeatureError

    return UnsupportedFeatureError(f"the local engine takes text and a response schema, not {what}", provider=_PROVIDER)


# --- engine -------------------------------------------------------------------------------------------------------


class LlamaEngine:
    """A GGUF model in this process. Get one with ``shared_engine(path)``; it loads at the first call.

    Args:
        path: the ``.gguf`` file.
        slots: requests computed together; more are queued. At least 1.
        context: tokens of prompt plus answer a request may have, at most what the model was trained for.
        threads: CPU threads; None = all cores.

    Thread-safe. ``calls`` counts the requests seen, failed ones too. Copies are the engine itself.

    Raises:
        ModelError: a missing or non-GGUF file, xllamacpp not installed.
        InputError: slots or context out of range.
    """

    supports_response_schema = True
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset(
        {
            "response_format",
            "temperature",
            "max_tokens",
            "top_p",
            "stop",
            "seed",
            "frequency_penalty",
            "presence_penalty",
        }
    )

    def __init__(
        self, path: str | os.PathLike[str], *, slots: int = 2, context: int = 8192, threads: int | None = None
    ) -> None:
        if slots < 1 or context < 256:
            raise InputError(f"slots={slots!r}, context={context!r}: expected slots >= 1 and context >= 256")
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelError("module 'xllamacpp': expected it installed; type: pip install 'persona-dspy[local]'")
        self.path = check_gguf(path).resolve()
        self.slots, self.context, self.threads = slots, context, threads or os.cpu_count() or 1
        self.calls = 0
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()
        self._server: Any = None

    def complete(self, request: Request) -> Response:
        """One answer; blocks until it is there. Raises lm15 errors."""
        body = self._begin(request)
        try:
            reply = self._loaded().handle_chat_completions(body)
        except (ValueError, RuntimeError) as error:
            raise _failure({"message": str(error)}) from error
        if "error" in reply:
            raise _failure(reply["error"])
        return _response(request, reply)

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer as lm15 events, as it is written. Closing the iterator stops the generation."""
        from dspy.lm15 import StreamDeltaEvent, StreamEndEvent, StreamStartEvent, TextDelta, ThinkingDelta

        body = {**self._begin(request), "stream": True, "stream_options": {"include_usage": True}}
        chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopped = threading.Event()
        server = self._loaded()

        def work() -> None:
            def take(chunk: Any) -> bool:  # must not raise: the binding would print and go on
                chunks.put(chunk)
                return stopped.is_set()

            try:
                server.handle_chat_completions(body, take)
            except (ValueError, RuntimeError) as error:
                chunks.put({"error": {"message": str(error)}})
            chunks.put(None)

        threading.Thread(target=work, daemon=True, name="persona-dspy-stream").start()
        last: dict[str, Any] = {}
        finish = "stop"
        try:
            yield StreamStartEvent(model=request.model)
            while (chunk := chunks.get()) is not None:
                if "error" in chunk:
                    raise _failure(chunk["error"])
                last = chunk if chunk.get("usage") else last
                for choice in chunk.get("choices", ()):
                    finish = choice.get("finish_reason") or finish
                    delta = choice.get("delta") or {}
                    if delta.get("reasoning_content"):
                        yield StreamDeltaEvent(ThinkingDelta(delta["reasoning_content"], part_index=1))
                    if delta.get("content"):
                        yield StreamDeltaEvent(TextDelta(delta["content"]))
            yield StreamEndEvent(
                finish_reason="length" if finish == "length" else "stop",
                usage=_usage(last),
                provider_data={"timings": last.get("timings") or {}},
            )
        finally:
            stopped.set()

    def close(self) -> None:
        """Forget the model and free its memory; the next call would load it again."""
        with self._load_lock:
            self._server = None
        with _ENGINES_LOCK:
            if _ENGINES.get(str(self.path)) is self:
                del _ENGINES[str(self.path)]

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs, JSON-safe."""
        return {
            "file": self.path.name,
            "path": str(self.path),
            "sha256": weights_hash(self.path),
            "slots": self.slots,
            "context": self.context,
        }

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> LlamaEngine:
        """The engine of the same weights: at the saved path, or by file name in ``models_dir()``."""
        path = Path(str(state["path"]))
        return shared_engine(path if path.is_file() else find_model(str(state["file"])))

    def __copy__(self) -> LlamaEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaEngine:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_engine, (str(self.path),)

    def _begin(self, request: Request) -> dict[str, Any]:
        from dspy.clients.engines.base import validate_request

        with self._lock:
            self.calls += 1
        validate_request(request)
        return to_server(request)

    def _loaded(self) -> Any:
        with self._load_lock:
            if self._server is None:
                self._server = _start(self)
            return self._server


class AsyncLlamaEngine:
    """The async side of a ``LlamaEngine``: the same model and slots, waited for in a thread."""

    def __init__(self, engine: LlamaEngine) -> None:
        self.engine = engine

    async def complete(self, request: Request) -> Response:
        return await asyncio.to_thread(self.engine.complete, request)

    async def stream(self, request: Request) -> AsyncIterator[Any]:
        events = self.engine.stream(request)
        try:
            while (event := await asyncio.to_thread(next, events, None)) is not None:
                yield event
        finally:
            events.close()  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        self.engine.close()

    def dump_state(self) -> dict[str, Any]:
        return self.engine.dump_state()

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> AsyncLlamaEngine:
        return cls(LlamaEngine.load_state(state))

    def __copy__(self) -> AsyncLlamaEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> AsyncLlamaEngine:
        return self


def _start(engine: LlamaEngine) -> Any:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(engine.path)
    params.n_parallel, params.kv_unified, params.cont_batching = engine.slots, True, True
    params.n_ctx = engine.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = engine.threads
    params.cache_prompt, params.cache_ram_mib = True, 512
    params.verbosity, params.warmup, params.ui, params.endpoint_slots = -1, False, False, False
    params.prefill_assistant = False
    # The binding always listens. A socket file nobody can reach, removed at once, plus a key nobody knows: no other
    # process on the machine gets at a user's prompts.
    params.api_keys = [secrets.token_hex(32)]
    folder = tempfile.mkdtemp(prefix="persona-dspy-")
    if os.name == "posix":
        params.hostnames = [os.path.join(folder, "s.sock")]
    try:
        return xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"model file {str(engine.path)!r}: llama.cpp could not load it ({error}); expected a complete chat model"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shared_engine(path: str | os.PathLike[str], **options: Any) -> LlamaEngine:
    """The one engine of this model file in this process; ``options`` (slots, context, threads) as ``LlamaEngine``.

    Raises:
        InputError: the engine exists with other options.
    """
    key = str(Path(path).expanduser().resolve())
    with _ENGINES_LOCK:
        engine = _ENGINES.get(key)
        if engine is None:
            engine = _ENGINES[key] = LlamaEngine(key, **options)
            return engine
    different = {name: value for name, value in options.items() if getattr(engine, name) != value}
    if different:
        raise InputError(
            f"shared_engine({key!r}): asked for {different!r}, but it runs with slots={engine.slots}, "
            f"context={engine.context}, threads={engine.threads}; close it first: shared_engine(path).close()"
        )
    return engine


def local_lm(
    path: str | os.PathLike[str] | None = None,
    *,
    temperature: float = 0.0,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    cache: bool = True,
    engine_options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dspy.LM:
    """A ``dspy.LM`` that runs in this process.

    Args:
        path: a ``.gguf`` file or a name of the catalogue; None = ``"smol"``. Downloads nothing.
        temperature, max_tokens, cache: as ``dspy.LM``.
        engine_options: slots, context, threads; see ``LlamaEngine``.
        kwargs: further ``dspy.LM`` arguments, e.g. ``seed``.

    Raises:
        ModelError, InputError: as ``find_model`` and ``LlamaEngine``.
    """
    import dspy

    file = find_model("smol" if path is None else path)
    engine = shared_engine(file, **dict(engine_options or {}))
    return dspy.LM(
        model_name(engine.path),
        temperature=temperature,
        max_tokens=max_tokens,
        cache=cache,
        engine=engine,
        async_engine=AsyncLlamaEngine(engine),
        **kwargs,
    )
