import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.core.interactions import Interaction
from persona_dspy.data.lamp import get_task, infer_task, task_names
from persona_dspy.errors import DataError, InputError

OFFICIAL = {
    "lamp-1": (
        'For an author who has written the paper with the title "A "quoted" title", which reference is related? '
        'Just answer with [1] or [2] without explanation. [1]: "First\none" [2]: "Second: "two""',
        'paper: "A "quoted" title"\n[1]: "First\none"\n[2]: "Second: "two""',
    ),
    "lamp-2m": (
        "Which tag does this movie relate to among the following tags? Just answer with the tag name without further "
        'explanation. tags: [sci-fi, comedy] description: A "heist".\nIn two parts, description: it\'s long.',
        'A "heist".\nIn two parts, description: it\'s long.',
    ),
    "lamp-2n": (
        "Which category does this article relate to among the following categories? Just answer with the category name "
        "without further explanation. categories: [women, religion] article: An article: news.",
        "An article: news.",
    ),
    "lamp-3": (
        "What is the score of the following review on a scale of 1 to 5? just answer with 1, 2, 3, 4, or 5 without "
        "further explanation. review: My review: fine.\n",
        "My review: fine.",
    ),
    "lamp-4": ("Generate a headline for the following article: It rained: twice.", "It rained: twice."),
    "lamp-5": ("Generate a title for the following abstract of a paper: In this paper: we.", "In this paper: we."),
    "lamp-6": ("Generate a subject for the following email: Hi, email: me.", "Hi, email: me."),
    "lamp-7": (
        "Paraphrase the following tweet without any explanation before or after it: I am: bored.",
        "I am: bored.",
    ),
    "longlamp-1": ("Complete the following email as its author would: Hi: all.", "Hi: all."),
    "longlamp-2": (
        'Generate an abstract for the title "Cats" using the following items: 1. They purr.',
        '"Cats" using the following items: 1. They purr.',
    ),
    "longlamp-3": (
        'Generate the review text written by a reviewer who has given a rating of "5.0".',
        'written by a reviewer who has given a rating of "5.0".',
    ),
    "longlamp-4": ("Generate the content for a reddit post My cat purrs.", "My cat purrs."),
}
ITEMS = {
    "lamp-1": {"id": "1", "title": "Parsing Beetles", "abstract": "We parse."},
    "lamp-2m": {"id": "1", "description": "A heist.", "tag": "action"},
    "lamp-2n": {"id": "1", "text": "Vote.", "title": "Votes", "category": "politics"},
    "lamp-3": {"id": "1", "text": "Fine.", "score": "4"},
    "lamp-4": {"id": "1", "text": "It rained.", "title": "Rain"},
    "lamp-5": {"id": "1", "abstract": "We parse.", "title": "Parsing"},
    "lamp-6": {"id": "1", "text": "Hi.", "title": "Hello"},
    "lamp-7": {"id": "1", "text": "SOOOO bored :( #monday http://x.y/z"},
    "longlamp-1": {"id": "1", "subject": "Hello", "text": "Hi all."},
    "longlamp-2": {"id": "1", "title": "Parsing", "abstract": "We parse."},
    "longlamp-3": {"id": "1", "description": "A pan.", "overall": 4.0, "summary": "Fine", "reviewText": "A good one."},
    "longlamp-4": {"id": "1", "summary": "My dog barks.", "content": "So today my dog barked."},
}


@pytest.mark.parametrize("name", task_names())
def test_official_inputs_give_the_item_itself(name):
    text, item = OFFICIAL[name]
    assert get_task(name).parse_input(text) == item


@pytest.mark.parametrize("name", task_names())
@pytest.mark.parametrize("text", ["", " \n", None, 7, "Just a text."])
def test_other_inputs_are_refused(name, text):
    with pytest.raises(DataError, match="official input"):
        get_task(name).parse_input(text)


@pytest.mark.parametrize("name", [n for n in task_names() if n != "lamp-1"])
def test_an_instruction_without_an_item_is_refused(name):
    text, item = OFFICIAL[name]
    with pytest.raises(DataError, match="text after the instruction"):
        get_task(name).parse_input(text.replace(item, "").rstrip() + "  ")


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip))
def test_any_item_comes_back_from_its_official_input(item):
    for name in ("lamp-2m", "lamp-2n", "lamp-4", "lamp-5", "lamp-6", "lamp-7"):
        text, example = OFFICIAL[name]
        assert get_task(name).parse_input(text.replace(example, item, 1)) == item.strip()


@pytest.mark.parametrize("name", task_names())
def test_a_profile_item_is_an_interaction(name):
    made = get_task(name).interaction(ITEMS[name], "u1")
    assert (made.user_id, made.id) == ("u1", "1")
    assert get_task(name).parse_response(made.response) == made.response


