"""llama.cpp inside this process, behind ``dspy.LM``; DSPy does caching and retries.

``LlamaEngine`` follows ``dspy.clients.engines.base``: one attempt per call, canonical lm15 values in and out, lm15
errors. One engine per model file per process; its slots batch whoever calls at the same time, and a prompt that starts
like an earlier one in the same slot is not computed again.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_dspy.core import temporary_folder
from persona_dspy.errors import InputError, ModelError, to_install
from persona_dspy.lm.local.catalogue import DEFAULT_MODEL, find_model
from persona_dspy.lm.local.control_tokens import control_tokens, without_control
from persona_dspy.lm.local.files import check_gguf, model_name, weights_hash
from persona_dspy.lm.local.threads import free_cores
from persona_dspy.lm.local.wire import DEFAULT_MAX_TOKENS, ending, pieces, to_server

if TYPE_CHECKING:
    import dspy
    from dspy.lm15 import Request, Response

__all__ = ["AsyncLlamaEngine", "LlamaEngine", "local_lm", "shared_engine"]

_ENGINES: dict[str, LlamaEngine] = {}
_ENGINES_LOCK = threading.Lock()
_STREAMS: set[tuple[threading.Thread, threading.Event]] = set()
_SERVERS_BEFORE_FORK: list[Any] = []


class LlamaEngine:
    """A GGUF model in this process. Get one with ``shared_engine(path)``; it loads at the first call.

    Args:
        path: the ``.gguf`` file.
        slots: requests computed together, at least 1; more are queued.
        context: tokens of prompt plus answer one request may have, at most what the model was trained for; memory is
            taken for ``slots * context``.
        threads: CPU threads; None = as many as there are free cores when it loads.

    No text of a message is a control token: of those in the model's own vocabulary each is broken up by a space.

    Thread-safe. ``calls`` counts the requests seen, failed ones too. Copies are the engine itself. At temperature 0 a
    request gets the same answer whatever ran before it; beside others too with the 135M model, while larger ones can
    flip a near-tie there: ``slots=1`` where that matters (measured with 0.5B and 1.5B).

    Raises:
        ModelError: a missing or non-GGUF file, xllamacpp not installed.
        InputError: slots or context out of range.
    """

    supports_response_schema = True
    small = True  # see lm.is_small
    supports_function_calling = False
    supports_reasoning = False
    supported_params = frozenset(
        {"response_format", "temperature", "max_tokens", "top_p", "top_k", "stop", "seed"}
        | {"frequency_penalty", "presence_penalty"}
    )

    def __init__(
        self, path: str | os.PathLike[str], *, slots: int = 2, context: int = 8192, threads: int | None = None
    ) -> None:
        if slots < 1 or context < 256:
            raise InputError(f"slots={slots!r}, context={context!r}: expected slots >= 1 and context >= 256")
        if importlib.util.find_spec("xllamacpp") is None:
            raise ModelError(f"module 'xllamacpp': expected it installed; {to_install('local')}")
        self.path = check_gguf(path).resolve()
        self.slots, self.context, self.threads = slots, context, threads
        self.calls = 0
        self._recent: OrderedDict[int, None] = OrderedDict()
        self._lock = threading.Lock()
        self._load_lock = threading.Lock()
        self._server: Any = None
        self._pid = 0
        self._without_control = without_control(frozenset())

    def complete(self, request: Request) -> Response:
        """One answer; waits until it is there, Ctrl-C stops it. Raises lm15 errors."""
        from dspy.lm15 import Message, Response, TextPart, ThinkingPart

        last: dict[str, Any] = {}
        written: dict[str, list[str]] = {"thinking": [], "text": []}
        for kind, piece in pieces(self._chunks(request), last):
            written[kind].append(piece)
        parts: list[Any] = [ThinkingPart("".join(written["thinking"]))] if written["thinking"] else []
        parts.append(TextPart("".join(written["text"])))
        return Response(id=last.get("id"), model=request.model, message=Message.assistant(parts), **ending(last))

    def stream(self, request: Request) -> Iterator[Any]:
        """The same answer as lm15 events, as it is written. Closing the iterator stops the generation."""
        from dspy.lm15 import StreamDeltaEvent, StreamEndEvent, StreamStartEvent, TextDelta, ThinkingDelta

        last: dict[str, Any] = {}
        text_index = 0
        yield StreamStartEvent(model=request.model)
        for kind, piece in pieces(self._chunks(request), last):
            if kind == "thinking":
                text_index = 1
                yield StreamDeltaEvent(ThinkingDelta(piece, part_index=0))
            else:
                yield StreamDeltaEvent(TextDelta(piece, part_index=text_index))
        yield StreamEndEvent(**ending(last))

    def load(self) -> None:
        """Load the model now rather than at the first call; no request is made.

        Raises:
            ModelError: llama.cpp cannot load the file.
        """
        self._loaded()

    def close(self) -> None:
        """Free the model's memory once the requests in flight are done; the next call loads it again."""
        with self._load_lock:
            self._server = None

    def dump_state(self) -> dict[str, Any]:
        """What ``load_state`` needs, JSON-safe."""
        file = {"file": self.path.name, "path": str(self.path), "sha256": weights_hash(self.path)}
        return {**file, "slots": self.slots, "context": self.context}

    @classmethod
    def load_state(cls, state: Mapping[str, Any]) -> LlamaEngine:
        """This process's engine of the same weights: at the saved path, else by file name in ``models_dir()``.

        Raises:
            ModelError: other weights are there now.
        """
        path = Path(state["path"]) if Path(state["path"]).is_file() else find_model(str(state["file"]))
        if weights_hash(path) != state["sha256"]:
            raise ModelError(
                f"model file {str(path)!r}: sha256 {weights_hash(path)[:12]!r}, expected "
                f"{str(state['sha256'])[:12]!r} as saved; bring back that file or set the LM anew with local_lm(...)"
            )
        with _ENGINES_LOCK:
            running = _ENGINES.get(str(path.resolve()))
        return running or shared_engine(path, slots=int(state["slots"]), context=int(state["context"]))

    def __copy__(self) -> LlamaEngine:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LlamaEngine:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return LlamaEngine.load_state, (self.dump_state(),)

    def _chunks(self, request: Request) -> Generator[Mapping[str, Any]]:
        """llama.cpp's streamed chunks. The work runs in a thread of its own so that the waiting caller can be
        interrupted; leaving this generator ends the work at the next token."""
        from dspy.clients.engines.base import validate_request

        with self._lock:
            self.calls += 1
        validate_request(request)
        body: dict[str, Any] = {**to_server(request), "stream": True, "stream_options": {"include_usage": True}}
        body["cache_prompt"] = not self._repeats(body)
        server, plain = self._loaded(), self._without_control
        body["messages"] = [{**message, "content": plain(message["content"])} for message in body["messages"]]
        chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stopped = threading.Event()

        def take(chunk: Any) -> bool:  # must not raise: the binding prints the error and goes on
            chunks.put(chunk)
            return stopped.is_set()

        def work() -> None:
            try:
                server.handle_chat_completions(body, take)
            except (ValueError, RuntimeError) as error:
                chunks.put({"error": {"message": str(error)}})
            finally:
                chunks.put(None)
                _STREAMS.discard(entry)

        thread = threading.Thread(target=work, daemon=True, name="persona-dspy-llama")
        entry = (thread, stopped)
        _STREAMS.add(entry)
        thread.start()
        try:
            while (chunk := chunks.get()) is not None:
                yield chunk
        finally:
            stopped.set()

    def _repeats(self, body: Mapping[str, Any]) -> bool:
        """A greedy repeat is computed in full: from a whole cached prompt its last token would be computed alone, which
        rounds differently and can flip a near-tie."""
        key = hash(str(body["messages"]))
        with self._lock:
            seen = key in self._recent
            self._recent[key] = None
            self._recent.move_to_end(key)
            if len(self._recent) > 4096:
                self._recent.popitem(last=False)
        return seen and body["temperature"] == 0

    def _loaded(self) -> Any:
        with self._load_lock:
            if self._server is not None and self._pid != os.getpid():
                _SERVERS_BEFORE_FORK.append(self._server)  # its threads are gone: destroying it would hang
                self._server = None
            if self._server is None:
                server = _start(self)
                self._without_control = without_control(control_tokens(self.path))
                self._server, self._pid = server, os.getpid()
            return self._server


