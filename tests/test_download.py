"""The server is an ``httpx.MockTransport``: it answers Range and If-Range as a web server does, and can cut off."""

import json
import re

import httpx
import pytest

from persona_dspy.data.download import BASE_URL, pull, urls
from persona_dspy.data.files import read_users
from persona_dspy.data.lamp import task_names
from persona_dspy.errors import InputError, RunError

FILM = "Which tag does this movie relate to? description: "


class Server:
    """Files by address; ``cut`` = bytes after which an answer breaks off, once for each entry."""

    def __init__(self, **files):
        self.files, self.cut, self.etag, self.seen = files, [], '"v1"', []
        self.transport = httpx.MockTransport(self.answer)

    def answer(self, request):
        name = request.url.path.rpartition("/")[2]
        self.seen.append((name, request.headers.get("range")))
        assert request.headers["accept-encoding"] == "identity"
        body = self.files.get(name.partition(".")[0].partition("_")[2])
        if body is None:
            return httpx.Response(404, text="none")
        start, whole = 0, len(body)
        headers = {"etag": self.etag} if self.etag else {}
        wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", ""))
        status = 200
        if wanted and request.headers.get("if-range") == self.etag:
            start, status = int(wanted[1]), 206
            if start >= whole:
                return httpx.Response(416, headers={"content-range": f"bytes */{whole}"})
            headers["content-range"] = f"bytes {start}-{whole - 1}/{whole}"
        headers["content-length"] = str(whole - start)
        return httpx.Response(status, headers=headers, stream=Stream(body[start:], self.cut))


class Stream(httpx.SyncByteStream):
    def __init__(self, body, cut):
        self.body, self.limit = body, cut.pop(0) if cut else None

    def __iter__(self):
        yield self.body[: self.limit]
        if self.limit is not None:
            raise httpx.ReadError("connection reset")


def lamp_files():
    rows = [{"id": str(n), "input": f"{FILM}New {n}.", "profile": []} for n in range(50)]
    golds = {"task": "LaMP_2", "golds": [{"id": str(n), "output": "action"} for n in range(50)]}
    return {"questions": json.dumps(rows).encode(), "outputs": json.dumps(golds).encode()}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)


@pytest.fixture
def server():
    return Server(**lamp_files())


def test_what_is_pulled_can_be_read(server, tmp_path):
    seen = []
    path = pull("lamp-2m", tmp_path, transport=server.transport, on_progress=lambda *step: seen.append(step))
    assert path == tmp_path / "lamp-2m-time" / "dev_questions.json"
    assert [u.questions[0].gold for u in read_users(path, task="lamp-2m")] == ["action"] * 50
    assert sorted(p.name for p in path.parent.iterdir()) == ["dev_outputs.json", "dev_questions.json"]
    assert ("dev_questions.json", path.stat().st_size, path.stat().st_size) in seen
    assert [name for name, _ in server.seen] == ["dev_outputs.json", "dev_questions.json"]


def test_what_is_there_is_not_fetched_again(server, tmp_path):
    pull("lamp-2m", tmp_path, transport=server.transport)
    pull("lamp-2m", tmp_path, transport=server.transport)
    assert len(server.seen) == 2


def test_a_cut_is_continued_within_one_call(server, tmp_path):
    server.cut = [100, 50, 7]
    path = pull("lamp-2m", tmp_path, transport=server.transport)
    asked = [wanted for name, wanted in server.seen if name == "dev_outputs.json"]
    assert asked == [None, "bytes=100-", "bytes=150-", "bytes=157-"]
    assert path.with_name("dev_outputs.json").read_bytes() == server.files["outputs"]


