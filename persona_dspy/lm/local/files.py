"""A model file: its folder, whether it is GGUF, and its identity by sha256."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from persona_dspy.core import write_text
from persona_dspy.errors import ModelFileError

__all__ = ["check_gguf", "model_name", "models_dir", "weights_hash"]

_HASHES = "hashes.json"


def models_dir() -> Path:
    """Where model files lie: ``$PERSONA_DSPY_MODELS``, else ``~/.cache/persona_dspy/models``. Not created here."""
    folder = os.environ.get("PERSONA_DSPY_MODELS")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "persona_dspy" / "models"


def check_gguf(path: str | os.PathLike[str]) -> Path:
    """``path`` if it is a readable GGUF file (its first four bytes say so).

    Raises:
        ModelFileError: missing, unreadable or another kind of file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelFileError(
            f"model file {str(path)!r}: expected a readable .gguf file ({error.strerror}); "
            "fetch a small one with: persona-dspy models pull smol"
        ) from error
    if magic != b"GGUF":
        raise ModelFileError(
            f"model file {str(path)!r}: starts with {magic!r}, expected b'GGUF'; convert the weights to GGUF "
            "or fetch a small model with: persona-dspy models pull smol"
        )
    return path


def weights_hash(path: str | os.PathLike[str]) -> str:
    """sha256 (hex) of a file, remembered in ``models_dir()`` by path, size and mtime: 1 GB is read only once.

    A models folder that cannot be written is no error: the hash is computed again in the next process.
    """
    path = Path(path).resolve()
    stat = path.stat()
    stamp = [stat.st_size, stat.st_mtime_ns]
    entry = _read_hashes().get(str(path))
    if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
        return str(entry[2])
    digest = _sha256(path)
    _remember(path, [*stamp, digest])
    return digest


def model_name(path: str | os.PathLike[str]) -> str:
    """DSPy's name for a local model, part of its cache keys: it changes when the weights do.

    ``local/<stem>-<first 8 hex digits of the sha256>``.
    """
    return f"local/{Path(path).stem}-{weights_hash(path)[:8]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_hashes() -> dict[str, object]:
    try:
        hashes = json.loads((models_dir() / _HASHES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return hashes if isinstance(hashes, dict) else {}


def _remember(path: Path, entry: list[object]) -> None:
    with suppress(OSError):
        write_text(models_dir() / _HASHES, json.dumps({**_read_hashes(), str(path): entry}, indent=1))
