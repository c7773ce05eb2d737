"""An OpenAI-compatible proxy that puts each user's persona into the system message, for apps in any language."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from persona_dspy.core import SIGNAL_FIELDS, scrubbed
from persona_dspy.errors import ForgettingIncomplete, InputError, PersonaError, StoreError, UnknownUser, UserForgotten
from persona_dspy.service.chat import check_plain_json, header_text, parse_body, query_of, user_of, with_persona
from persona_dspy.service.metrics import Metrics
from persona_dspy.service.personas import Personas
from persona_dspy.service.tokens import allowed, checked_token
from persona_dspy.service.upstream import Upstream
from persona_dspy.store import checked_key

__all__ = ["ProxyOptions", "proxy_app"]

_log = logging.getLogger(__name__)

# of a request to the upstream; nothing else of the caller's headers leaves this process
_FORWARDED = ("authorization", "api-key", "x-api-key", "accept", "user-agent", "openai-organization", "openai-project")
# of an answer to the caller; its length is this server's own, its encoding that of a body that is passed on as it came
_RETURNED = (
    "content-type",
    "content-encoding",
    "retry-after",
    "x-request-id",
    "openai-processing-ms",
    "openai-version",
)
_RETURNED_PREFIX = "x-ratelimit-"
_MOST_RECALLED = 16
_LONG = 65_536  # bytes of a body that is parsed outside the event loop
_SAID = 1.0  # seconds from one word on how this worker is to the next
_UNKNOWN = "nothing is kept of them: expected an id as it was given (case, accents and blanks count)"
_FAILED: dict[type[Exception], tuple[int, str]] = {
    ForgettingIncomplete: (
        503, "the user is not wholly forgotten, for a place failed (the server's log says which): expected all to be "
        "writable; ask again once it is mended",
    ),
    StoreError: (503, "the store failed (the server's log says why): nothing was kept; expected to be asked later"),
    PersonaError: (500, "the service failed; its log says why"),
}  # fmt: skip
_SIGNAL = frozenset(SIGNAL_FIELDS) - {"trace"}
_FEEDBACK = {"user", "query", "response", "id", "time", "metadata", *_SIGNAL}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyOptions:
    """How the proxy works.

    Args:
        upstream: base URL of an OpenAI-compatible API, such as ``https://api.openai.com/v1``.
        max_bytes: the largest body that is read.
        timeout: seconds that the upstream may stay silent.
        shutdown: seconds that alignments under way get when the server stops.
    """

    upstream: str
    max_bytes: int = 4 * 1024 * 1024
    timeout: float = 600.0
    shutdown: float = 30.0

    def __post_init__(self) -> None:
        url = httpx.URL(self.upstream)
        if url.scheme not in ("http", "https") or not url.host:
            raise InputError(f"upstream {self.upstream!r}: expected a URL such as https://api.openai.com/v1")

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def proxy_app(
    personas: Personas,
    token: str | None,
    options: ProxyOptions,
    *,
    metrics: Metrics | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
) -> Starlette:
    """The proxy as an ASGI application; it closes ``personas`` when the server stops.

    Args:
        token: the application's own; see ``user_token`` for one a user.
        metrics: where alignments are counted too, by ``ServiceOptions(on_done=metrics.count_alignment)``.
        transport: how the upstream is reached, where not by HTTP.

    Raises:
        InputError: a token that is no secret.
    """
    proxy = _Proxy(personas, checked_token(token), options, metrics or Metrics(), transport)
    routes = [
        Route("/v1/chat/completions", proxy.counted("chat", proxy.chat), methods=["POST"]),
        Route("/feedback", proxy.counted("feedback", proxy.feedback), methods=["POST"]),
        Route("/users/{user_id:path}", proxy.counted("user", proxy.user), methods=["GET", "DELETE"]),
        Route("/health", proxy.health),
        Route("/metrics", proxy.counted("metrics", proxy.metrics_page)),
    ]
    handlers: Any = {HTTPException: _refused, Exception: _failed}
    return Starlette(routes=routes, lifespan=proxy.lifespan, exception_handlers=handlers)


class _Proxy:
    def __init__(
        self,
        personas: Personas,
        token: str,
        options: ProxyOptions,
        metrics: Metrics,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.personas, self._token, self.options, self.metrics = personas, token, options, metrics
        url = options.upstream.rstrip("/") + "/chat/completions"
        self._upstream = Upstream(url, timeout=options.timeout, transport=transport)

    @asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncGenerator[None]:
        self.personas.start()  # what a killed process left waits for no request
        async with self._upstream:
            telling = asyncio.create_task(self._tell_state())
            yield
            telling.cancel()
            with suppress(asyncio.CancelledError):
                await telling
        await self.personas.aclose(timeout=self.options.shutdown)

    async def _tell_state(self) -> None:
        """Any worker may be asked for the metrics of all."""
        while True:
            with suppress(OSError):  # of the queue's disk
                self.metrics.set_state(await asyncio.to_thread(self.personas.status))
            await asyncio.sleep(_SAID)

    def counted(self, route: str, endpoint: Any) -> Any:
        """The endpoint; what it raises on purpose becomes an answer, and each answer is counted."""

        async def answer(request: Request) -> Response:
            try:
                response = await endpoint(request)
            except HTTPException as refusal:
                response = _error(refusal.status_code, refusal.detail)
            except ClientDisconnect:
                response = _error(400, "the connection was closed before the body ended")
            except UnknownUser:  # its own message names the store's path
                response = _error(404, f"user {request.path_params['user_id']!r}: {_UNKNOWN}")
            except InputError as refusal:
                response = _error(400, str(refusal))
            except UserForgotten:
                response = _error(409, "the user was forgotten while this was under way: nothing was kept")
            except PersonaError as failure:  # its message names the store, or files: for the log, not for a user
                _log.error("%s: %s", route, scrubbed(str(failure)))
                response = _error(*_FAILED[next(kind for kind in _FAILED if isinstance(failure, kind))])
            self.metrics.requests.labels(route, str(response.status_code)).inc()
            return response

        return answer

    async def chat(self, request: Request) -> Response:
        """A chat completion under the user's persona; the upstream's answer is passed on as it comes."""
        body, user_id = await self._body_of_user(request)
        recalled = _recalled(request.headers.get("x-persona-recall"))
        body, version = await asyncio.to_thread(self._personal, body, user_id, recalled)
        return await self._passed_on(request, body, version)

    async def feedback(self, request: Request) -> Response:
        """What the user really answered, made of a draft, or said of it."""
        body, user_id = await self._body_of_user(request)
        unknown = sorted(set(body) - _FEEDBACK)
        if unknown:
            named = [name[:40] for name in unknown[:5]]
            more = f" and {len(unknown) - 5:,} more" if len(unknown) > 5 else ""
            raise InputError(f"feedback {named!r}{more}: expected only {sorted(_FEEDBACK)}; nothing was kept")
        check_plain_json(body)
        signal = {name: body[name] for name in _SIGNAL if body.get(name) is not None}
        texts = {name: body.get(name) for name in ("query", "response")}
        if signal:
            texts["response"] = texts["response"] or ""
            if not signal.get("draft") and signal.keys() & {"comment", "thumbs", "rating"}:
                raise InputError(
                    f"feedback {sorted(signal)!r}: expected the draft it is about too: "
                    '{"draft": "what we answered", "comment": "too long"}; nothing was kept'
                )
        for name, text in texts.items():
            if not isinstance(text, str):
                raise InputError(f"{name} {text!r}: expected the text of what was asked, or of the user's own answer")
        options = {name: body[name] for name in ("id", "time", "metadata") if body.get(name) is not None}
        if not isinstance(options.get("metadata", {}), dict) or not isinstance(options.get("id", ""), str):
            raise InputError("feedback: expected metadata as an object and id as a string; nothing was kept")
        if signal and options.get("id"):  # what else is said of that draft adds up
            signal["trace"] = options["id"]
        kept = await self.personas.aobserve(
            user_id, str(texts["query"]), str(texts["response"]), signal=signal, **options
        )
        return JSONResponse({"id": kept.id, "user": user_id}, status_code=202)

    async def user(self, request: Request) -> Response:
        """GET: everything kept of the user. DELETE: all of it removed, and what that was."""
        user_id = checked_key(request.path_params["user_id"], "user")
        self._check_token(request, user_id)
        if request.method == "DELETE":
            erasures = await self.personas.aforget(user_id)
            return JSONResponse({"user": user_id, "removed": [erasure.to_dict() for erasure in erasures]})
        kept = await asyncio.to_thread(lambda: _any_json(self.personas.export(user_id)))
        return Response(kept, media_type="application/json")

    async def health(self, request: Request) -> Response:
        """Whether the server answers, and whether the store does; for anybody, so nothing else."""
        return JSONResponse({"status": "degraded" if self.personas.status()["store"] else "ok"})

    async def metrics_page(self, request: Request) -> Response:
        self._check_token(request, None)
        text = await asyncio.to_thread(lambda: self.metrics.text(self.personas.status()))
        return Response(text, media_type="text/plain; version=0.0.4")

    async def _body_of_user(self, request: Request) -> tuple[dict[str, Any], str]:
        """Refuses before the body is read where no token could be right, and reads no more than the limit."""
        if _only(request, "x-persona-token") is None:
            self._check_token(request, None)
        content = await self._content(request)
        body = await asyncio.to_thread(parse_body, content) if len(content) > _LONG else parse_body(content)
        user_id = checked_key(user_of(body, header_text(_only(request, "x-persona-user"))), "user")
        self._check_token(request, user_id)
        return body, user_id

    def _check_token(self, request: Request, user_id: str | None) -> None:
        if not allowed(_only(request, "x-persona-token"), self._token, user_id):
            raise HTTPException(401, "X-Persona-Token: expected the application's token, or this user's own")

    async def _content(self, request: Request) -> bytes:
        content = bytearray()
        async for chunk in request.stream():
            content += chunk
            if len(content) > self.options.max_bytes:
                raise HTTPException(413, f"body: expected at most {self.options.max_bytes:,} bytes")
        return bytes(content)

    def _personal(self, body: dict[str, Any], user_id: str, recalled: int) -> tuple[dict[str, Any], int]:
        query = query_of(body)
        program = self.personas.for_user(user_id)
        persona = program.persona.value
        episodes = program.memory.recall(query, recalled) if recalled and query.strip() else []
        prompt = persona.render()
        if prompt:
            self.metrics.personalized.inc()
        return with_persona(body, prompt, episodes), persona.version

    async def _passed_on(self, request: Request, body: dict[str, Any], version: int) -> Response:
        headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
        headers |= {"content-type": "application/json", "accept-encoding": "identity"}
        try:
            content = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
        except RecursionError:
            raise InputError("body: values in too many lists or objects: expected fewer") from None
        began = time.monotonic()
        try:
            answer, chunks = await self._upstream.send(content, headers)
        except httpx.TimeoutException:
            raise HTTPException(504, f"the upstream did not answer in {self.options.timeout:g} s") from None
        except httpx.TransportError as failure:
            raise HTTPException(502, f"the upstream cannot be reached: {type(failure).__name__}") from None
        self.metrics.first_byte.observe(time.monotonic() - began)
        returned = {k: v for k, v in answer.headers.items() if k in _RETURNED or k.startswith(_RETURNED_PREFIX)}
        returned["x-persona-version"] = str(version)
        return StreamingResponse(chunks, status_code=answer.status_code, headers=returned)


def _only(request: Request, name: str) -> str | None:
    """A header that may come once: of two, somebody on the way may have added one."""
    values = request.headers.getlist(name)
    if len(values) > 1:
        raise InputError(f"{name}: given {len(values)} times: expected it once")
    return values[0] if values else None


def _any_json(value: Any) -> bytes:
    """JSON also of what JSON has no form for: NaN and infinite numbers as text, lone surrogates escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if "NaN" in text or "Infinity" in text:
        plain = json.loads(text, parse_constant=str)
        text = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


def _recalled(header: str | None) -> int:
    if header is None:
        return 0
    if not (header.isascii() and header.isdigit() and len(header) < 4 and int(header) <= _MOST_RECALLED):
        raise InputError(f"X-Persona-Recall {header[:40]!r}: expected how many past turns, 0 to {_MOST_RECALLED}")
    return int(header)


def _error(status: int, message: str) -> JSONResponse:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse(
        {"error": {"message": scrubbed(message), "type": kind, "code": str(status)}}, status_code=status
    )


async def _failed(request: Request, failure: Exception) -> Response:
    """What nobody raised on purpose; the server logs it."""
    return _error(*_FAILED[PersonaError])


async def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, HTTPException)
    return _error(refusal.status_code, refusal.detail)
