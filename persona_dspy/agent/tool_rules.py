"""The rules for tools in the paper's initial persona, as lines that an optimizer may rewrite."""

from __future__ import annotations

from collections.abc import Collection

from persona_dspy.core import Bullet

__all__ = ["tool_rules"]

_HOW = {
    "recall_history": "recall_history finds this user's own past responses: search by what the query is about.",
    "search_knowledge": "search_knowledge explains what the query names and the user's past does not: search by names.",
}


def tool_rules(tools: Collection[str]) -> tuple[Bullet, ...]:
    """Lines of the section "look-ups" that ask for at least two of the tools before an answer; none without tools.

    Example:
        >>> [line.text for line in tool_rules(["recall_history", "my_tool"])][0]
        'Before you answer, call at least two of these tools: recall_history, my_tool.'
    """
    names = list(tools)
    if not names:
        return ()
    many = f"at least two of these tools: {', '.join(names)}" if len(names) > 1 else f"the tool {names[0]}"
    lines = [f"Before you answer, call {many}.", *(_HOW[name] for name in names if name in _HOW)]
    return tuple(Bullet(section="look-ups", text=line) for line in lines)
