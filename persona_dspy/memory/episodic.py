"""One user's raw episodes, in time order, and recall from them (paper section 3, episodic memory).

An interaction without an answer of the user's own (a draft that the user only judged) is no episode: it is kept apart,
and only ``signals`` lists it.
"""

from __future__ import annotations

import math
import threading
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from persona_dspy.core import Episode, Interaction, in_time_order
from persona_dspy.errors import InputError
from persona_dspy.memory.retrieval import BM25, Recency, Retriever, top

__all__ = ["EpisodicMemory", "MemoryCut", "episode_text"]


def episode_text(interaction: Interaction, *, fields: Sequence[str] = ("title",)) -> str:
    """The text by which an episode is found: the ``fields`` of its metadata, its query and its response, a line each.

    Missing and empty fields are left out, and a field equal to the query is not repeated. Give
    ``EpisodicMemory(text=...)`` another function where a task needs one, such as
    ``functools.partial(episode_text, fields=("title", "venue"))``.

    Example:
        >>> episode_text(Interaction(user_id="u1", query="A crew meets a creature.", response="sci-fi"))
        'A crew meets a creature.\\nsci-fi'
    """
    extras = [interaction.metadata.get(name) for name in fields]
    lines = [str(extra) for extra in extras if extra not in (None, "", interaction.query)]
    return "\n".join([*lines, interaction.query, interaction.response])


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCut:
    """As of when memory is read, and what is out of bounds.

    Args:
        before: a position or a time; only what is strictly earlier may be seen. None = everything.
        exclude: ids of interactions that may not be seen at all, such as the gate's.
    """

    before: int | datetime | None = None
    exclude: frozenset[str] = frozenset()


