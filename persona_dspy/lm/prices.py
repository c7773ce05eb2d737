"""What calls to a model cost by the prices DSPy knows, and an estimate of work before any of it is paid."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from persona_dspy.core import Usage
from persona_dspy.errors import InputError

__all__ = ["Estimate", "check_price", "known_price", "unpriced"]


def known_price(lm: Any, input_tokens: float, output_tokens: float) -> float | None:
    """US dollars for so many tokens of ordinary calls to ``lm``, or None where DSPy knows no price.

    An LM with an engine object (a model in this process, a fake) has none.

    Example:
        >>> import dspy
        >>> round(known_price(dspy.LM("openai/gpt-4o-mini"), 1_000_000, 0), 2)
        0.15
    """
    prices = _prices(lm)
    return None if prices is None else prices[0] * input_tokens + prices[1] * output_tokens


def check_price(lm: Any, usd: float | None) -> None:
    """Refuse a bound in US dollars on calls whose price nobody knows: it would never end anything.

    Raises:
        InputError: ``usd`` is a bound, and the price of ``lm`` is not known.
    """
    if usd is not None and _prices(lm) is None:
        raise InputError(
            f"budget of {usd:g} US dollars: the price of lm {getattr(lm, 'model', lm)!r} is not known; expected a bound"
            " that can be counted, type: --budget-tokens 1000000 or --budget-calls 1000 (Budget(tokens=...))"
        )


def unpriced(lms: Iterable[Any]) -> tuple[str, ...]:
    """Names of the models whose calls may cost money that nobody counts: they are asked over a network, and DSPy knows
    no price of theirs. Each once, in order.

    Example:
        >>> import dspy
        >>> unpriced([dspy.LM("openai/gpt-4o-mini"), dspy.LM("openai/ours", api_base="http://127.0.0.1:8000/v1")])
        ('openai/ours',)
    """
    return tuple(
        dict.fromkeys(lm.model for lm in lms if isinstance(getattr(lm, "engine", None), str) and _prices(lm) is None)
    )


def _prices(lm: Any) -> tuple[float, float] | None:
    """US dollars for an input and for an output token."""
    if not isinstance(getattr(lm, "engine", None), str):
        return None
    key = (lm.model, *(str(lm.kwargs.get(name) or "") for name in ("api_base", "base_url")))
    if key not in _PRICES:
        if len(_PRICES) >= _MOST_PRICES:
            _PRICES.clear()
        _PRICES[key] = _asked_prices(lm)
    return _PRICES[key]


_PRICES: dict[tuple[str, ...], tuple[float, float] | None] = {}
_MOST_PRICES = 256


def _asked_prices(lm: Any) -> tuple[float, float] | None:
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
    return inputs / 1000, (whole - inputs) / 1000


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
