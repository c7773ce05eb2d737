"""LongLaMP's rows, LaMP's merged files, the licensed mails, and OPPU's citations."""

import json

import pytest

from persona_dspy.data import detect_task, get_task, read_users
from persona_dspy.data.download import urls
from persona_dspy.errors import DataError, InputError

ABSTRACT = {
    "name": "A. Author",
    "input": 'Generate an abstract for the title "Cats" using the following items: 1. They purr.',
    "output": "We show that cats purr.",
    "profile": [{"id": "1", "title": "Dogs", "abstract": "We show that dogs bark.", "year": 2019}],
}
REVIEW = {
    "reviewerId": "A1",
    "input": 'Generate the review text written by a reviewer who has a given an overall rating of "5.0" for a product '
    'with description "A kettle.". The summary of the review text is "Boils".',
    "output": "It boils at once.",
    "profile": [{"overall": 4.0, "summary": "Fine", "description": "A pan.", "reviewText": "A fine pan."}],
}
POST = {
    "author": "u/one",
    "input": "Generate the content for a reddit post My cat purrs.",
    "output": "So today my cat purred.",
    "profile": [{"summary": "My dog barks.", "content": "So today my dog barked."}],
}


def written(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("row", "task", "user", "past", "asked"),
    [
        (ABSTRACT, "longlamp-2", "A. Author", "Dogs", '"Cats" using the following items: 1. They purr.'),
        (REVIEW, "longlamp-3", "A1", 'rating "4"', 'an overall rating of "5.0"'),
        (POST, "longlamp-4", "u/one", "My dog barks.", "My cat purrs."),
    ],
)
def test_rows_of_the_hub_are_read_with_their_task(tmp_path, row, task, user, past, asked):
    file = written(tmp_path / "rows.json", [row])
    assert detect_task(file).name == task == get_task(task.replace("longlamp-", "LongLaMP_")).name
    (found,) = read_users(file)
    assert found.user_id == user and asked in found.questions[0].query
    assert past in found.interactions[0].query and found.questions[0].gold == row["output"]
    assert found.interactions[0].response in row["profile"][0].values()
    assert set(get_task(task).evaluate([row["output"]], [row["output"]])) == {"rouge1", "rougeL", "meteor"}


def test_merged_files_of_lamp_hold_their_golds(tmp_path):
    profile = [{"id": "1", "description": "A heist.", "tag": "action"}]
    row = {"id": "u", "input": "Which tag does it have? description: A kiss.", "profile": profile, "output": "romance"}
    (found,) = read_users(written(tmp_path / "merged.json", [row]))
    assert (found.questions[0].query, found.questions[0].gold) == ("A kiss.", "romance")


def test_mails_that_are_only_named_are_an_error_with_the_licence(tmp_path):
    row = {"id": "u", "input": "147-000874-EM.txt", "profile": [{"id": "1", "text": "147-000875-EM.txt"}]}
    (tmp_path / "outputs.json").write_text(json.dumps({"task": "LaMP_6", "golds": [{"id": "u", "output": "Hi"}]}))
    with pytest.raises(DataError, match=r"Avocado.*LDC2015T03"):
        list(read_users(written(tmp_path / "questions.json", [row])))
    filled = [{"id": "u", "input": "Generate a subject for the following email: Hello.", "profile": [
        {"id": "1", "text": "Hello there.", "title": "Hi"}]}]  # fmt: skip
    (found,) = read_users(written(tmp_path / "questions.json", filled))
    assert found.interactions[0].response == "Hi" and found.questions[0].query == "Hello."


def test_the_test_split_that_the_script_for_mails_writes_is_read(tmp_path):
    filled = [{"id": "u", "input": "Generate a subject for the following email: Hello.", "profile": [
        {"id": "1", "text": "Hello there.", "title": "Hi"}]}]  # fmt: skip
    path = written(tmp_path / "test_questions.json", {"task": "LaMP_6", "golds": filled})
    (found,) = read_users(path)
    assert detect_task(path).name == "lamp-6" and found.questions[0].gold is None


def test_what_a_paper_cites_is_the_answer_where_a_file_says_it(tmp_path):
    task = get_task("lamp-1")
    told = task.interaction({"id": "1", "title": "Deep cats", "citation": "Attention to cats"}, "u")
    guess = task.interaction({"id": "1", "title": "Deep cats"}, "u")
    side = told.query.split(f'{told.response}: "')[1].split('"')[0]
    assert side == "Attention to cats" and told.query.startswith('paper: "Deep cats"')
    assert "Attention" not in guess.query and not guess.query.startswith("paper")
    assert "citation" not in told.metadata, "it would tell the answer"


def test_longlamp_is_not_where_lamp_is():
    with pytest.raises(InputError, match="load_dataset"):
        urls("longlamp-2")