class EpisodicMemory:
    """A handle on one user's interactions; thread-safe; a copy of it is itself.

    Episodes are the interactions that the user answered. Drafts that were only judged (no ``response``) are kept beside
    them: they are never recalled, listed among ``interactions`` or counted by ``len``; ``signals`` holds them.

    Time order is that of ``records.in_time_order``: by time where every interaction has one, else as they came.
    Positions count from 0 = oldest; an append that belongs earlier moves the positions after it.

    **As of then.** With ``before`` or ``exclude``, a recall answers exactly as a memory that holds only what may be
    seen: hidden episodes are neither candidates nor counted in BM25's statistics (N, df, mean length) nor in recency.

    The index is built at the first recall and then grows with each append; encoders run outside the lock.

    Args:
        interactions: of one user, any order.
        user_id: whose; by default that of the first interaction.
        retriever: how nearness is measured; ``BM25()`` by default.
        text: interaction -> the text it is found by.
        vectors: embeddings already known, by interaction id, for a retriever that uses them.
        recency: how age counts in a recall's scores; None = only among equals.

    Raises:
        InputError: interactions of another user, or an id given twice.

    Example:
        >>> alien = Interaction(user_id="u1", query="Alien: a crew meets a creature", response="sci-fi", id="a")
        >>> heat = Interaction(user_id="u1", query="Heat: a thief and a detective", response="crime", id="h")
        >>> memory = EpisodicMemory([alien, heat])
        >>> [e.id for e in memory.recall("a creature in the lift", k=1)]
        ['a']
    """

    def __init__(
        self,
        interactions: Iterable[Interaction] = (),
        *,
        user_id: str | None = None,
        retriever: Retriever | None = None,
        text: Callable[[Interaction], str] = episode_text,
        vectors: Mapping[str, NDArray[np.float32]] | None = None,
        recency: Recency | None = None,
    ) -> None:
        self._user_id = user_id
        self._retriever: Retriever = retriever if retriever is not None else BM25()
        self._text = text
        self._vectors = dict(vectors or {})
        self._recency = recency
        self._spelling: Callable[[Interaction], Interaction] | None = None
        self._lock = threading.Lock()  # guards everything below; never held while an encoder runs
        self._building = threading.Lock()  # one thread at a time encodes what is new
        self._arrived: list[Interaction] = []  # slot i of the index is the i-th that came
        self._slot: dict[str, int] = {}  # by id
        self._unanswered: dict[str, Interaction] = {}  # by id, as they came: drafts that were only judged
        self._times: array[float] = array("d")  # by slot, seconds since 1970; nan = unknown
        self._order: NDArray[np.intp] | None = None  # slots, oldest first; None = as they came
        self._index = self._retriever.index()
        self._indexed = 0
        self.extend(interactions)

    @property
    def user_id(self) -> str | None:
        """Whose memory this is; None only while it is empty and none was given."""
        return self._user_id

    @property
    def interactions(self) -> tuple[Interaction, ...]:
        """All interactions that the user answered, oldest first."""
        return self.before(None)

    @property
    def signals(self) -> tuple[Interaction, ...]:
        """All interactions that carry a signal, answered or not, oldest first."""
        return self.signals_before(None)

    def signals_before(
        self, cut: int | datetime | None, exclude: Collection[str] = frozenset()
    ) -> tuple[Interaction, ...]:
        """As ``before``, of the interactions that carry a signal, answered or not.

        Unanswered ones have no position: at a position they are earlier than its episode's time.
        """
        answered = [i for i in self.before(cut, exclude) if i.signal is not None]
        latest = self._time_of(cut) if isinstance(cut, int) else cut
        with self._lock:
            unanswered = [i for i in self._unanswered.values() if i.id not in exclude]
        if latest is not None:
            unanswered = [i for i in unanswered if i.time is not None and _seconds(i.time) < _seconds(latest)]
        elif isinstance(cut, int) and cut < len(self):
            unanswered = []  # nothing shows that they are earlier
        return tuple(in_time_order([*answered, *unanswered]))

    def _time_of(self, position: int) -> datetime | None:
        with self._lock:
            slots = self._slots_in_order()
            return self._arrived[int(slots[position])].time if 0 <= position < len(slots) else None

    def __len__(self) -> int:
        return len(self._arrived)

    def __repr__(self) -> str:
        return f"EpisodicMemory(user_id={self._user_id!r}, {len(self)} interactions)"

    def __copy__(self) -> EpisodicMemory:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> EpisodicMemory:  # DSPy deep-copies programs; a handle stays one
        return self

    def append(self, interaction: Interaction) -> None:
        """Add one interaction at its place in time; ``extend`` of one."""
        self.extend((interaction,))

    def extend(self, interactions: Iterable[Interaction]) -> None:
        """Add interactions at their places in time: all of them or, where one is refused, none.

        Raises:
            InputError: one is another user's, or its id is taken.
        """
        with self._lock:
            arriving = list(interactions)
            unanswered = {i.id: i for i in arriving if not i.answered}
            if unanswered:
                self._check_unanswered(arriving, unanswered)
            new = [i for i in arriving if i.answered] if unanswered else arriving
            new = [self._spelling(i) for i in new] if self._spelling else new
            owner, first_slot = self._user_id, len(self._arrived)
            last = self._times[int(self._slots_in_order()[-1])] if first_slot else -math.inf
            places = {i.id: place for place, i in enumerate(new, start=first_slot)}
            acceptable = all(i.user_id == owner for i in new) and places.keys().isdisjoint(self._slot)
            acceptable &= places.keys().isdisjoint(self._unanswered)
            if acceptable and len(places) == len(new):  # nothing to refuse
                self._slot |= places
                self._arrived += new
                self._times.extend([i.time.timestamp() if i.time else math.nan for i in new])
            else:
                try:
                    for interaction in new:
                        self._add_episode(interaction)
                except InputError:
                    self._user_id = owner
                    for interaction in self._arrived[first_slot:]:
                        del self._slot[interaction.id]
                    del self._arrived[first_slot:], self._times[first_slot:]
                    raise
            if unanswered:
                self._user_id = self._user_id or next(iter(unanswered.values())).user_id
                self._unanswered |= unanswered
            times = np.array([last, *self._times[first_slot:]])
            if math.isnan(last) or (times[1:] >= times[:-1]).all():  # all of them are later than those before
                if self._order is not None:
                    self._order = np.append(self._order, np.arange(first_slot, len(self._arrived)))
            else:
                self._sort()

    def put(self, interaction: Interaction) -> None:
        """Add an interaction, or put it in the place of the one that has its id: a user may say more of a draft.

        Raises:
            InputError: another user's.
        """
        if self.user_id not in (None, interaction.user_id):
            raise _other_user(interaction.user_id, str(self.user_id))
        if self._spelling is not None and interaction.answered:
            interaction = self._spelling(interaction)
        with self._building, self._lock:
            slot = self._slot.get(interaction.id)
            before = None if slot is None else self._arrived[slot]
            if before is None and (interaction.answered or interaction.id not in self._unanswered):
                self._unanswered.pop(interaction.id, None)
            elif before is None:
                self._unanswered[interaction.id] = interaction
                return
            elif slot is not None and (before.query, before.response, before.time, before.metadata) == (
                interaction.query,
                interaction.response,
                interaction.time,
                interaction.metadata,
            ):
                self._arrived[slot] = interaction
                return
            else:
                others = [i for i in self._arrived if i.id != interaction.id]
                self._arrived, self._slot, self._times, self._order = [], {}, array("d"), None
                self._index, self._indexed = self._retriever.index(), 0
                for one in others:
                    self._add_episode(one)
                self._sort()
        self.extend((interaction,))

    def extended(self, interactions: Iterable[Interaction], *, user_id: str | None = None) -> EpisodicMemory:
        """A memory of its own with these interactions too, searched in the same way; this one is not changed."""
        memory = EpisodicMemory(
            [*self.interactions, *self._unanswered.values(), *interactions],
            user_id=self._user_id or user_id,
            retriever=self._retriever,
            text=self._text,
            recency=self._recency,
        )
        if self._spelling is not None:
            memory.respell(self._spelling)
        return memory

    def respell(self, spelling: Callable[[Interaction], Interaction]) -> None:
        """Have every response written in one way, those that still come too: "Comedy" and "comedy" are one label.

        Args:
            spelling: an interaction -> the same under the same id, its response as the program's labels write it; does
                not raise.
        """
        with self._lock:
            self._spelling = spelling
            self._arrived = [spelling(interaction) for interaction in self._arrived]

    def clear(self) -> None:
        """Forget every interaction, what was indexed of them included; the handle stays usable."""
        with self._building, self._lock:
            self._arrived, self._slot, self._times = [], {}, array("d")
            self._order, self._vectors, self._unanswered = None, {}, {}
            self._index, self._indexed = self._retriever.index(), 0

    def get(self, interaction_id: str) -> Interaction | None:
        """The interaction of that id, answered or not, or None."""
        with self._lock:
            slot = self._slot.get(interaction_id)
            return self._unanswered.get(interaction_id) if slot is None else self._arrived[slot]

    def position(self, interaction_id: str) -> int | None:
        """Place in time order, 0 = oldest, or None where no episode has that id."""
        with self._lock:
            slot = self._slot.get(interaction_id)
            if slot is None or self._order is None:
                return slot
            return int(np.flatnonzero(self._order == slot)[0])

    def before(self, cut: int | datetime | None, exclude: Collection[str] = frozenset()) -> tuple[Interaction, ...]:
        """Interactions strictly earlier than ``cut`` (a position or a time; None = all), oldest first, not ``exclude``.

        With a time, interactions whose time is unknown are left out: nothing shows that they are earlier.
        """
        with self._lock:
            _, slots = self._visible(cut, exclude, len(self._arrived))
            return tuple(self._arrived[slot] for slot in slots.tolist())

    def recall(
        self, query: str, k: int, *, before: int | datetime | None = None, exclude: Collection[str] = ()
    ) -> list[Episode]:
        """The k nearest episodes to ``query``, best first; of equals the most recent first.

        Where fewer than k match at all, the most recent others follow with the lowest score, so that
        ``len(result) == min(k, number that may be seen)``.

        Args:
            query: any text.
            k: how many at most, >= 0.
            before: a position or a time; only what is strictly earlier is seen (see ``before()``).
            exclude: ids that are not seen.

        Raises:
            InputError: k or a position below 0.
        """
        if k < 0:
            raise InputError(f"recall(k={k!r}): expected how many episodes, 0 or more, such as k=4")
        if k == 0 or not self._arrived:
            return []
        self._index_new()
        encoded = self._retriever.encode([query])[0]
        with self._lock:
            places, slots = self._visible(before, exclude, self._indexed)
            if not len(slots):
                return []
            live = None
            if len(slots) < self._indexed:
                live = np.zeros(self._indexed, dtype=np.bool_)
                live[slots] = True
            scores = self._index.scores(encoded, live)[slots]
            if self._recency is not None:
                scores = np.maximum(scores, 0) * self._recency.weights(self._ages(slots, before))
            return [
                Episode(interaction=self._arrived[slots[i]], position=int(places[i]), score=float(scores[i]))
                for i in top(scores, k).tolist()
            ]

    def _visible(
        self, cut: int | datetime | None, exclude: Collection[str], indexed: int
    ) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Places in time order, and their slots, of what may be seen among the first ``indexed`` that came."""
        slots = self._slots_in_order()
        places = np.arange(len(slots))
        if isinstance(cut, int):
            if cut < 0:
                raise InputError(f"before={cut!r}: expected a position, 0 or more, or a time")
            places, slots = places[:cut], slots[:cut]
        keep = slots < indexed
        if isinstance(cut, datetime):
            keep &= np.array(self._times)[slots] < _seconds(cut)  # nan is never earlier
        hidden_slots = [self._slot[one] for one in exclude if one in self._slot]
        if hidden_slots:
            visible = np.ones(len(self._arrived), dtype=np.bool_)
            visible[hidden_slots] = False
            keep &= visible[slots]
        return (places, slots) if keep.all() else (places[keep], slots[keep])

    def _ages(self, slots: NDArray[np.intp], cut: int | datetime | None) -> NDArray[Any]:
        """Age of each slot, given oldest first, in the unit of ``recency``."""
        if self._recency is None or self._recency.unit == "episodes":
            return np.arange(len(slots))[::-1]
        times = np.array(self._times)[slots]
        dated = times[~np.isnan(times)]
        if not len(dated):
            return np.zeros(len(slots))
        now = _seconds(cut) if isinstance(cut, datetime) else dated.max()
        return (now - np.where(np.isnan(times), dated.min(), times)) / 86_400

    def _slots_in_order(self) -> NDArray[np.intp]:
        return np.arange(len(self._arrived)) if self._order is None else self._order

    def _add_episode(self, interaction: Interaction) -> None:
        if self._user_id is None:
            self._user_id = interaction.user_id
        if interaction.user_id != self._user_id:
            raise _other_user(interaction.user_id, self._user_id)
        if interaction.id in self._slot or interaction.id in self._unanswered:
            raise _id_taken(interaction.id, self._user_id)
        self._slot[interaction.id] = len(self._arrived)
        self._arrived.append(interaction)
        self._times.append(_seconds(interaction.time) if interaction.time else math.nan)

    def _check_unanswered(self, arriving: Sequence[Interaction], unanswered: Mapping[str, Interaction]) -> None:
        owner = self._user_id or arriving[0].user_id
        taken, ids = {*self._slot, *self._unanswered}, set[str]()
        for interaction in arriving:
            if interaction.user_id != owner:
                raise _other_user(interaction.user_id, owner)
            if interaction.id in taken or (interaction.id in ids and interaction.id in unanswered):
                raise _id_taken(interaction.id, owner)
            ids.add(interaction.id)

    def _sort(self) -> None:
        times = np.array(self._times)
        order = None if np.isnan(times).any() else np.argsort(times, kind="stable")
        self._order = None if order is None or (order[1:] > order[:-1]).all() else order

    def _index_new(self) -> None:
        """Encode and index what came since the last recall."""
        if self._indexed == len(self._arrived):
            return
        with self._building:
            with self._lock:
                fresh = self._arrived[self._indexed :]
            items = self._retriever.encode([self._text(i) for i in fresh], [self._vectors.get(i.id) for i in fresh])
            with self._lock:
                self._index.add(items)
                self._indexed += len(items)
                for interaction in fresh:
                    self._vectors.pop(interaction.id, None)  # the index has its own copy


def _other_user(user_id: str, owner: str) -> InputError:
    return InputError(f"user_id {user_id!r}: expected interactions of {owner!r} only; make one EpisodicMemory per user")


def _id_taken(interaction_id: str, owner: str | None) -> InputError:
    return InputError(f"interaction id {interaction_id!r}: already in the memory of {owner!r}")


def _seconds(time: datetime) -> float:
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
