"""How users and files meet: the key and the file name of a user, and writing a file whole or not at all."""

from __future__ import annotations

import errno
import importlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from hashlib import blake2b, sha256
from pathlib import Path
from typing import IO, Any

__all__ = [
    "advised",
    "alone_with",
    "lock_file",
    "lock_open_file",
    "persona_file_name",
    "persona_path",
    "remove_left_folders",
    "remove_own_folders",
    "temporary_folder",
    "user_key",
    "write_bytes",
    "write_text",
]

_BEYOND = 2**31 - 2  # where Windows locks a byte
_PREFIX = "persona-dspy-"  # of temporary folders; the number of the process that made them follows


def user_key(user_id: str) -> str:
    """The name a user goes by wherever the id itself may not stand: 32 hexadecimal digits.

    Example:
        >>> user_key("u1")
        '53199585bddea28e67fe7143a42baef7'
    """
    return blake2b(user_id.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def persona_file_name(user_id: str) -> str:
    """A file name for a user: readable where the id allows it, different for different ids on any file system.

    Where the readable part is not the whole id, only the digest tells ids apart, and it is long enough for any number.

    Example:
        >>> persona_file_name("u1")
        'u1-bb82030d.json'
        >>> persona_file_name("Ü1")
        '1-c96f455e04ac2f78f3266f7fc34daaad.json'
    """
    readable = re.sub(r"[^a-z0-9_-]+", "-", user_id.lower()).strip("-")[:40]
    digest = sha256(user_id.encode("utf-8", "surrogatepass")).hexdigest()[: 8 if readable == user_id else 32]
    return f"{readable}-{digest}.json" if readable else f"{digest}.json"


def persona_path(path: str | os.PathLike[str], user_id: str) -> Path:
    """``path``, or where it is a directory the user's file in it."""
    target = Path(path)
    return target / persona_file_name(user_id) if target.is_dir() else target


def write_text(path: Path, text: str, *, mode: int = 0o644) -> None:
    """As ``write_bytes``, in UTF-8."""
    write_bytes(path, text.encode(), mode=mode)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    """Write a file so that it is never seen half-written: a temporary file beside it, flushed, then renamed.

    The temporary file, ``.*.part``, is locked until it is renamed: one that is not was left by a process that was
    killed.

    Args:
        mode: who may read it; 0o600 for what only this account may see.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            lock_open_file(file, wait=False)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, mode)
            if os.name == "posix":
                os.replace(name, path)
        if os.name != "posix":  # Windows renames no open file
            os.replace(name, path)
    except BaseException as failure:
        Path(name).unlink(missing_ok=True)
        if isinstance(failure, OSError) and failure.errno is not None:  # it names no file, or the temporary one
            failure.filename = os.fspath(path)
        raise


_ADVICE = {
    errno.ENOSPC: "free some space and type the same command again: what was finished is kept",
    errno.EDQUOT: "free some of this account's space and type the same command again: what was finished is kept",
    errno.EROFS: "expected a place that can be written to: name another one",
    errno.EACCES: "expected a place that this account may read and write: check its owner and mode",
    errno.EPERM: "expected a place that this account may read and write: check its owner and mode",
    errno.EMFILE: "this process has too many files open; type: ulimit -n 4096",
    errno.ENAMETOOLONG: "expected a shorter name",
    errno.ENOENT: "expected a file that is there",
    errno.EIO: "the disk fails: is it full, or was it taken out?",
}


def advised(failure: OSError) -> str:
    """A failure of the system in one line: where, what, and what to do.

    Example:
        >>> advised(OSError(errno.ENAMETOOLONG, "File name too long", "x.json"))
        "'x.json': File name too long; expected a shorter name"
    """
    where = f"{failure.filename!r}: " if failure.filename else ""
    advice = _ADVICE.get(failure.errno or 0)
    what = failure.strerror or f"{type(failure).__name__}: {failure}"
    return f"{where}{what}" + (f"; {advice}" if advice else "")


def lock_file(file: Path) -> IO[Any] | None:
    """The file, made where it is missing, locked until it is closed or the process ends; None where it is locked.

    Raises:
        OSError: it cannot be opened.
    """
    handle = open(file, "a")  # noqa: SIM115 - open as long as the lock is held
    if lock_open_file(handle, wait=False):
        return handle
    handle.close()
    return None


@contextmanager
def alone_with(file: Path, waiting: Callable[[], None] = lambda: None) -> Generator[None]:
    """Between reading a file and writing it anew: other processes that do so wait until the block ends.

    The lock is a file beside it, ``.NAME.lock``, removed at the end: one on the file itself is lost with a rename.

    Args:
        waiting: called once where another holds it.

    Raises:
        OSError: the folder cannot be written to.
    """
    beside = file.with_name(f".{file.name}.lock")
    handle = open(beside, "a")  # noqa: SIM115 - open as long as the lock is held
    if not lock_open_file(handle, wait=False):
        waiting()
        lock_open_file(handle, wait=True)
    while not _is_still(handle, beside):  # the one before us removed it
        handle.close()
        handle = open(beside, "a")  # noqa: SIM115
        lock_open_file(handle, wait=True)
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file; the next one takes it over
            beside.unlink()
        handle.close()


def _is_still(handle: IO[Any], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), file.stat())
    except FileNotFoundError:
        return False


def lock_open_file(handle: IO[Any], *, wait: bool) -> bool:
    """Lock an open file until it is closed, on POSIX in every process that inherited it, or all of them end.

    Args:
        wait: until others have let it go; else False where it is locked.
    """
    try:
        import fcntl
    except ImportError:
        return _lock_on_windows(handle, wait=wait)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        if wait:
            raise
        return False
    return True


def _lock_on_windows(handle: IO[Any], *, wait: bool) -> bool:
    """A lock on one byte beyond any content, since Windows keeps others from reading what is locked."""
    msvcrt: Any = importlib.import_module("msvcrt")
    while True:
        place = handle.tell()
        handle.seek(_BEYOND)
        try:
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
            return True
        except OSError:
            if not wait:
                return False
        finally:
            handle.seek(place)
        time.sleep(0.05)


def temporary_folder(within: str | os.PathLike[str] | None = None) -> _TemporaryFolder:
    """A folder that is removed when the block ends, or by ``remove_left_folders`` where this process was killed."""
    return _TemporaryFolder(within)


class _TemporaryFolder:
    def __init__(self, within: str | os.PathLike[str] | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=within))

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the folder and all in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def remove_left_folders(*places: str | os.PathLike[str]) -> int:
    """Remove temporary folders, in ``places`` or where they usually are, of processes of this account that ended; how
    many."""
    count = 0
    for place in places or (tempfile.gettempdir(),):
        for folder in Path(place).glob(f"{_PREFIX}[0-9]*-*"):
            with suppress(OSError, ValueError):
                process = int(folder.name.removeprefix(_PREFIX).partition("-")[0])
                if process != os.getpid() and folder.stat().st_uid == os.getuid() and not _is_alive(process):
                    shutil.rmtree(folder, ignore_errors=True)
                    count += 1
    return count


def remove_own_folders() -> None:
    """Remove the temporary folders of this process, where it ends at once."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}{os.getpid()}-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