@pytest.mark.parametrize("name", [n for n in task_names() if n != "lamp-1"])
def test_what_is_asked_does_not_hold_the_response(name):
    made = get_task(name).interaction({**ITEMS[name], "raw_tag": "leak", "raw_category": "leak"}, "u1")
    assert made.response not in made.query
    assert made.response not in made.metadata.values()
    assert "leak" not in made.metadata.values()


@pytest.mark.parametrize("name", task_names())
def test_an_item_without_a_field_is_refused(name):
    task = get_task(name)
    for key in [task.item_query[-1], task.item_response]:
        if key:
            item = {k: v for k, v in ITEMS[name].items() if k not in (key, *task.item_query[1:])}
            if name == "lamp-2n" and key == "title":
                item.pop("text")
            with pytest.raises(DataError):
                task.interaction(item, "u1")
    with pytest.raises(DataError, match="expected an object"):
        task.interaction("text", "u1")


def test_a_tweet_is_flattened_to_its_plain_text():
    made = get_task("lamp-7").interaction(ITEMS["lamp-7"], "u1")
    assert made.query == "so bored monday"
    assert made.response == ITEMS["lamp-7"]["text"]
    with pytest.raises(DataError, match="at least one word"):
        get_task("lamp-7").interaction({"id": "1", "text": ":( !!"}, "u1")


def test_an_article_without_text_is_known_by_its_title():
    made = get_task("lamp-2n").interaction({**ITEMS["lamp-2n"], "text": ""}, "u1")
    assert made.query == "Votes"


@pytest.mark.parametrize("alias", ["LaMP_2M", "lamp2m", "LaMP-2M", "lamp_2_m"])
def test_aliases(alias):
    assert get_task(alias) is get_task("lamp-2m")


@pytest.mark.parametrize(("name", "message"), [("lamp-9", "expected one of lamp-1"), ("LaMP_2", "two tasks share")])
def test_unknown_names_list_what_there_is(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        get_task(name)


def past(responses, user_id="u1"):
    return [Interaction(user_id=user_id, query=f"q{i}", response=r, id=str(i)) for i, r in enumerate(responses)]


@pytest.mark.parametrize(
    ("responses", "kind", "choices"),
    [
        (["b", "a", "a", "b"], "label", ("a", "b")),
        (["b", "a", "c"], "text", None),
        (["a"] * 6, "label", ("a",)),
        (["Comedy", "comedy", "comedy.", "Drama"] * 2, "label", ("Comedy", "Drama")),
        (["4000", "4001", "9000"] * 3, "label", ("4000", "4001", "9000")),
        (["0.5", "4.0", "5"], "rating", tuple("0.5 1 1.5 2 2.5 3 3.5 4 4.5 5".split())),  # noqa: SIM905
        (["87", "62", "91", "45", "73"], "rating", None),
        (["3", "4"], "rating", ("1", "2", "3", "4", "5")),
        (["0", "7"], "rating", tuple("0 1 2 3 4 5 6 7 8 9 10".split())),  # noqa: SIM905
        (["-1", "1"], "rating", ("-1", "0", "1")),
        (["0", "1", "1", "0"], "label", ("0", "1")),
        (["0", "100"] * 2, "label", ("0", "100")),
        (["x" * 61, "y"] * 3, "text", None),
        ([str(i) + "x" for i in range(21)] * 2, "text", None),
    ],
)
def test_the_task_of_a_plain_history(responses, kind, choices):
    task = infer_task(past(responses))
    assert (task.kind, task.choices) == (kind, choices)
    assert task.evaluate(responses, responses)
    assert all(task.score(r, r) == 1 for r in responses)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["yes", "no", "maybe", "3", "-2", "12", "a longer reply"]), min_size=1, max_size=40))
def test_every_response_of_the_user_is_one_of_the_choices(responses):
    task = infer_task(past(responses))
    assert task.choices is None or set(responses) <= set(task.choices)
    assert task.signature().output_fields[task.response_field]


def test_labels_of_another_user_cannot_get_in():
    with pytest.raises(InputError, match="interactions of 2 users"):
        infer_task([*past(["a", "a", "b", "b"]), *past(["secret"] * 4, "u2")])
    with pytest.raises(InputError, match="interactions of 0 users"):
        infer_task([])


def test_a_signature_names_the_fields():
    task = infer_task(past(["a", "a", "b", "b"]), "description -> tag")
    assert list(task.signature().fields) == ["description", "tag"]
    for bad in ("tag", "a, b -> c", "a -> a", "a -> b: int", "-> b", "1a -> b"):
        with pytest.raises(InputError, match=re.escape(repr(bad))):
            infer_task(past(["a"]), bad)


@pytest.mark.parametrize("name", task_names())
def test_no_input_takes_long(name):
    asked = 'title "x", which reference is related? '
    for text in ("tweet " * 20_000, 'title "' * 9_000, asked + '[1]: "a" [2]: ' * 9_000):
        started = time.perf_counter()
        with contextlib.suppress(DataError):
            get_task(name).parse_input(text)
        assert time.perf_counter() - started < 2
