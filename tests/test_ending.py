"""Ctrl-C, SIGTERM and kills: every command ends within two seconds, whatever hangs, and leaves nothing broken."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

HANGS = """
import sys, threading, time
from persona_dspy.cli import app, main
from persona_dspy.cli.ending import at_the_latest
from persona_dspy.core import temporary_folder

@app.command("hang")
def hang():
    folder = temporary_folder()
    with at_the_latest(lambda: print("last words", flush=True)):
        thread = threading.Thread(target=time.sleep, args=(60,))
        thread.start()
        try:
            print("ready", folder.path, flush=True)
            time.sleep(60)
        finally:
            time.sleep(60)  # as where a finally waits for an LM

main(["hang"])
"""


def started(code):
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stdout
    return process, process.stdout.readline().split()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_hangs_ends_within_two_seconds_without_a_traceback(number):
    process, folder = started(HANGS)
    assert Path(folder).is_dir()
    process.send_signal(number)
    began = time.monotonic()
    out, err = process.communicate(timeout=20)
    assert time.monotonic() - began < 2.5 and process.returncode == 130
    assert "last words" in out and "Traceback" not in err and "interrupted" in err
    assert not Path(folder).exists()


def test_a_second_signal_ends_it_at_once():
    process, _ = started(HANGS)
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    process.communicate(timeout=20)
    assert time.monotonic() - began < 0.9 and process.returncode == 130


def test_folders_of_a_process_that_was_killed_go_at_the_next_start():
    from persona_dspy.core import remove_left_folders, temporary_folder

    process, folder = started(HANGS)
    process.kill()
    process.communicate()
    with temporary_folder() as own:
        assert remove_left_folders() >= 1
        assert not Path(folder).exists() and own.is_dir()


MAKES = (
    "from persona_dspy.tracking import MlflowTracker; print('ready', flush=True); MlflowTracker().begin({}); print(1)"
)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.5, 2.5, 3.5, 4.5, 6.0, 8.0])
def test_a_kill_while_mlflow_makes_its_file_breaks_nothing(seconds, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen([sys.executable, "-c", MAKES], cwd=tmp_path, env=environment)
    time.sleep(seconds)
    process.kill()
    process.wait()
    file = tmp_path / "mlflow.db"
    if file.exists():
        with sqlite3.connect(file) as made:
            assert made.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        made.close()
    subprocess.run([sys.executable, "-c", MAKES], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert [p.name for p in tmp_path.glob("persona-dspy-*")] == []
