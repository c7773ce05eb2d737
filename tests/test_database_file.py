"""MLflow's file: whole or not at all."""

import shutil
import sqlite3

import pytest

from persona_dspy.tracking import MlflowTracker, tracker_for
from persona_dspy.tracking import tracker as tracker_file
from persona_dspy.tracking.database_file import set_aside_broken


@pytest.fixture
def made(monkeypatch, empty_mlflow):
    monkeypatch.setattr(tracker_file, "make_database", lambda file: shutil.copy(empty_mlflow, file))


@pytest.mark.parametrize("left", ["empty", "first tables", "no version"])
def test_what_an_interrupted_mlflow_left_is_set_aside(left, tmp_path, empty_mlflow, made):
    file = tmp_path / "mlflow.db"
    if left == "empty":
        file.touch()
    else:
        shutil.copy(empty_mlflow, file)
        with sqlite3.connect(file) as database:
            database.execute("DELETE FROM alembic_version" if left == "no version" else "DROP TABLE alembic_version")
        database.close()
    tracker = MlflowTracker(f"sqlite:///{file}")
    with pytest.warns(UserWarning, match="was not whole"):
        tracker.begin({})
    tracker.end({})
    assert len(list(tmp_path.glob("mlflow.db.broken-*"))) == 1 and not tracker.trouble


@pytest.mark.parametrize(
    "change", ["", "DELETE FROM alembic_version; INSERT INTO runs (run_uuid) VALUES ('r')", "other"]
)
def test_a_whole_file_and_one_with_runs_stay(change, tmp_path, empty_mlflow):
    file = tmp_path / "mlflow.db"
    if change != "other":
        shutil.copy(empty_mlflow, file)
    with sqlite3.connect(file) as database:
        database.executescript("CREATE TABLE mine (a)" if change == "other" else change)
    database.close()
    assert set_aside_broken(file) is None and file.exists()


def test_without_a_file_that_can_be_used_work_goes_on_and_says_so(tmp_path):
    (tmp_path / "mlflow.db").write_text("no database at all, but somebody's notes")
    assert tracker_for(None).optional and not tracker_for("sqlite:///mlflow.db").optional
    tracker = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", optional=True)
    tracker.begin({})
    tracker.user("u", None, "failed")
    tracker.end({})
    tracker.abandon()
    assert "no runs are written" in tracker.where and "cannot be used" in tracker.where
    assert (tmp_path / "mlflow.db").read_text().startswith("no database")
