"""Files are written whole or not at all, for those who may read them."""

import errno
import os
import stat
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from persona_dspy.agent import PageCache
from persona_dspy.cli import main
from persona_dspy.core import Persona, alone_with, lock_file, lock_open_file, write_bytes, write_text


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_that_cannot_be_renamed_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "file.txt"
    write_text(file, "old ü")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_bytes(file, b"new")
    assert file.read_text("utf-8") == "old ü"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.skipif(os.name == "nt", reason="Windows knows no such modes")
def test_files_are_readable_to_all_unless_told_otherwise_and_cached_pages_to_one_account(tmp_path):
    write_text(tmp_path / "open", "")
    write_text(tmp_path / "closed", "", mode=0o600)
    assert (mode(tmp_path / "open"), mode(tmp_path / "closed")) == (0o644, 0o600)
    PageCache(tmp_path / "pages").put("ana", "key", [])
    (page,) = (tmp_path / "pages").rglob("*.json")
    assert (mode(page), mode(page.parent)) == (0o600, 0o700)


def test_one_at_a_time_reads_a_file_and_writes_it_anew(tmp_path):
    file, waited = tmp_path / "count.txt", []
    file.write_text("0")

    def count(_):
        with alone_with(file, lambda: waited.append(1)):
            number = int(file.read_text())
            time.sleep(0.001)
            write_text(file, str(number + 1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(24)))
    assert (file.read_text(), os.listdir(tmp_path), bool(waited)) == ("24", ["count.txt"], True)


@pytest.mark.parametrize("windows", [False, True])
def test_an_open_file_is_locked_until_it_is_closed(tmp_path, monkeypatch, windows):
    if windows:  # its locks stood in for by POSIX ones
        import fcntl

        flock = lambda handle, *_: fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # noqa: E731
        monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(locking=flock, LK_NBLCK=2))
        monkeypatch.setitem(sys.modules, "fcntl", None)
    (tmp_path / "f").write_text("kept")
    first = lock_file(tmp_path / "f")
    assert first is not None and lock_file(tmp_path / "f") is None
    with (tmp_path / "f").open("a") as second, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lock_open_file, second, wait=True)
        with pytest.raises(TimeoutError):
            waiting.result(0.1)
        first.write(", longer")
        first.close()
        assert waiting.result(5)
    assert (tmp_path / "f").read_text() == "kept, longer"


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.ENOSPC, "free some space and type the same command again"), (errno.EACCES, "check its owner and mode")],
)
def test_a_command_that_cannot_write_says_in_one_line_where_and_what_to_do(tmp_path, monkeypatch, capsys, number, says):
    file = tmp_path / "p.json"
    Persona.from_text("Likes tea.", user_id="ana").to_json(file)
    before = file.read_bytes()

    def refuse(_file):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.fsync", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["edit", str(file), "--add", "Never mention prices."])
    told = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and "\n" not in told
    assert told.startswith(f"persona-dspy: '{file}': {os.strerror(number)}; ") and says in told
    assert file.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["p.json"]
