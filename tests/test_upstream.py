"""Requests over several pools: few share one, and every one is given back."""

import asyncio

import httpx
import pytest

from persona_dspy.service.upstream import _FULL, Upstream


def answer(request):
    if request.content == b"down":
        raise httpx.ConnectError("refused")

    async def body():
        yield request.content

    return httpx.Response(200, content=body())


def test_requests_in_flight_are_spread_and_given_back():
    async def ask():
        async with Upstream("http://upstream/v1", timeout=5, transport=httpx.MockTransport(answer)) as upstream:
            sent = await asyncio.gather(*(upstream.send(str(n).encode(), {}) for n in range(10)))
            assert upstream._in_flight[:4] == [_FULL, _FULL, 2, 0], "the first pools first: their connections are warm"
            bodies = [b"".join([chunk async for chunk in chunks]) for _, chunks in sent]
            assert bodies == [str(n).encode() for n in range(10)]
            with pytest.raises(httpx.ConnectError):
                await upstream.send(b"down", {})
            _, chunks = await upstream.send(b"left unread", {})
            await anext(chunks)
            await chunks.aclose()  # the caller went away
            assert not any(upstream._in_flight)

    asyncio.run(ask())
