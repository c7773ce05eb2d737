"""A loopback OpenAI-compatible HTTP server over fake handlers, with faults on request.

It listens on 127.0.0.1 only, counts what it was asked and what
it answered, and fails the way providers do. For tests and benchmarks of everything that talks HTTP to an LM.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self

from persona_dspy.testing.fake_lm import Handler, Prompt

__all__ = ["FakeServer", "Fault", "request_key"]

Fault = Literal["429", "500", "timeout", "disconnect", "truncated", "unparsable", "cut-json"]
"""``429`` with Retry-After, ``500``, ``timeout`` = no answer for ``stall`` seconds, ``disconnect`` = the connection is
closed unanswered, ``truncated`` = half the answer with finish_reason "length", ``unparsable`` = an answer that is no
form of the fields asked for, ``cut-json`` = the HTTP body ends early."""

_HEAD = "HTTP/1.1 {} \r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n"


def request_key(body: dict[str, Any]) -> str:
    """A digest of what decides an answer: model, messages and sampling options."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


class FakeServer:
    """``POST .../chat/completions`` on 127.0.0.1, in a thread of its own; a context manager.

    Args:
        handlers: as ``FakeLM``'s; or one ``answer(body) -> text`` function as ``answer``.
        latency: seconds from request to answer; requests overlap.
        fault: ``fault(body, nth) -> Fault | None`` decides for each request; ``nth`` counts requests from 1.
        stall: seconds a ``timeout`` fault stays silent.
        retry_after: seconds announced with a 429; None = not announced.
        refusal_headers: sent with a 429, such as ``{"x-ratelimit-remaining-requests": "0"}``.
        port: 0 = a free one.

    Attributes:
        asked: requests that came in, by ``request_key``; ``answered``: those that got a usable answer sent.
        flying, peak: requests in flight now, and the most there ever were.

    Example:
        >>> FakeServer(answer=lambda body: "hello").url is None
        True
    """

    def __init__(
        self,
        *handlers: Handler,
        answer: Callable[[dict[str, Any]], str] | None = None,
        latency: float = 0.0,
        fault: Callable[[dict[str, Any], int], Fault | None] | None = None,
        stall: float = 30.0,
        retry_after: float | None = 0.1,
        refusal_headers: Mapping[str, str] | None = None,
        port: int = 0,
    ) -> None:
        self.handlers, self.answer, self.latency, self.fault = handlers, answer, latency, fault
        self.stall, self.port = stall, port
        self.refusal_headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        self.refusal_headers |= refusal_headers or {}
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.flying = self.peak = 0
        self.url: str | None = None
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True, name="fake-server")
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the fake server did not start within 10 seconds")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread is not None:
            self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, "127.0.0.1", self.port)
        self.port = server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._ready.set()
        await self._stop.wait()
        server.close()
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await reader.readuntil(b"\r\n\r\n")).strip():
                length = next(int(x[15:]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
                body = json.loads(await reader.readexactly(length))
                if not await self._exchange(body, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError, StopIteration):
            pass  # the client went away, or the server is closing
        finally:
            writer.close()

    async def _exchange(self, body: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        """One request; False where the connection is not to be used again."""
        key = request_key(body)
        self.asked[key] += 1
        self.flying += 1
        self.peak = max(self.peak, self.flying)
        try:
            fault = self.fault(body, self.asked.total()) if self.fault else None
            if fault == "disconnect":
                return False
            await asyncio.sleep(self.stall if fault == "timeout" else self.latency)
            if fault in ("429", "500"):
                writer.write(_refusal(fault, self.refusal_headers))
                await writer.drain()
                return True
            text = "%%% no such form %%%" if fault == "unparsable" else self._text(body)
            if text is None:
                writer.write(_refusal("500", {}))
                await writer.drain()
                return True
            reply = _completion(body, text[: len(text) // 2] if fault == "truncated" else text, fault == "truncated")
            if fault == "cut-json":
                writer.write(reply[:-20])
                await writer.drain()
                return False
            self.answered[key] += 1
            writer.write(reply)
            await writer.drain()
            return True
        finally:
            self.flying -= 1

    def _text(self, body: dict[str, Any]) -> str | None:
        if self.answer is not None:
            return self.answer(body)
        from dspy.lm15 import request_from_openai_chat

        prompt = Prompt.of(request_from_openai_chat(body))
        said = (handler(prompt) for handler in self.handlers)
        found = next((a for a in said if a is not None), None)
        return None if found is None else prompt.render(found)


def _refusal(fault: str, headers: Mapping[str, str]) -> bytes:
    body = json.dumps({"error": {"message": "as asked: fail", "type": "server_error", "code": fault}}).encode()
    extra = "".join(f"{name}: {value}\r\n" for name, value in headers.items()) if fault == "429" else ""
    status = "429 Too Many Requests" if fault == "429" else "500 Internal Server Error"
    return _HEAD.format(status, len(body), extra).encode() + body


def _completion(body: dict[str, Any], text: str, cut: bool) -> bytes:
    prompt: Sequence[dict[str, Any]] = body.get("messages") or ()
    seen = sum(len(str(m.get("content"))) for m in prompt) // 4
    reply = {
        "id": "fake",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model"),
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length" if cut else "stop",
            }
        ],
        "usage": {
            "prompt_tokens": seen,
            "completion_tokens": len(text) // 4,
            "total_tokens": seen + len(text) // 4,
        },
    }
    raw = json.dumps(reply).encode()
    return _HEAD.format("200 OK", len(raw), "").encode() + raw
