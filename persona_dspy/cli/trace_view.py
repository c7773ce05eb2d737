"""What ``persona-dspy ask --trace`` prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from persona_dspy.core import plural

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from persona_dspy.agent import Call, Step, Trace
    from persona_dspy.core import Bullet, Interaction

__all__ = ["print_trace"]

_SHOWN = 100  # characters of an episode or observation


def print_trace(trace: Trace, past: Iterable[Interaction], bullets: Iterable[Bullet], console: Console) -> None:
    """The persona, then actions and LM calls in the order they began, then the sum. ``past`` and ``bullets`` hold the
    texts of episodes and of the persona's rules, of which a trace keeps the ids."""
    from rich.rule import Rule

    from persona_dspy.agent import Step

    episodes_by_id, rules = {i.id: i for i in past}, {b.id: b.sentence for b in bullets}
    console.print(Rule(_plain(f"persona of {trace.user_id}, version {trace.persona_version}"), align="left"))
    console.print(_plain(trace.persona or "(empty)"), style="dim")
    console.print(Rule("steps", align="left"))
    for item in sorted([*trace.steps, *trace.calls], key=lambda found: found.at):
        if isinstance(item, Step):
            _print_step(item, episodes_by_id, rules, console)
        else:
            console.print(_call_line(item))
    usage = trace.usage
    sums = f"{plural(usage.calls, 'LM call')}, {plural(usage.input_tokens, 'token')} in "
    sums += f"({usage.cached_tokens} of them cached), {usage.output_tokens} out, {trace.seconds:.2f} s in all"
    console.print(Rule("response", align="left"))
    console.print(_plain(trace.response), style="bold")
    console.print(_plain(sums), style="dim")


def _print_step(step: Step, known: dict[str, Interaction], rules: dict[str, str], console: Console) -> None:
    failed = " failed" if step.failed else ""
    console.print(
        _line(step.at, step.seconds, f"{step.action}{failed}: {_short(step.query)}", "red" if failed else "cyan")
    )
    for rule in step.steered_by:
        console.print(_plain(f"          words added by the persona: {_short(rules.get(rule, rule))}"), style="dim")
    for found in step.recalled:
        episode = known.get(found.id)
        episode_text = f"{_short(episode.query)} -> {_short(episode.response)}" if episode else "(no longer there)"
        console.print(_plain(f"          {found.score:7.3f}  #{found.position} {found.id}  {episode_text}"))
    if step.observation:
        console.print(_plain(f"          {_short(step.observation, 3 * _SHOWN)}"))


def _call_line(call: Call) -> Text:
    tokens = "from the cache" if call.cached else f"{plural(call.input_tokens, 'token')} in, {call.output_tokens} out"
    failed = ", failed" if call.failed else ""
    return _line(call.at, call.seconds, f"LM call ({call.role}, {call.model}): {tokens}{failed}", "green")


def _line(at: float, seconds: float, told: str, style: str) -> Text:
    from rich.text import Text

    return Text.assemble((f"{at:6.2f} s  ", "dim"), (told, style), (f"  {seconds * 1000:.0f} ms", "dim"))


def _plain(told: str) -> Text:
    from rich.text import Text

    return Text(told)  # never markup: episodes may hold brackets


def _short(text: str, most: int = _SHOWN) -> str:
    from persona_dspy.core import one_line

    line = one_line(text)
    return line if len(line) <= most else line[: most - 3] + "..."
