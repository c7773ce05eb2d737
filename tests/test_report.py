"""The report page without a browser: what is read, what is shown, that no text can break out of it."""

import base64
import hashlib
import json
import re
import sys
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_data import HOSTILE, fleet, record, subject, trace

from persona_dspy.cli import main
from persona_dspy.core.document import PersonaDocument, save_persona
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Persona
from persona_dspy.errors import DataError, InputError, PersonaFormatError, RunError
from persona_dspy.report.overview import overview
from persona_dspy.report.page import _json, report_page
from persona_dspy.report.sources import (
    Subject,
    read_evaluation,
    read_folder,
    read_store,
    read_traces,
    with_episodes,
    with_store,
)
from persona_dspy.report.user_view import user_view, word_diff
from persona_dspy.store.store import Store


class Page(HTMLParser):
    """Scripts by id or number, and all tags, as a parser of HTML sees them."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.scripts, self.tags, self.visible, self._open = {}, [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._open = dict(attrs).get("id") or f"script-{len(self.scripts)}"
            self.scripts[self._open] = ""

    def handle_endtag(self, tag):
        self._open = None if tag == "script" else self._open

    def handle_data(self, data):
        if self._open:
            self.scripts[self._open] += data
        else:
            self.visible.append(data)

    def json(self, name):
        return json.loads(self.scripts[name])


@pytest.fixture(scope="module")
def page():
    return report_page([subject("ann", traces=[trace("ann")]), subject("bob", "wedding", "romance", after=0.25)])


def test_the_overview_counts_and_compares(page):
    found = overview(
        [subject("ann"), subject("bob", after=0.25), Subject(user_id="c", versions=_plain("c"), current=0)]
    )
    assert (found.users, found.scored, found.changed, found.accepted) == (3, 2, 2, 2)
    assert (found.before.value, found.after.value) == (0.25, 0.5)
    assert (found.gain.won, found.gain.tied, found.gain.lost) == (1, 1, 0)
    assert (found.calls, found.tokens, found.usd, found.usd_per_change) == (18, 1980, 0.02, 0.01)
    text = " ".join(" ".join(Page(page).visible).split())
    assert "0.25 → 0.50" in text and "18 9 a user" in text and "$0.02" in text


def _plain(user):
    return (PersonaDocument.of(Persona.from_text("Short answers.", user_id=user)),)


def test_a_view_has_versions_as_diffs_evidence_curve_and_actions():
    view = user_view(subject("ann", traces=[trace("ann")]))
    newest, oldest = view["versions"]
    assert (newest["version"], newest["current"], oldest["base"]) == (1, True, None)
    revised, added = newest["changes"]
    assert revised["parts"] == [["=", "Prefers "], ["-", "long"], ["+", "short"], ["=", " answers."]]
    assert (added["op"], added["parts"][0][1]) == ("+", 'If it mentions "ghost", answer "horror".')
    rule_ = next(s for s in view["sections"] if s["name"] == "what decides")["bullets"][0]
    assert rule_["evidence"] == ["e1", "e9"]
    assert view["episodes"] == {"e1": {"query": "A ghost in the cellar", "response": "horror", "time": "2026-01-03"}}
    assert [p["score"] for p in view["alignment"]["curve"]] == [0.25, 0.25, 0.75]
    step = view["alignment"]["steps"][0]
    assert step["simulated"][0] == {"id": "e1", "score": 0.0, "feedback": "The user wants shorter answers."}
    recall, search = view["actions"]
    assert (recall["times"], recall["steered"], recall["words"]) == (2, 1, ["attic films", "cellar films"])
    assert (search["name"], search["failed"]) == ("search_knowledge", 1)


def test_a_version_without_its_parent_shows_what_the_record_says():
    lone = subject("ann").versions[1]
    (shown,) = user_view(Subject(user_id="ann", versions=(lone,), current=1))["versions"]
    assert not shown["known"]
    assert [(c["op"], c["parts"]) for c in shown["changes"]] == [("+", [["=", "a rule"]])]


@given(st.text(max_size=40), st.text(max_size=40))
def test_word_diffs_join_to_both_sentences(old, new):
    parts = word_diff(old, new)
    assert "".join(text for kind, text in parts if kind in "=-") == old
    assert "".join(text for kind, text in parts if kind in "=+") == new


@given(st.recursive(st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_embedded_json_is_inert_and_whole(value):
    text = _json(value)
    assert not set(text) & set("<>&\u2028\u2029") and text.isascii()
    assert json.loads(text) == value


def test_hostile_text_stays_text():
    user = f"x{HOSTILE}"
    made = subject(user, note=f"long {HOSTILE}", traces=[trace(user)])
    made = Subject(
        user_id=user,
        versions=(*made.versions[:1], made.versions[1].model_copy(update={"task": HOSTILE, "model": HOSTILE})),
        current=1,
        episodes={"e1": Interaction(user_id=user, query=f"{HOSTILE}\ud800\0", response=HOSTILE, id="e1")},
    )
    text = report_page([made, subject("bob")], title=f"{HOSTILE}\ud800", notes=[HOSTILE])
    text.encode()
    seen = Page(text)
    assert set(seen.scripts) == {"index", "view-0", "view-1", "script-3"}
    assert not [t for t in seen.tags if t[0] == "img" or any(name.startswith("on") for name in t[1])]
    assert seen.json("view-0")["id"] == user
    assert seen.json("view-0")["episodes"]["e1"]["query"] == f"{HOSTILE}\ud800\0"


def test_the_policy_allows_the_pages_own_scripts_and_nothing_else(page):
    seen = Page(page)
    policy = next(t[1]["content"] for t in seen.tags if t[1].get("http-equiv") == "Content-Security-Policy")
    allowed = re.findall(r"'sha256-(.+?)'", policy)
    own = [s for name, s in seen.scripts.items() if name.startswith("script-")]
    assert allowed == [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in own]
    assert policy.startswith("default-src 'none'") and "unsafe-inline'" not in policy.split("style-src")[0]
    assert not [t for t in seen.tags if t[1].get("src") or t[1].get("href", "#")[0] not in "#d"]


def test_no_users_text_is_in_anothers_part(page):
    seen = Page(page)
    ann, bob = seen.json("view-0"), seen.json("view-1")
    assert "ghost" in json.dumps(ann) and "wedding" in json.dumps(bob)
    assert "wedding" not in json.dumps(ann) and "ghost" not in json.dumps(bob)


def test_personas_with_nothing_in_common_are_not_mapped():
    words = ("ghost", "heist", "ballet")
    users = [Subject(user_id=w, versions=(document_of_line(f"{w} {w}"),), current=0) for w in words]
    made = report_page(users)
    assert "so there is nothing to map" in made
    assert not re.search(r'"plot" data-figure="(map|similarity)"', made)
    alike = [Subject(user_id=w, versions=(document_of_line(f"likes {w}"),), current=0) for w in words]
    assert re.findall(r'"plot" data-figure="(map|similarity)"', report_page(alike)) == ["map", "similarity"]


def document_of_line(text):
    return PersonaDocument.of(Persona.from_text(text, user_id=text.split()[-1]))


def test_one_user_has_a_page_without_a_map():
    seen = Page(report_page([Subject(user_id="c", versions=_plain("c"), current=0)]))
    figures = seen.json("index")["figures"]
    assert set(figures) == {"curve"}
    assert not [t for t in seen.tags if t[1].get("id") == "landscape"]


def test_many_users_are_sampled_in_the_matrix_and_it_says_so():
    seen = Page(report_page(fleet(90)))
    index = seen.json("index")
    assert len(index["users"]) == 90 and len(index["figures"]["similarity"]["data"][0]["z"]) == 60
    assert any("60 of 90" in text for text in seen.visible)
    assert 2 <= len(index["groups"]) <= 6
    for n in range(90 - 21):  # every 21st persona says the same
        assert index["users"][n]["group"] == index["users"][n + 21]["group"]
    for n, user in enumerate(index["users"]):
        assert user["near"] and all((other - n) % 21 == 0 and alike == 1 for other, alike in user["near"])


def test_a_folder_gives_users_with_their_versions(tmp_path):
    for document in subject("ann").versions:
        (tmp_path / f"ann-{document.version}.json").write_text(document.to_json())
    save_persona(Persona.from_text("Loud.", user_id="bob"), tmp_path)
    ann, bob = read_folder(tmp_path)
    assert (ann.current, len(ann.versions), bob.user_id) == (1, 2, "bob")
    assert [s.user_id for s in read_folder(tmp_path, users={"bob"})] == ["bob"]
    (tmp_path / "other.json").write_text(_plain("bob")[0].to_json())
    with pytest.raises(InputError, match="both hold version 0 of user 'bob'"):
        read_folder(tmp_path)


def test_what_cannot_be_read_is_told_or_skipped(tmp_path):
    save_persona(Persona.from_text("Loud.", user_id="bob"), tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(PersonaFormatError, match=r"broken\.json"):
        read_folder(tmp_path)
    told = []
    assert len(read_folder(tmp_path, skipped=told.append)) == 1
    assert "broken.json" in told[0]
    with pytest.raises(InputError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected persona JSONs of"):
        read_folder(tmp_path, users={"nobody"}, skipped=told.append)


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "p.db") as opened:
        made = subject("ann")
        for document in made.versions:
            bare = document.model_copy(update={"alignment": None})
            opened.put_persona("ann", bare.to_json(), record("ann").model_dump() if document.version else None)
        cited = Interaction(user_id="ann", query="A ghost in the cellar", response="horror", id="e1")
        unrelated = Interaction(user_id="ann", query="An unrelated secret", response="x", id="e5")
        opened.add_episodes("ann", [cited, unrelated])
        opened.add_episodes("zoe", [Interaction(user_id="zoe", query="q", response="r", id="e1")])
        yield opened


def test_a_store_gives_versions_records_and_cited_episodes_alone(store):
    (ann,), without = read_store(store)
    assert (without, ann.current, list(ann.episodes)) == (1, 1, ["e1"])
    assert ann.document.alignment.scores.final == 0.75
    store.rollback("ann", 0)
    (back,), _ = read_store(store)
    assert (back.current, back.document.version) == (0, 0)
    with pytest.raises(InputError, match="of \\['zoe'\\]"):
        read_store(store, users={"zoe"})


def test_a_folder_with_a_store_has_the_same_users_only(store):
    lone = Subject(user_id="ann", versions=subject("ann").versions[1:], current=1)
    other = Subject(user_id="new", versions=_plain("new"), current=0)
    ann, new = with_store([lone, other], store)
    assert [d.version for d in ann.versions] == [0, 1] and "e1" in ann.episodes
    assert new == other
    with pytest.raises(InputError, match="expected user 'new'"):
        with_episodes(new, ann.episodes.values())


def test_an_evaluation_is_read_leniently_and_wrong_ones_are_told(tmp_path):
    (tmp_path / "table.csv").write_text("system,users,mae,low,high,extra\npersona,20,0.25,0.2,0.3,7\nrag,20,0.5,,,\n")
    persona, rag = read_evaluation(tmp_path)
    assert (persona.metric, persona.score, persona.low, persona.columns["extra"]) == ("mae", 0.25, 0.2, "7")
    assert (rag.low, rag.high) == (0.5, 0.5)
    seen = Page(report_page([subject("ann")], systems=[persona, rag]))
    text = " ".join(" ".join(seen.visible).split())
    assert "lower is better" in text and "[0.200, 0.300]" in text and "More episodes" not in text
    (tmp_path / "protocol.json").write_text('{"k": 4, "recent": null}')
    (tmp_path / "table.csv").write_text("system,mae,low,high\nrag,0.5,0.4,0.6\nrag@k=8,0.4,0.3,0.5\n")
    rag, more = read_evaluation(tmp_path)
    assert rag.defaults == more.defaults == {"k": 4}
    assert "More episodes" in " ".join(Page(report_page([subject("ann")], systems=[rag, more])).visible)
    (tmp_path / "bad.csv").write_text("system,accuracy,low,high\npersona,nan,0,1\n")
    with pytest.raises(DataError, match=r"line 2, field 'accuracy': got 'nan'"):
        read_evaluation(tmp_path / "bad.csv")
    with pytest.raises(DataError, match="columns system"):
        read_evaluation(tmp_path / "nowhere.csv")


def test_traces_are_read_from_files_and_folders(tmp_path):
    (tmp_path / "one.json").write_text(trace("ann").to_json())
    (tmp_path / "more.jsonl").write_text("\n".join(json.dumps(trace(u).to_dict()) for u in ("bob", "ann")))
    assert sorted(t.user_id for t in read_traces(tmp_path)) == ["ann", "ann", "bob"]
    (tmp_path / "more.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="line 1"):
        list(read_traces(tmp_path / "more.jsonl"))


def test_the_command_writes_the_page(tmp_path, capsys):
    for document in subject("ann").versions:
        (tmp_path / f"ann-{document.version}.json").write_text(document.to_json())
    (tmp_path / "broken.json").write_text("{")
    history = tmp_path / "history.jsonl"
    history.write_text(json.dumps({"user_id": "ann", "id": "e1", "query": "A ghost", "response": "horror"}) + "\n")
    out = tmp_path / "pages" / "report.html"
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--out", str(out)])
    assert ended.value.code == 2 and not out.exists()
    assert "broken.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path), "--history", str(history), "--skip-bad-rows", "--out", str(out)])
    assert ended.value.code == 0
    said = capsys.readouterr()
    assert "1 user" in said.out and "broken.json" in said.err
    seen = Page(out.read_text())
    assert seen.json("view-0")["episodes"]["e1"]["query"] == "A ghost"
    assert any("broken.json" in text for text in seen.visible)
    with pytest.raises(SystemExit) as ended:
        main(["report", "--out", str(out)])
    assert ended.value.code == 2


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(RunError, match=r"persona-dspy\[report\]"):
        report_page([subject("ann")])
    with pytest.raises(InputError, match="at least one user"):
        report_page([])
