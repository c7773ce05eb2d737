"""An OpenAI-compatible server of fixed latency that costs next to nothing, since it shares the machine with what it
measures: one raw asyncio protocol, no JSON parser, answers found by searching bytes. Run in a process of its own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import re
import time
import zlib
from collections import deque
from multiprocessing.connection import Connection
from typing import Any

import dspy

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LABELS = re.compile(rb"Literal\[([^\]]+)\]")


def said(request: bytes) -> str:
    """Something of the right form, decided by the request's content alone."""
    if b"about_the_user" in request:
        name, text = "about_the_user", "Likes other tags."
    elif b"`tag`" in request and (found := _LABELS.search(request)):
        labels = found[1].decode().replace("'", "").split(", ")
        name, text = "tag", labels[zlib.crc32(request[-200:]) % len(labels)]
    else:
        name, text = "edits", "[]"
    if b"[[ ## completed ## ]]" in request:
        return f"[[ ## {name} ## ]]\n{text}\n\n[[ ## completed ## ]]"
    return json.dumps({name: [] if name == "edits" else text})


def reply(request: bytes) -> bytes:
    usage = b'"usage":{"prompt_tokens":%d,"completion_tokens":10,"total_tokens":%d}' % (len(request) // 4, 10)
    body = (
        b'{"id":"fake","object":"chat.completion","created":0,"model":"gpt-4o-mini","choices":[{"index":0,"finish_reason":'
        b'"stop","message":{"role":"assistant","content":' + json.dumps(said(request)).encode() + b"}}]," + usage + b"}"
    )
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    return head + body


_REFUSED = b'{"error":{"message":"rate limit reached","code":"429"}}'
_REFUSAL = (
    b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_REFUSED), _REFUSED)
)


class _Exchange(asyncio.Protocol):
    answered = flying = peak = refused = 0
    latency = 0.0
    limit = 0  # calls in any second; 0 = none
    begun: deque[float] = deque()

    def connection_made(self, transport: Any) -> None:
        self.transport, self.got = transport, b""

    def data_received(self, data: bytes) -> None:
        self.got += data
        while (end := self.got.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self.got, 0, end + 2)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self.got) < whole:
                return
            request, self.got = self.got[end + 4 : whole], self.got[whole:]
            if _Exchange.limit and self.over_limit():
                _Exchange.refused += 1
                self.transport.write(_REFUSAL)
                continue
            _Exchange.flying += 1
            _Exchange.peak = max(_Exchange.peak, _Exchange.flying)
            if self.latency:
                asyncio.get_running_loop().call_later(self.latency, self.answer, request)
            else:
                self.answer(request)

    def over_limit(self) -> bool:
        now, begun = time.monotonic(), _Exchange.begun
        while begun and begun[0] <= now - 1.0:
            begun.popleft()
        if len(begun) >= _Exchange.limit:
            return True
        begun.append(now)
        return False

    def answer(self, request: bytes) -> None:
        _Exchange.flying -= 1
        _Exchange.answered += 1
        if not self.transport.is_closing():
            self.transport.write(reply(request))


def serve(pipe: Connection, latency: float, limit: int) -> None:
    async def work() -> None:
        _Exchange.latency, _Exchange.limit = latency, limit
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        server = await loop.create_server(_Exchange, "127.0.0.1", 0, backlog=1024)
        pipe.send(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")

        def asked() -> None:
            try:
                asked_for = pipe.recv()
                if asked_for == "count":
                    pipe.send((_Exchange.answered, _Exchange.peak))
                    return
                if asked_for == "refused":
                    pipe.send(_Exchange.refused)
                    return
            except EOFError:
                pass
            ended.set()

        loop.add_reader(pipe.fileno(), asked)
        await ended.wait()

    asyncio.run(work())


class Server:
    """The server's process, a context manager.

    Args:
        latency: seconds from request to answer; requests overlap.
        limit: calls in any second; the others get a 429 with ``Retry-After: 1``. 0 = no limit.
    """

    def __init__(self, latency: float, limit: int = 0) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, latency, limit), daemon=True)
        self.process.start()
        theirs.close()
        self.url = self.pipe.recv()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.pipe.send("stop")
        self.process.join(10)

    def count(self) -> tuple[int, int]:
        """(answered so far, most in flight at once)."""
        self.pipe.send("count")
        return self.pipe.recv()

    def refused(self) -> int:
        """Calls that met the limit."""
        self.pipe.send("refused")
        return self.pipe.recv()

    def lm(self, model: str = "openai/gpt-4o-mini") -> dspy.LM:
        """An LM there; by default of a model with a known price: DSPy searches its list for any other, at each call."""
        return dspy.LM(model, api_base=self.url, api_key="none", engine="lm15", temperature=0.0, cache=False)
