"""Sources of general knowledge: a local corpus, and Wikipedia's API over a real (loopback) HTTP server."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from persona_dspy.agent.context import answering
from persona_dspy.agent.knowledge import Document, LocalCorpus, PageCache, Wikipedia
from persona_dspy.errors import DataError, InputError, RunError

ALIEN = {
    "pageid": 1,
    "ns": 0,
    "title": "Alien (film)",
    "index": 2,
    "extract": "Alien is a 1979 film.",
    "fullurl": "u/1",
}
AVATAR = {"pageid": 2, "ns": 0, "title": "Avatar", "index": 1, "extract": "Avatar is a 2009 film.", "fullurl": "u/2"}
EMPTY = {"pageid": 3, "ns": 0, "title": "A stub", "index": 3, "extract": ""}
PAGES = {"batchcomplete": True, "query": {"pages": [ALIEN, AVATAR, EMPTY]}}


@pytest.fixture
def wiki():
    """A server that gives its ``answers`` in turn (the last one for ever) and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append((parse_qs(urlsplit(self.path).query), dict(self.headers)))
            status, body = server.answers.pop(0) if len(server.answers) > 1 else server.answers[0]
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answers = [], [(200, PAGES)]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/w/api.php"
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def source(wiki, **options):
    return Wikipedia("me@example.org", url=wiki.url, pause=0.001, timeout=5, **options)


@pytest.mark.loopback
def test_wikipedia_gives_pages_in_its_own_order_without_empty_ones(wiki):
    found = source(wiki).search("  a film\n with  a creature ", 5)
    assert [d.title for d in found] == ["Avatar", "Alien (film)"]
    assert found[1] == Document(title="Alien (film)", text="Alien is a 1979 film.", url="u/1")
    ((asked, headers),) = wiki.asked
    assert asked["gsrsearch"] == ["a film with a creature"] and asked["gsrlimit"] == ["5"]
    assert "me@example.org" in headers["User-Agent"] and "persona-dspy" in headers["User-Agent"]


@pytest.mark.loopback
@pytest.mark.parametrize("busy", [(503, b"later"), (429, b""), (200, {"error": {"code": "maxlag", "info": "waiting"}})])
def test_a_busy_server_is_asked_again(wiki, busy):
    wiki.answers[:] = [busy, busy, (200, PAGES)]
    assert len(source(wiki).search("film", 2)) == 2
    assert len(wiki.asked) == 3


@pytest.mark.loopback
@pytest.mark.parametrize(
    ("answer", "asked"),
    [((503, b""), 3), ((404, b"no"), 1), ((200, b"<html>"), 1), ((200, {"error": {"code": "badvalue"}}), 1)],
)
def test_no_usable_answer_is_one_clear_error(wiki, answer, asked):
    wiki.answers[:] = [answer]
    with pytest.raises(RunError, match="no usable answer"):
        source(wiki).search("film", 2)
    assert len(wiki.asked) == asked


@pytest.mark.loopback
def test_no_results_are_none(wiki):
    wiki.answers[:] = [(200, {"batchcomplete": True})]
    assert list(source(wiki).search("qwertz", 2)) == []


@pytest.mark.loopback
def test_an_unreachable_server_is_a_clear_error():
    nowhere = Wikipedia("me@example.org", url="http://127.0.0.1:9/w/api.php", pause=0.001, tries=2, timeout=1)
    with pytest.raises(RunError, match=r"127\.0\.0\.1:9"):
        nowhere.search("film", 1)


@pytest.mark.loopback
def test_the_cache_is_per_user_holds_no_search_words_and_is_forgotten(wiki, tmp_path):
    cache = PageCache(tmp_path / "pages")
    cached = source(wiki, cache=cache)
    for user in ("ana", "ana", "bob"):
        with answering(user_id=user):
            assert len(cached.search("secret illness", 2)) == 2
    assert len(wiki.asked) == 2  # once for each user: nobody learns what another has looked up
    files = [f for f in (tmp_path / "pages").rglob("*") if f.is_file()]
    assert len(files) == 2
    assert not any("secret" in f.read_text() or "ana" in str(f.relative_to(tmp_path)) for f in files)
    assert cache.forget("ana").counts == {"files": 1}
    assert len([f for f in (tmp_path / "pages").rglob("*") if f.is_file()]) == 1
    assert not cache.forget("ana").counts


@pytest.mark.loopback
def test_old_and_damaged_pages_are_asked_for_again(wiki, tmp_path):
    with answering(user_id="ana"):
        source(wiki, cache=PageCache(tmp_path, days=0)).search("film", 2)
        source(wiki, cache=PageCache(tmp_path, days=0)).search("film", 2)
        assert len(wiki.asked) == 2
        (file,) = [f for f in tmp_path.rglob("*") if f.is_file()]
        file.write_text("{")
        assert len(source(wiki, cache=PageCache(tmp_path)).search("film", 2)) == 2
    assert len(wiki.asked) == 3


def test_a_corpus_from_a_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "alien.md").write_text("A crew meets a creature in space.")
    (tmp_path / "heat.txt").write_text("A thief and a detective in Los Angeles.")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    corpus = LocalCorpus.from_path(tmp_path)
    assert [d.title for d in corpus.documents] == ["alien", "heat"]
    assert [d.url for d in corpus.search("the DETECTIVE", 5)] == ["heat.txt"]
    assert list(corpus.search("nothing of it", 0)) == [] == list(corpus.search("?!", 3))


def test_a_corpus_from_rows(tmp_path):
    file = tmp_path / "docs.jsonl"
    file.write_text('{"title": "Heat", "text": "a thief", "url": "x"}\n\n{"text": "a creature"}\n')
    assert [d.title for d in LocalCorpus.from_path(file).documents] == ["Heat", "line 3"]


@pytest.mark.parametrize(
    ("content", "told"), [("{", "line 1"), ('{"title": "x"}', "'text'"), ("[]", "'text'"), ("\n", "not empty")]
)
def test_bad_rows_are_named(tmp_path, content, told):
    file = tmp_path / "docs.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=told):
        LocalCorpus.from_path(file)


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(DataError, match="folder"):
        LocalCorpus.from_path(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least one"):
        LocalCorpus([])
    with pytest.raises(InputError, match="mail address"):
        Wikipedia(" ")
    with pytest.raises(InputError, match="language"):
        Wikipedia("me@example.org", language="evil.example/")
