import re

from hypothesis import given, settings
from hypothesis import strategies as st

from persona_dspy.data.citation import distractor, pair, query, words
from persona_dspy.data.lamp import get_task

titles = st.lists(
    st.text(alphabet="abcdefgh parsing of databases", min_size=3, max_size=40).filter(str.strip).map(str.strip),
    min_size=1,
    max_size=12,
    unique=True,
)


def replay(papers, user_id="u1"):
    task, earlier = get_task("lamp-1"), []
    for number, title in enumerate(papers):
        earlier.append(task.interaction({"id": str(number), "title": title}, user_id, earlier=tuple(earlier)))
    return earlier


def parts(text):
    found = re.fullmatch(r'(?s)(?:paper: "(.*?)"\n)?\[1\]: "(.*)"\n\[2\]: "(.*)"', text)
    return found[1], {"[1]": found[2], "[2]": found[3]}


@settings(deadline=None)
@given(titles)
def test_the_answer_is_the_authors_own_and_the_other_is_not(papers):
    for number, made in enumerate(replay(papers)):
        paper, choices = parts(made.query)
        own = choices.pop(made.response)
        (other,) = choices.values()
        assert paper == (papers[number] if number else None)
        assert own in (papers[:number] or papers[:1])
        assert other not in papers


@settings(deadline=None)
@given(titles, st.text(alphabet="xyz ", min_size=1).filter(str.strip))
def test_nothing_later_changes_what_is_earlier(papers, later):
    assert replay(papers) == replay([*papers, later.strip() + " zzz"])[: len(papers)]


def test_the_nearest_earlier_title_is_chosen_and_the_latest_of_equals():
    papers = ["Parsing Beetles", "Cooking Rice", "Beetles in Autumn", "Parsing Beetles Again"]
    assert parts(replay(papers)[3].query)[1][replay(papers)[3].response] == "Parsing Beetles"
    papers = ["Parsing Beetles", "Parsing Ants", "Parsing Wasps"]
    made = replay(papers)[2]
    assert parts(made.query)[1][made.response] == "Parsing Ants"


def test_both_sides_are_drawn_and_users_differ():
    papers = [f"Title number {n} about wombats" for n in range(40)]
    answers = [i.response for i in replay(papers)]
    assert 10 <= answers.count("[1]") <= 30
    assert [i.query for i in replay(papers)] != [i.query for i in replay(papers, "u2")]


@given(st.lists(st.sampled_from(["Soil Moisture", "Stock Price", "Colouring Networks"]), max_size=3), st.text())
def test_a_distractor_shares_no_word_with_the_author(own, seed):
    assert not words(distractor(own, seed)) & frozenset().union(*map(words, own))
    assert distractor(own, seed) == distractor(own, seed)


def test_an_official_question_and_an_interaction_look_alike():
    text = 'For an author who has written the paper with the title "A", which reference is related? [1]: "B" [2]: "C"'
    assert get_task("lamp-1").parse_input(text) == query("A", "B", "C")
    assert pair({"title": "A"}, (), "u1")[0].splitlines()[0].startswith('[1]: "')
