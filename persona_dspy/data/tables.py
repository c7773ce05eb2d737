"""CSV, Parquet, saved and loaded Hugging Face datasets, memory-mapped. Imports datasets only when it reads one."""

from __future__ import annotations

import csv
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from persona_dspy.data.tasks import Place

__all__ = ["dataset_place", "is_dataset", "open_table", "split_of", "table_form"]

Form = Literal["csv", "parquet", "arrow", "saved"]
_SUFFIXES: Mapping[str, Form] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
_BUFFER, _BATCH = 1 << 20, 256  # bytes read of a Parquet column at once, rows written at once
_MAGIC: Mapping[bytes, Form] = {b"PAR1": "parquet", b"ARROW1": "arrow"}


def is_dataset(source: object) -> bool:
    """Whether it is a ``Dataset``, ``DatasetDict`` or ``IterableDataset``; datasets is not imported for it."""
    datasets = sys.modules.get("datasets")
    kinds = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    return datasets is not None and isinstance(source, tuple(getattr(datasets, kind) for kind in kinds))


def split_of(path: str | Path) -> tuple[Path, str | None]:
    """``folder:train`` as folder and split, where there is a folder or file of the name before the colon.

    Example:
        >>> split_of("nowhere.jsonl")
        (PosixPath('nowhere.jsonl'), None)
    """
    path = Path(path)
    before, colon, split = path.name.rpartition(":")
    bare = path.with_name(before) if colon and before and split else path
    return (bare, split) if bare != path and not path.exists() and bare.exists() else (path, None)


def table_form(path: Path) -> Form | None:
    """``"csv"``, ``"parquet"``, ``"arrow"`` or ``"saved"`` (a folder of ``save_to_disk``); None for other files."""
    if path.is_dir():
        names = {entry.name for entry in path.iterdir()}
        return "saved" if names & {"dataset_dict.json", "state.json"} else None
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(6)
    for magic, form in _MAGIC.items():
        if head.startswith(magic):
            return form
    return _SUFFIXES.get(path.suffix.casefold()) if head else None


def dataset_place(data: Any) -> Place:
    """Where a row of a loaded dataset was read."""
    return Place(file=type(data).__name__)


@contextmanager
def open_table(source: Any, form: Form | None = None, split: str | None = None) -> Generator[Any]:
    """A ``Dataset`` (or ``IterableDataset``) of the rows of a file, folder or dataset; CSV values are text.

    What is written to be mapped goes into a folder that is removed at the end: it holds users' texts.

    Raises:
        DataError: it cannot be read, or has several splits and none is named.
    """
    if is_dataset(source):
        yield _one_split(source, split, dataset_place(source))
        return
    import datasets
    from datasets.exceptions import DatasetGenerationError

    path, at = Path(source), Place(file=str(source))
    with TemporaryDirectory(prefix="persona-dspy-") as folder, _quiet(datasets):
        try:
            if form == "saved":
                data: Any = datasets.load_from_disk(str(path))
            elif form == "arrow":
                data = datasets.Dataset.from_file(str(path))
            elif form == "parquet":
                data = _from_parquet(datasets, path, folder)
            else:
                data = _from_csv(datasets, path, folder)
        except (DatasetGenerationError, ValueError, OSError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            reason = "no rows" if "corresponds to no data" in reason else reason
            raise at.error(None, reason, f"a {form} file with a row for each interaction") from None
        yield _one_split(data, split, at)


def _from_parquet(datasets: Any, path: Path, folder: str) -> Any:
    """The file's rows as an Arrow file that is mapped, written a few rows at a time: ``Dataset.from_parquet`` reads 16
    row groups ahead, which takes more memory than the file is large."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    mapped = Path(folder, "rows.arrow")
    with ParquetFile(path, memory_map=True, buffer_size=_BUFFER) as file:
        if not file.metadata.num_rows:
            raise ValueError("no rows")
        _check_names(path, file.schema_arrow.names)
        with pa.OSFile(str(mapped), "wb") as sink, pa.ipc.new_stream(sink, file.schema_arrow) as writer:
            for batch in file.iter_batches(batch_size=_BATCH):
                writer.write_batch(batch)
    return datasets.Dataset.from_file(str(mapped))


def _from_csv(datasets: Any, path: Path, folder: str) -> Any:
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        separator = max(",;\t|", key=first.count)
        header = next(csv.reader(file, delimiter=separator), [])
    named = [name or f"Unnamed: {n}" for n, name in enumerate(header)]
    _check_names(path, named)
    features = datasets.Features({name: datasets.Value("string") for name in named})
    same: dict[str, Any] = {"keep_default_na": False, "encoding": "utf-8-sig", "sep": separator, "index_col": False}
    return datasets.Dataset.from_csv(str(path), features=features, cache_dir=folder, **same)


def _check_names(path: Path, named: list[str]) -> None:
    if len(set(named)) < len(named):
        again = next(name for name in named if named.count(name) > 1)
        raise Place(file=str(path)).error(None, named, f"columns of different names; {again!r} is there twice")


def _one_split(data: Any, split: str | None, at: Place) -> Any:
    names = list(data) if isinstance(data, dict) else []
    if not names:
        if split is not None:
            raise at.error("split", split, "no split: there is one table")
        return data
    if split is None and len(names) > 1:
        raise at.error("split", names, "one split", f"Name it: {at.file}:{names[0]}, or give the one in Python")
    if split is not None and split not in names:
        raise at.error("split", split, f"one of {', '.join(names)}")
    return data[split or names[0]]


@contextmanager
def _quiet(datasets: Any) -> Generator[None]:
    showing = not datasets.are_progress_bars_disabled()
    level = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if showing:
            datasets.enable_progress_bars()
