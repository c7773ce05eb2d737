"""Translates between canonical lm15 values and the JSON of llama.cpp's chat endpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from persona_dspy.lm.local.schema import constraint

if TYPE_CHECKING:
    from dspy.lm15 import Request

__all__ = ["DEFAULT_MAX_TOKENS", "ending", "failure", "pieces", "to_server"]

DEFAULT_MAX_TOKENS = 1024
_PROVIDER = "local"


def to_server(request: Request) -> dict[str, Any]:
    """A canonical request as the JSON llama.cpp's chat endpoint takes.

    Temperature 0 and ``DEFAULT_MAX_TOKENS`` are the defaults, so that answers repeat and end.

    Raises:
        UnsupportedFeatureError: images, tools, log-probabilities or other options this engine does not have.
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
        body.update(constraint(config.response_format, max_tokens=body["max_tokens"]))
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


def pieces(chunks: Iterator[Mapping[str, Any]], last: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """``("text" | "thinking", piece)`` in order; fills ``last`` with finish, usage, timings and id."""
    for chunk in chunks:
        if "error" in chunk:
            raise failure(chunk["error"])
        last.update({key: chunk[key] for key in ("id", "usage", "timings") if chunk.get(key)})
        for choice in chunk.get("choices", ()):
            last["finish"] = choice.get("finish_reason") or last.get("finish")
            delta = choice.get("delta") or {}
            if delta.get("reasoning_content"):
                yield "thinking", delta["reasoning_content"]
            if delta.get("content"):
                yield "text", delta["content"]


def ending(last: Mapping[str, Any]) -> dict[str, Any]:
    """The last fields of an answer, from the ``last`` that ``pieces`` has filled.

    Raises:
        ServerError: the generation was stopped before its end.
    """
    from dspy.lm15 import Usage

    if not last.get("finish"):
        raise failure({"message": "the generation was stopped before its end"})
    usage = last.get("usage") or {}
    return {
        "finish_reason": "length" if last.get("finish") == "length" else "stop",
        "usage": Usage(
            input_tokens=usage.get("prompt_tokens"),
            output_tokens=usage.get("completion_tokens"),
            cache_read_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens"),
        ),
        "provider_data": {"timings": last.get("timings") or {}},
    }


def failure(error: Mapping[str, Any]) -> Exception:
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
