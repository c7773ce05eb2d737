"""The official LaMP files over HTTP: their addresses, and a download that can be continued.

A file is written to ``<name>.part`` and renamed last: a file of the final name is complete. A cut download is
continued by ``Range``, guarded by ``If-Range`` (the server's ETag or date), so that two versions are never joined.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from persona_dspy.data.lamp import get_task
from persona_dspy.errors import InputError, RunError

__all__ = ["BASE_URL", "pull", "urls"]

BASE_URL = "https://ciir.cs.umass.edu/downloads/LaMP"
"""Where the benchmark's authors publish it (lamp-benchmark.github.io/download)."""

_FOLDERS = {
    "lamp-1": "LaMP_1",
    "lamp-2m": "LaMP_2/new",
    "lamp-2n": "LaMP_2",
    "lamp-3": "LaMP_3",
    "lamp-4": "LaMP_4",
    "lamp-5": "LaMP_5",
    "lamp-7": "LaMP_7",
}
_ATTEMPTS = 4


def urls(task: str, *, split: str = "dev", by: str = "time", base_url: str = BASE_URL) -> tuple[str, str]:
    """Addresses of a task's golds and questions.

    Args:
        task: a LaMP task's name.
        split: ``"train"`` or ``"dev"`` (the golds of ``"test"`` are withheld by the benchmark).
        by: ``"time"`` (a user's questions come after the profile: what personalisation needs, and the paper's
            setting) or ``"user"`` (train and dev have different users).

    Raises:
        InputError: an unknown task, split or separation, or lamp-6, whose texts are licensed.

    Example:
        >>> urls("lamp-2m")[1].rpartition("/LaMP/")[2]
        'time/LaMP_2/new/dev/dev_questions.json'
    """
    name = get_task(task).name
    if name.startswith("longlamp"):
        raise InputError(
            f"task {name!r}: expected one of LaMP's; LongLaMP is on the Hugging Face hub: in Python, type "
            "json.dump(list(load_dataset('LongLaMP/LongLaMP', 'abstract_generation_user', split='val')), file), say"
        )
    if name == "lamp-6":
        raise InputError("task 'lamp-6': expected a public one; its mails are the licensed Avocado corpus (LDC2015T03)")
    if split not in ("train", "dev"):
        raise InputError(f"split {split!r}: expected 'train' or 'dev' (the benchmark withholds the golds of 'test')")
    if by not in ("time", "user"):
        raise InputError(f"separation {by!r}: expected 'time' or 'user'")
    folder = f"{base_url}/{'time/' if by == 'time' else ''}{_FOLDERS[name]}/{split}"
    return f"{folder}/{split}_outputs.json", f"{folder}/{split}_questions.json"


def pull(
    task: str,
    folder: str | Path,
    *,
    split: Literal["train", "dev"] = "dev",
    by: Literal["time", "user"] = "time",
    base_url: str = BASE_URL,
    on_progress: Callable[[str, int, int | None], None] | None = None,
    transport: Any = None,
) -> Path:
    """Fetch a LaMP task's questions and golds into ``folder/<task>-<by>/``; files already there are kept.

    Args:
        task, split, by: see ``urls``.
        on_progress: called as (file name, bytes so far, bytes in all or None).
        transport: an ``httpx`` transport instead of the network's, for tests and proxies.

    Returns:
        The questions file, for ``read_users``.

    Raises:
        InputError: see ``urls``. RunError: no network, the server refused, or what came is no LaMP file; what was
            fetched so far stays and the same call continues it.
    """
    import httpx

    addresses = urls(task, split=split, by=by, base_url=base_url.rstrip("/"))
    target = Path(folder) / f"{get_task(task).name}-{by}"
    target.mkdir(parents=True, exist_ok=True)
    report = on_progress or _silent
    questions = target / f"{split}_questions.json"
    with httpx.Client(transport=transport, follow_redirects=True, timeout=httpx.Timeout(30)) as client:
        for url in addresses:  # the golds first, so that a questions file is never there without them
            _fetch(client, url, target / url.rpartition("/")[2], report)
    return questions


def _silent(name: str, done: int, total: int | None) -> None:
    pass


def _fetch(client: Any, url: str, target: Path, report: Callable[[str, int, int | None], None]) -> None:
    import httpx
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    if target.exists():
        return
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(httpx.TransportError),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_exponential(multiplier=0.2, max=5),
            reraise=True,
        ):
            with attempt:
                _continue(client, url, target, report)
    except httpx.HTTPError as error:
        raise RunError(
            f"{url}: {type(error).__name__} {error}; expected a network that reaches it. Run the same command again to"
            f" continue, or fetch it elsewhere and put it at {target}"
        ) from None


def _continue(client: Any, url: str, target: Path, report: Callable[[str, int, int | None], None]) -> None:
    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.tag")
    done = part.stat().st_size if part.exists() and tag.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers |= {"Range": f"bytes={done}-", "If-Range": tag.read_text()}
    with client.stream("GET", url, headers=headers) as answer:
        total = _total(answer)
        if answer.status_code == 416:
            if done != total:
                _drop(part, tag)
                return _continue(client, url, target, report)
        elif answer.status_code == 206:
            if not answer.headers.get("content-range", "").startswith(f"bytes {done}-"):
                _drop(part, tag)
                raise RunError(f"{url}: range {answer.headers.get('content-range')!r}, expected one from byte {done}")
            _append(answer, part, done, total, report)
        elif answer.status_code == 200:
            _drop(part, tag)
            if _validator(answer):
                tag.write_text(_validator(answer))
            _append(answer, part, 0, total, report)
        else:
            raise RunError(f"{url}: HTTP {answer.status_code}, expected 200. See lamp-benchmark.github.io/download")
    size = part.stat().st_size
    if not size or (total is not None and size != total):
        raise RunError(f"{url}: {size} bytes, expected {total or 'some'}. Run the same command again to continue")
    os.replace(part, target)
    tag.unlink(missing_ok=True)


def _append(
    answer: Any, part: Path, done: int, total: int | None, report: Callable[[str, int, int | None], None]
) -> None:
    with part.open("ab" if done else "wb") as file:
        for block in answer.iter_raw():
            # A wrong address on this server answers 200 with a page, not 404.
            if not done and block.lstrip()[:1] not in (b"[", b"{"):
                raise RunError(f"{answer.url}: got {block[:40]!r}, expected JSON: the address holds no LaMP file")
            file.write(block)
            done += len(block)
            report(part.name.removesuffix(".part"), done, total)


def _validator(answer: Any) -> str:
    etag = answer.headers.get("etag", "W/")  # a weak one does not promise the same bytes
    return answer.headers.get("last-modified", "") if etag.startswith("W/") else etag


def _total(answer: Any) -> int | None:
    whole = answer.headers.get("content-range", "").rpartition("/")[2]
    whole = whole if answer.status_code in (206, 416) else answer.headers.get("content-length", "")
    return int(whole) if whole.isdigit() else None


def _drop(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
