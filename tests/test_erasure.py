"""What a process remembers of users' texts: short ones only, and nothing once somebody is forgotten."""

import weakref

from persona_dspy.core import Interaction
from persona_dspy.core.erasure import clear_remembered_texts, remember_short_texts
from persona_dspy.core.spelling import bare, folded
from persona_dspy.data import citation
from persona_dspy.fleet import forget_user
from persona_dspy.store import Store


class Text(str):
    """A text that says whether anybody still holds it."""


def held(read, text):
    kept = Text(text)
    read(kept)
    gone = weakref.ref(kept)
    del kept
    return lambda: gone() is not None


def test_long_texts_are_not_remembered():
    for read in (folded, bare, citation.words):
        assert not held(read, f"{read.__name__} " + "long text " * 30)()
    asked = []
    read = remember_short_texts(maxsize=4)(lambda text: asked.append(text) or len(text))
    assert [read("tea"), read("tea"), read("t" * 300), read("t" * 300)] == [3, 3, 300, 300]
    assert [len(text) for text in asked] == [3, 300, 300]


def test_nothing_is_remembered_once_a_user_is_forgotten(tmp_path):
    with Store.open(tmp_path / "s.db") as store, Store.open(tmp_path / "s.db") as elsewhere:
        forgets = (
            lambda: store.forget("ana"),
            lambda: forget_user("ana", folders=[tmp_path / "none"]),
            clear_remembered_texts,
        )
        for turn, forget in enumerate(forgets):
            still = [held(read, f"a secret illness {turn}") for read in (folded, bare, citation.words)]
            assert all(one() for one in still)
            forget()
            assert not any(one() for one in still)
        store.add_episodes("ana", [Interaction(user_id="ana", query="tea", response="yes", id="a")])
        memory = elsewhere.memory("ana")
        store.forget("ana")
        still = held(folded, "a secret of another process")
        elsewhere.memory("ana", may_be_new=True)
        assert not len(memory) and not still()
