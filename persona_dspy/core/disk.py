"""How users and files meet: the key and the file name of a user, and writing a file whole or not at all."""

from __future__ import annotations

import os
import re
import tempfile
from hashlib import blake2b, sha256
from pathlib import Path

__all__ = ["persona_file_name", "persona_path", "user_key", "write_bytes", "write_text"]


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

    Args:
        mode: who may read it; 0o600 for what only this account may see.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