class AsyncLlamaEngine:
    """A ``LlamaEngine`` for asyncio: the same model and slots; a thread waits for the answer."""

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
    import xllamacpp as binding

    xllamacpp: Any = binding  # a compiled module without type information

    params = xllamacpp.CommonParams()
    params.model.path = str(engine.path)
    # Not unified, no flash attention, no repacking: sums are then in the same order whatever else is in flight or
    # cached, for about a tenth of the prompt speed.
    params.n_parallel, params.kv_unified, params.no_extra_bufts = engine.slots, False, True
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.n_ctx = engine.slots * engine.context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = engine.threads or free_cores()
    params.cpuparams.poll = params.cpuparams_batch.poll = 0
    params.cache_prompt, params.cache_ram_mib, params.prefill_assistant = True, 512, False
    params.verbosity, params.warmup, params.ui, params.endpoint_slots = -1, False, False, False
    # The binding always opens a server. A private socket file, removed at once, and a random key keep other processes
    # from users' prompts.
    params.api_keys = [secrets.token_hex(32)]
    folder = temporary_folder()
    if os.name == "posix":
        params.hostnames = [str(folder.path / "s.sock")]
    try:
        server = xllamacpp.Server(params)
    except (RuntimeError, ValueError) as error:
        raise ModelError(
            f"model file {str(engine.path)!r}: llama.cpp could not load it ({error}); expected a complete chat model"
        ) from error
    finally:
        folder.remove()
    atexit.unregister(_shut_down)
    atexit.register(_shut_down)
    return server


def _shut_down() -> None:
    """At exit: stops running generations, then frees the models, while Python can still wait for their threads."""
    deadline = time.monotonic() + 5
    for thread, stopped in list(_STREAMS):
        stopped.set()
        thread.join(max(0.0, deadline - time.monotonic()))
    for engine in list(_ENGINES.values()):
        engine.close()


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
            f"shared_engine({key!r}): asked for {different!r}, but this process has it with slots={engine.slots}, "
            f"context={engine.context}, threads={engine.threads}; give these, or ask for yours first"
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
    """A ``dspy.LM`` that runs in this process; raises as ``find_model`` and ``LlamaEngine`` do.

    Args:
        path: a ``.gguf`` file or a name of the catalogue; None = ``"smol"``. Downloads nothing.
        temperature, max_tokens, cache: as ``dspy.LM``. Constrained free text ends before ``max_tokens``: it gets as
            many characters as ``max_tokens``.
        engine_options: slots, context, threads; see ``LlamaEngine``.
        kwargs: further ``dspy.LM`` arguments, e.g. ``seed``.

    Example:
        >>> local_lm("smol").kwargs["temperature"]
        0.0
    """
    import dspy

    engine = shared_engine(find_model(DEFAULT_MODEL if path is None else path), **dict(engine_options or {}))
    return dspy.LM(
        model_name(engine.path),
        temperature=temperature,
        max_tokens=max_tokens,
        cache=cache,
        engine=engine,
        async_engine=AsyncLlamaEngine(engine),
        **kwargs,
    )
