"""Knowledge sources that are not the user's own: Wikipedia, or a folder of documents.

What comes back was written by strangers: data, never instructions.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from typing import Any, Protocol

from persona_dspy.core import Erasure, write_text
from persona_dspy.errors import DataError, InputError, RunError

__all__ = ["Document", "KnowledgeSource", "LocalCorpus", "PageCache", "Wikipedia"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A page that was found: its title, its text (or the beginning), and where it is."""

    title: str
    text: str
    url: str = ""


class KnowledgeSource(Protocol):
    """Strategy: where ``search_knowledge`` looks. Shared by all users; keeps nothing of one for another."""

    def search(self, query: str, k: int) -> Sequence[Document]:
        """At most ``k`` documents, best first; none where nothing matches.

        Raises:
            RunError: the source cannot be reached or read.
        """
        ...


class LocalCorpus:
    """Documents of this machine, found by BM25; the source that needs no network.

    Args:
        documents: the documents; ``from_path`` reads them.

    Example:
        >>> corpus = LocalCorpus([Document(title="Alien", text="A crew meets a creature in space."),
        ...                       Document(title="Heat", text="A thief and a detective in Los Angeles.")])
        >>> [d.title for d in corpus.search("a detective", k=1)]
        ['Heat']
    """

    def __init__(self, documents: Iterable[Document]) -> None:
        self.documents = tuple(documents)
        if not self.documents:
            raise InputError(
                "LocalCorpus([]): expected at least one document; LocalCorpus.from_path(folder) reads some"
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalCorpus:
        return self  # the same documents, however often DSPy copies the program

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> LocalCorpus:
        """Documents from a folder of ``.txt`` and ``.md`` files (title = name of the file), or from a JSONL file with
        ``text`` and, where known, ``title`` and ``url`` a line.

        Raises:
            DataError: no such path, nothing in it, or a row without text.
        """
        place = Path(path)
        if place.is_dir():
            files = sorted(f for f in place.rglob("*") if f.suffix in (".txt", ".md") and f.is_file())
            found = [Document(title=f.stem, text=_read(f), url=f.relative_to(place).as_posix()) for f in files]
        elif place.is_file():
            found = list(_rows(place))
        else:
            raise DataError(str(place), expected="a folder of .txt or .md files, or a JSONL file", value=str(place))
        found = [document for document in found if document.text.strip()]
        if not found:
            raise DataError(str(place), expected="at least one document that is not empty")
        return cls(found)

    def search(self, query: str, k: int) -> Sequence[Document]:
        ranking, index = self._ranking
        words = ranking.encode([query])[0]
        if not words or k < 1:
            return []
        scores = index.scores(words, None)
        best = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k]
        return [self.documents[i] for i in best if scores[i] > 0]

    @cached_property
    def _ranking(self) -> tuple[Any, Any]:
        from persona_dspy.memory import BM25  # imports numpy, which a page cache does not need

        ranking = BM25()
        index = ranking.index()
        index.add(ranking.encode([f"{d.title} {d.text}" for d in self.documents]))
        return ranking, index


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError(str(file), expected="text in UTF-8") from None


