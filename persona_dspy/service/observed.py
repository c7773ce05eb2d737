"""What a service was told of an answer, into the store: an interaction, or what else is said of a draft with an id."""

from __future__ import annotations

from persona_dspy.core import Interaction
from persona_dspy.errors import InputError
from persona_dspy.store import Observed, Store, UserState

__all__ = ["keep_observed"]


def keep_observed(store: Store, one: Interaction, *, since: UserState | None = None) -> Observed:
    """Keep an interaction; one whose signal names its own id as the trace, beside what was said of that draft before.

    Args:
        since: as for ``Store.observe``.

    Raises:
        InputError: the id is that of another query or draft.
    """
    if one.signal is None or one.signal.trace != one.id:
        return store.observe(one.user_id, [one], since=since)
    before = store.episode(one.user_id, one.id)
    drafts = {i.signal.draft for i in (before, one) if i is not None and i.signal is not None and i.signal.draft}
    if before is not None and (before.query != one.query or len(drafts) > 1):
        raise InputError(
            f"interaction id {one.id!r} of {one.user_id!r} is taken by other content: expected the query and the draft "
            "that it was given with, or another id (leave id out and it is made from the content)"
        )
    return store.feedback(one.user_id, one, since=since)
