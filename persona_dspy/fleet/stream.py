"""The users of a fleet as they stream in: each once, the longest first."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from contextlib import closing

from persona_dspy.data import FirstRows
from persona_dspy.errors import InputError, PersonaError
from persona_dspy.fleet.user import History

__all__ = ["UserStream", "longest_first"]


class UserStream:
    """Histories, each user once. A user who comes again, or a row that cannot be read, ends the stream: who is under
    way is finished first, then ``raise_failure`` raises.

    Which users came is kept in a temporary file, not in memory.

    Example:
        >>> from persona_dspy.data import UserHistory
        >>> stream = UserStream([UserHistory(user_id="u1"), UserHistory(user_id="u2"), UserHistory(user_id="u1")])
        >>> [history.user_id for history in stream]
        ['u1', 'u2']
        >>> stream.raise_failure()
        Traceback (most recent call last):
        persona_dspy.errors.InputError: user 'u1': rows 1 and 3 of the users to compile; expected each ...
    """

    def __init__(self, histories: Iterable[History]) -> None:
        self._histories = histories
        self._failure: PersonaError | None = None

    def __iter__(self) -> Iterator[History]:
        with closing(FirstRows()) as rows:
            try:
                for row, history in enumerate(self._histories, 1):
                    first = rows.first(history.user_id, row)
                    if first != row:
                        raise InputError(
                            f"user {history.user_id!r}: rows {first} and {row} of the users to compile; expected each "
                            "user in one row, since the second persona would take the place of the first. Join them: "
                            "type --group, or give persona_dspy.data.join_users(histories)"
                        )
                    yield history
            except PersonaError as failure:
                self._failure = failure

    def raise_failure(self) -> None:
        """Raise what ended the stream early, if anything did."""
        if self._failure is not None:
            raise self._failure


def longest_first(histories: Iterable[History], ahead: int) -> Iterator[History]:
    """The histories, those with most interactions first among the ``ahead`` next ones, so that the fleet does not end
    with everybody waiting for one long user.

    Looks one further ahead for each history it yields, so that the first ones need not wait for a slow source.

    Example:
        >>> from persona_dspy.data import UserHistory
        >>> from persona_dspy.core import Interaction
        >>> def of(user, count):
        ...     past = [Interaction(user_id=user, query=str(n), response="a") for n in range(count)]
        ...     return UserHistory(user_id=user, interactions=tuple(past))
        >>> [h.user_id for h in longest_first([of("a", 2), of("b", 1), of("c", 3), of("d", 9)], 3)]
        ['a', 'c', 'd', 'b']
    """
    heap: list[tuple[int, int, History]] = []
    window = 1
    for row, history in enumerate(histories):
        heapq.heappush(heap, (-len(history.interactions), row, history))
        if len(heap) >= window:
            window = min(window + 1, ahead)
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]
