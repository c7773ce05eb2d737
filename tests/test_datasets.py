import subprocess
import sys

import datasets
import pytest

from persona_dspy.core import Interaction, Persona
from persona_dspy.data.datasets import to_dataset
from persona_dspy.data.files import read_users
from persona_dspy.errors import InputError


def test_interactions_come_back_as_they_were(tmp_path):
    given = [
        Interaction(user_id="7", query="Alien", response="horror", time="2026-01-03", id="a", metadata={"year": 1979}),
        Interaction(user_id="7", query="Где посылка?", id="b", signal={"draft": "Dear Sir", "thumbs": "down"}),
        Interaction(user_id="8", query="q", response="tea", signal={"options": ["tea", "coffee"]}),
    ]
    data = to_dataset(given)
    data.save_to_disk(tmp_path / "saved")
    data.to_parquet(tmp_path / "data.parquet")
    data.to_csv(tmp_path / "data.csv")
    sources = (data, tmp_path / "saved", tmp_path / "data.parquet", tmp_path / "data.csv", data.to_iterable_dataset())
    for source in sources:
        with pytest.warns(UserWarning, match="1 of 2 interactions have no time"):
            assert [i for user in read_users(source) for i in user.interactions] == given


def test_personas_are_rows():
    persona = Persona.from_text("Likes short answers.", user_id="u1")
    row = to_dataset([persona])[0]
    assert row["lines"] == ["Likes short answers."] and row["system_prompt"] == persona.render()


@pytest.mark.parametrize("values", [[], [3], [Persona(user_id="u"), Interaction(user_id="u", query="q", response="r")]])
def test_what_is_no_dataset_is_named(values):
    with pytest.raises(InputError, match="expected"):
        to_dataset(values)


def test_splits_are_chosen_by_name(tmp_path):
    data = to_dataset([Interaction(user_id="u", query="q", response="r")])
    splits = datasets.DatasetDict({"train": data, "test": data})
    splits.save_to_disk(tmp_path / "saved")
    assert len(list(read_users(f"{tmp_path}/saved:test"))) == 1
    for source, expected in ((tmp_path / "saved", "Name it.*saved:train"), (f"{tmp_path}/saved:dev", "train, test")):
        with pytest.raises(InputError, match=expected):
            list(read_users(source))
    with pytest.raises(InputError, match="one split"):
        list(read_users(splits))


def test_the_names_of_classes_are_the_answers(tmp_path):
    data = datasets.Dataset.from_dict({"user_id": ["u", "u"], "query": ["a", "b"], "response": [0, 1]})
    data = data.cast_column("response", datasets.ClassLabel(names=["no", "yes"]))
    data.to_parquet(tmp_path / "data.parquet")
    for source in (data, tmp_path / "data.parquet"):
        assert [i.response for i in next(read_users(source)).interactions] == ["no", "yes"]
    data.select([]).to_parquet(tmp_path / "empty.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "data.parquet").read_bytes()[:200])
    for name, reason in (("empty", "no rows"), ("cut", "a parquet file with a row for each interaction")):
        with pytest.raises(InputError, match=reason):
            list(read_users(tmp_path / f"{name}.parquet"))


def test_the_package_does_not_import_datasets():
    code = "import sys, persona_dspy, persona_dspy.data as d; d.read_users; print('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
