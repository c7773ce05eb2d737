"""Requests to the upstream over several small pools of connections.

A pool (httpcore's) looks at each pair of its connections whenever a request begins or ends: with 64 in flight over one
pool that was three quarters of the proxy's CPU time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any, Self

import httpx

__all__ = ["Upstream"]

_POOLS = 32
_FULL = 4  # requests in flight of a pool before the next one is used: few requests share warm connections


class Upstream:
    """Sends requests and passes answers on; to be entered before and left after use.

    Args:
        url: where chat completions are asked for.
        timeout: seconds that the upstream may stay silent.
        transport: how it is reached, where not by HTTP.
    """

    def __init__(self, url: str, *, timeout: float, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.url, self._transport = url, transport
        self._timeout = httpx.Timeout(timeout, connect=10.0)
        self._clients: list[httpx.AsyncClient] = []
        self._in_flight: list[int] = []
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        certificates = httpx.create_ssl_context()
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=2 * _FULL)
        how: dict[str, Any] = {"verify": certificates, "limits": limits, "timeout": self._timeout}
        for _ in range(_POOLS):
            client = httpx.AsyncClient(transport=self._transport, **how)
            self._clients.append(await self._stack.enter_async_context(client))
        self._in_flight = [0] * _POOLS
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def send(self, content: bytes, headers: dict[str, str]) -> tuple[httpx.Response, AsyncIterator[bytes]]:
        """The answer's head, and its body piece by piece as the upstream sends it.

        Raises:
            httpx.TimeoutException, httpx.TransportError: there is no answer.
        """
        counts = self._in_flight
        pool = next((n for n, count in enumerate(counts) if count < _FULL), counts.index(min(counts)))
        client = self._clients[pool]
        counts[pool] += 1
        try:
            asked = client.build_request("POST", self.url, content=content, headers=headers)
            answer = await client.send(asked, stream=True)
        except BaseException:
            counts[pool] -= 1
            raise
        return answer, self._chunks(answer, pool)

    async def _chunks(self, answer: httpx.Response, pool: int) -> AsyncIterator[bytes]:
        """The connection is closed when the caller goes away."""
        try:
            async for chunk in answer.aiter_raw():
                yield chunk
        finally:
            self._in_flight[pool] -= 1
            await answer.aclose()