def test_a_dead_connection_is_continued_by_the_next_call(server, tmp_path):
    server.cut = [10] * 4
    with pytest.raises(RunError, match="Run the same command again"):
        pull("lamp-2m", tmp_path, transport=server.transport)
    assert (tmp_path / "lamp-2m-time" / "dev_outputs.json.part").stat().st_size == 40
    path = pull("lamp-2m", tmp_path, transport=server.transport)
    assert ("dev_outputs.json", "bytes=40-") in server.seen
    assert path.with_name("dev_outputs.json").read_bytes() == server.files["outputs"]


@pytest.mark.parametrize("etag", ['"v2"', None, 'W/"v1"'])
def test_two_versions_are_never_joined(server, tmp_path, etag):
    server.cut = [10] * 4
    if etag != '"v2"':
        server.etag = etag
    with pytest.raises(RunError):
        pull("lamp-2m", tmp_path, transport=server.transport)
    server.etag = etag
    server.files["outputs"] = server.files["outputs"].replace(b"action", b"comedy")
    path = pull("lamp-2m", tmp_path, transport=server.transport)
    assert path.with_name("dev_outputs.json").read_bytes() == server.files["outputs"]


def test_a_part_that_is_whole_is_only_renamed(server, tmp_path):
    folder = tmp_path / "lamp-2m-time"
    folder.mkdir()
    (folder / "dev_outputs.json.part").write_bytes(server.files["outputs"])
    (folder / "dev_outputs.json.part.tag").write_text(server.etag)
    pull("lamp-2m", tmp_path, transport=server.transport)
    assert (folder / "dev_outputs.json").read_bytes() == server.files["outputs"]
    assert [n for n, _ in server.seen].count("dev_outputs.json") == 1


def test_a_part_longer_than_the_file_is_fetched_anew(server, tmp_path):
    folder = tmp_path / "lamp-2m-time"
    folder.mkdir()
    (folder / "dev_outputs.json.part").write_bytes(server.files["outputs"] + b"more")
    (folder / "dev_outputs.json.part.tag").write_text(server.etag)
    pull("lamp-2m", tmp_path, transport=server.transport)
    assert (folder / "dev_outputs.json").read_bytes() == server.files["outputs"]


@pytest.mark.parametrize(
    ("body", "message"), [(b"<html>not found</html>", "expected JSON"), (b"", "0 bytes"), (None, "HTTP 404")]
)
def test_what_is_no_lamp_file_is_not_kept(server, tmp_path, body, message):
    server.files["outputs"] = body
    with pytest.raises(RunError, match=message):
        pull("lamp-2m", tmp_path, transport=server.transport)
    assert not (tmp_path / "lamp-2m-time" / "dev_outputs.json").exists()
    server.files["outputs"] = lamp_files()["outputs"]
    pull("lamp-2m", tmp_path, transport=server.transport)
    assert (tmp_path / "lamp-2m-time" / "dev_outputs.json").read_bytes() == server.files["outputs"]


def test_no_network_says_so(tmp_path):
    def answer(request):
        raise httpx.ConnectError("no route to host")

    with pytest.raises(RunError, match=r"ConnectError no route to host; expected a network.*put it at"):
        pull("lamp-1", tmp_path, transport=httpx.MockTransport(answer))


def test_addresses():
    assert urls("lamp-2m", by="user")[0] == f"{BASE_URL}/LaMP_2/new/dev/dev_outputs.json"
    assert urls("LaMP_2N", split="train")[1] == f"{BASE_URL}/time/LaMP_2/train/train_questions.json"
    public = [name for name in task_names() if name != "lamp-6" and not name.startswith("longlamp")]
    assert len({urls(name) for name in public}) == len(public)


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("lamp-6", {}, "licensed Avocado corpus"),
        ("lamp-1", {"split": "test"}, "split 'test'"),
        ("lamp-1", {"by": "user time"}, "separation 'user time'"),
        ("lamp-8", {}, "expected one of"),
    ],
)
def test_what_cannot_be_pulled(task, options, message, tmp_path):
    with pytest.raises(InputError, match=message):
        pull(task, tmp_path, **options)
    assert not list(tmp_path.iterdir())