def _rows(file: Path) -> Iterable[Document]:
    for number, line in enumerate(_read(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            raise DataError(str(file), line=number, value=line, expected="a JSON object") from None
        text = row.get("text") if isinstance(row, dict) else None
        if not isinstance(text, str):
            raise DataError(str(file), line=number, field="text", value=text, expected="a text")
        yield Document(title=str(row.get("title") or f"line {number}"), text=text, url=str(row.get("url") or ""))


class PageCache:
    """Pages that a source gave, on disk, a folder a user: what somebody searched for is that person's.

    Names of folders and files are hashes; the search words are not written. ``forget`` removes a user's folder.

    Args:
        folder: where; made when first written to.
        days: pages older than this are asked for again.
    """

    def __init__(self, folder: str | os.PathLike[str], *, days: float = 30.0) -> None:
        self.folder, self.days = Path(folder), days

    def get(self, user_id: str, key: str) -> list[Document] | None:
        """What was put under ``key``, or None: nothing, too old, or unreadable."""
        file = self._file(user_id, key)
        try:
            if time.time() - file.stat().st_mtime > self.days * 86_400:
                return None
            return [Document(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError):
            return None

    def put(self, user_id: str, key: str, documents: Sequence[Document]) -> None:
        """Keep the pages, whole or not at all."""
        file = self._file(user_id, key)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(file, json.dumps([asdict(d) for d in documents], ensure_ascii=False), mode=0o600)

    def forget(self, user_id: str) -> Erasure:
        """Remove all that is kept of a user; says how many files there were.

        Raises:
            RunError: the user's folder cannot be removed.
        """
        folder = self._file(user_id, "").parent
        count = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
        rmtree(folder, ignore_errors=True)
        if folder.exists():
            raise RunError(f"cache {str(folder)!r}: cannot be removed; expected a folder this process may write to")
        return Erasure(place=str(self.folder), removed={"files": count})

    def _file(self, user_id: str, key: str) -> Path:
        names = [sha256(text.encode("utf-8", "replace")).hexdigest()[:40] for text in (user_id, f"{user_id}\0{key}")]
        return self.folder / names[0] / f"{names[1]}.json"


class Wikipedia:
    """Search in Wikipedia by its public API: titles and opening paragraphs. Thread-safe.

    Search words leave this machine. They are not written down, unless a ``cache`` is given.

    Args:
        contact: a way to reach you (a mail address or URL); Wikipedia asks programs for one.
        language: which Wikipedia, such as ``"en"``.
        timeout: seconds for one try.
        tries: how often, in all; pauses between grow up to 8 s.
        cache: a ``PageCache``; None = none.
        url: another server with MediaWiki's API, such as ``https://wiki.example.org/w/api.php``.

    Example:
        >>> Wikipedia("me@example.org", language="de").url
        'https://de.wikipedia.org/w/api.php'
    """

    def __init__(
        self,
        contact: str,
        *,
        language: str = "en",
        timeout: float = 10.0,
        tries: int = 3,
        cache: PageCache | None = None,
        url: str = "",
        pause: float = 0.5,
    ) -> None:
        if not contact.strip():
            raise InputError(f"Wikipedia({contact!r}): expected a mail address or URL by which you can be reached")
        if not language.replace("-", "").isalnum():
            raise InputError(f"Wikipedia(language={language!r}): expected a language code such as 'en'")
        self.url = url or f"https://{language}.wikipedia.org/w/api.php"
        self.agent = f"persona-dspy/0.1 ({contact.strip()})"
        self.timeout, self.tries, self.cache, self.pause = timeout, max(1, tries), cache, pause

    def __deepcopy__(self, memo: dict[int, Any]) -> Wikipedia:
        return self

    def search(self, query: str, k: int) -> Sequence[Document]:
        """At most ``k`` pages (20 is the API's most), in the order of Wikipedia's own ranking.

        Raises:
            RunError: no usable answer after all tries.
        """
        from persona_dspy.agent.context import current_answer  # imports dspy, which a corpus alone does not need

        words, k = " ".join(query.split())[:300], max(1, min(k, 20))
        if not words:
            return []
        user, key = current_answer().user_id, f"{self.url}\0{k}\0{words}"
        if self.cache is not None and user is not None and (known := self.cache.get(user, key)) is not None:
            return known
        found = _pages(self._ask(words, k), k)
        if self.cache is not None and user is not None:
            self.cache.put(user, key, found)
        return found

    def _ask(self, words: str, k: int) -> Any:
        import httpx
        from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

        query = {
            "action": "query", "format": "json", "formatversion": "2", "generator": "search", "gsrsearch": words,
            "gsrlimit": str(k), "prop": "extracts|info", "inprop": "url", "exintro": "1", "explaintext": "1",
            "exlimit": "max", "maxlag": "5",
        }  # fmt: skip
        again = Retrying(
            retry=retry_if_exception_type((httpx.TransportError, _Busy)),
            stop=stop_after_attempt(self.tries),
            wait=wait_exponential(multiplier=self.pause, max=8),
            reraise=True,
        )
        try:
            return again(self._get, query)
        except (httpx.HTTPError, _Busy, ValueError) as failure:
            told = str(failure) or type(failure).__name__
            raise RunError(
                f"Wikipedia at {self.url!r} gives no usable answer ({told[:200]}); try again later"
            ) from None

    def _get(self, query: dict[str, str]) -> Any:
        import httpx

        answer = httpx.get(self.url, params=query, headers={"User-Agent": self.agent}, timeout=self.timeout)
        if answer.status_code in (429, 500, 502, 503, 504):
            raise _Busy(f"status {answer.status_code}")
        answer.raise_for_status()
        body = answer.json()
        if isinstance(body, dict) and "error" in body:
            problem = body["error"]
            code = problem.get("code", "") if isinstance(problem, dict) else problem
            raise _Busy("lagging") if code in ("maxlag", "ratelimited") else ValueError(f"error {code!r}")
        return body


class _Busy(Exception):
    """The server asks to come again."""


def _pages(body: Any, k: int) -> list[Document]:
    listed: list[Any] = (body.get("query") or {}).get("pages") or [] if isinstance(body, dict) else []
    pages: list[tuple[int, Document]] = []
    for page in listed:
        text = page.get("extract") if isinstance(page, dict) else None
        if isinstance(text, str) and text.strip():
            found = Document(title=str(page.get("title", "")), text=text, url=str(page.get("fullurl", "")))
            pages.append((int(page.get("index", len(listed))), found))
    return [document for _, document in sorted(pages, key=lambda ranked: ranked[0])[:k]]
