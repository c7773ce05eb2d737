"""What a process remembers of users' texts: short ones only, and nothing once somebody is forgotten."""

import ast
import gc
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Literal

import dspy
import pydantic

import optimizers
import persona_dspy
from optimizers import keywords
from persona_dspy.agent import instructions, offered, prompt, steering
from persona_dspy.core import Interaction, ResponseKind, answer_types, defused_tags
from persona_dspy.core.erasure import clear_remembered_texts, remember_short_texts
from persona_dspy.core.spelling import bare, folded
from persona_dspy.data import citation, get_task
from persona_dspy.fleet import forget_user
from persona_dspy.lm import kept_answers
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


def labelled(label):
    """What processes of this package make of one user's labels, and keep for the next call."""
    kind, labels = ResponseKind(name="label", labels=(label, "tea")), (label, "tea")
    signature = dspy.Signature("drink -> choice")
    told = instructions.with_order_told(instructions.with_task_told(signature, kind))
    narrowed = offered.narrowed_to(told, labels)
    steering.narrowed(narrowed, (label,))
    prompt._turn_form(dspy.ChatAdapter, narrowed)
    prompt._takes_part(narrowed, frozenset({"drink"}))
    prompt._only(narrowed, frozenset({"drink", "choice"}))
    rules = keywords._asking(narrowed, kind, 3)
    kept_answers._content(pydantic.create_model("Answer", choice=(Literal[labels], ...)))
    answer_types.adapter_of(Literal[labels])
    replace(get_task("lamp-2m"), labels=labels).signature()
    defused_tags(f"<{label}>", frozenset(labels))
    re.compile(label)
    return rules.output_fields["edits"]


def test_labels_of_a_user_are_remembered_nowhere_once_the_user_is_forgotten():
    label = Text("a secret illness")
    gone = weakref.ref(label)
    assert labelled(label)
    del label
    gc.collect()
    assert gone() is not None, "a cache that keeps nothing is none"
    clear_remembered_texts()
    gc.collect()
    assert gone() is None


NO_TEXTS = {  # caches that nobody's texts get into, by what they are of
    "_scorer", "_is_unseen", "_joins", "_looks",  # metrics, single characters
    "_personal_class", "_awaited_class", "_personal_lm_class", "_recorded_class",  # classes of adapters and LMs
    "pace_of", "knowledge_source",  # LMs, shared sources of knowledge
}  # fmt: skip


def test_what_is_cached_of_users_is_cached_where_forgetting_empties_it():
    cached = set()
    for path in [*Path(persona_dspy.__file__).parent.rglob("*.py"), *Path(optimizers.__file__).parent.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                plain = any(re.match(r"(functools\.)?(lru_cache|cache)\b", ast.unparse(d)) for d in node.decorator_list)
                if plain and (node.args.args or node.args.kwonlyargs):
                    cached.add(node.name)
    assert cached == NO_TEXTS, "decorate it by core.remember, or say here why nobody's text is in it"


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
