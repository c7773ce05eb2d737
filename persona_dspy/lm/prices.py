"""What calls to a model cost by the prices DSPy knows, and an estimate of work before any of it is paid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from persona_dspy.core import Usage

__all__ = ["Estimate", "known_price"]


def known_price(lm: Any, input_tokens: float, output_tokens: float) -> float | None:
    """US dollars for so many tokens of ordinary calls to ``lm``, or None where DSPy knows no price.

    An LM with an engine object (a model in this process, a fake) has none.

    Example:
        >>> import dspy
        >>> round(known_price(dspy.LM("openai/gpt-4o-mini"), 1_000_000, 0), 2)
        0.15
    """
    if not isinstance(getattr(lm, "engine", None), str):
        return None
    from dspy.clients.capabilities import resolve
    from dspy.clients.costs import estimate_cost
    from dspy.lm15 import Message, Response, TextPart
    from dspy.lm15 import Usage as WireUsage

    route: Any = resolve(lm)
    usage = WireUsage(input_tokens=1000, output_tokens=1000)  # a short call: no price for long contexts

    def rate(usage: Any) -> float | None:
        empty = Response(
            id=None,
            model=route.model,
            message=Message.assistant([TextPart("")]),
            finish_reason="stop",
            usage=usage,
        )
        usd, _ = estimate_cost(empty, provider=route.provider, requested_model=route.model)
        return usd

    whole = rate(usage)
    inputs = rate(WireUsage(input_tokens=1000, output_tokens=0))
    if whole is None or inputs is None:
        return None
    return inputs / 1000 * input_tokens + (whole - inputs) / 1000 * output_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What work would take: sums over all of it, on the high side. ``usd`` is None where the price is not known.

    ``parts``: the same by name (system or step).

    Example:
        >>> Estimate(calls=120, input_tokens=60_000, output_tokens=6_000).seconds(calls_per_second=4)
        30.0
    """

    calls: float
    input_tokens: float
    output_tokens: float
    usd: float | None = None
    parts: tuple[tuple[str, Usage], ...] = ()

    def seconds(self, calls_per_second: float) -> float:
        """How long it takes at so many calls a second, all workers together."""
        return self.calls / calls_per_second

    @classmethod
    def of(cls, parts: list[tuple[str, Usage]], lm: Any) -> Estimate:
        """The sum of the parts, priced for ``lm``."""
        total = sum((usage for _, usage in parts), Usage())
        return cls(
            calls=total.calls,
            input_tokens=total.input_tokens,
            output_tokens=total.output_tokens,
            usd=known_price(lm, total.input_tokens, total.output_tokens),
            parts=tuple(parts),
        )
