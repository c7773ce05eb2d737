"""Who keeps the program of a service's user up to date."""

from __future__ import annotations

from typing import Any, Protocol

from persona_dspy.core import Interaction

__all__ = ["Watcher"]


class Watcher(Protocol):
    """Who keeps a program of a service up to date: ``Personas.for_user`` gives each program one.

    ``traces``: where the traces of its answers are sent, and what users say of them; None = as the context says.
    ``state``: what is known of the user now.
    """

    state: Any

    @property
    def traces(self) -> Any: ...

    def refresh(self, program: Any) -> None:
        """Called before each answer: brings persona and memory of ``program`` to their current state."""

    async def arefresh(self, program: Any) -> None:
        """As ``refresh``, without holding up the event loop."""

    def observed(self, program: Any, interaction: Interaction) -> None:
        """Keeps ``interaction`` in the program's memory and in whatever outlives it."""

    def drafted(self, draft: Interaction, since: Any) -> None:
        """Keeps a draft that was just given, so that feedback finds it; does not wait for a store. ``since``: ``state``
        before the answer began."""

    def draft(self, trace_id: str) -> Interaction | None:
        """A draft that was given to this user, in any process, with what was said of it so far."""

    def commented(self, program: Any, remark: Interaction) -> Interaction:
        """Keeps what a user says of a draft, beside what the user said of it before; all of it."""
        ...
