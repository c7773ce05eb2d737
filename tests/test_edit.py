"""``persona-dspy edit``: lines by hand, in files and in the store; and that locked lines survive every optimizer."""

import json

import dspy
import pytest
from test_cli import LABELS, lm, run  # noqa: F401 - a fixture

from optimizers import AlwaysAccept, Cohort, EditProposer, KeywordProposer, PersonaAlignment, RewriteProposer
from persona_dspy import Bullet, Persona, PersonaAgent, load_persona, save_persona
from persona_dspy.cli.edit import edited_text, lines_of
from persona_dspy.core import load_document
from persona_dspy.errors import InputError
from persona_dspy.judge.optimized import GEPA, Portrait
from persona_dspy.store import Store
from persona_dspy.testing.synthetic import SyntheticUser, rule_following_lm

SIGNATURE = f"title -> genre: Literal{LABELS}"
MINE = ("Never mention prices.", "Is a nurse.")


@pytest.fixture
def persona(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PERSONA_DSPY_HOME", str(tmp_path / "home"))
    return Persona.from_text("Likes tea.\nHates rain.", user_id="ana")


def test_a_file_is_edited_by_options(persona, capsys):
    save_persona(persona, "ana.json", task="film -> tag", model="openai/gpt-4o-mini")
    edits = ["--add", "style: Never mention prices.", "--revise", "tea=Likes coffee.", "--drop", "rain", "--by", "zoe"]
    code, out, _ = run(capsys, "edit", "ana.json", *edits)
    assert (code, out.splitlines()[0]) == (0, "version 0 -> 1, by zoe")
    document = load_document("ana.json")
    assert [(b.section, b.sentence, b.locked) for b in document.persona().bullets] == [
        ("preferences", "Likes coffee.", True),
        ("style", "Never mention prices.", True),
    ]
    assert (document.parent, document.task, document.model) == (0, "film -> tag", "openai/gpt-4o-mini")
    assert document.alignment.options["edited_by"] == "zoe" and document.alignment.options["edited_at"]
    assert run(capsys, "edit", "ana.json", "--lock", "prices")[1].startswith("nothing changed")
    for wrong in (["--drop", "whales"], ["--revise", "coffee"], ["--add", " "]):
        code, _, err = run(capsys, "edit", "ana.json", *wrong)
        assert code == 2 and "expected" in err and load_document("ana.json") == document


def test_a_user_in_the_store_gets_a_version(persona, capsys):
    run(capsys, "import", save_persona(persona, "x.json"), "--store", "s.db")
    code, out, _ = run(capsys, "edit", "ana", "--lock", "tea", "--store", "s.db", "--json")
    assert code == 0 and {"from": 0, "to": 1}.items() <= json.loads(out).items()
    run(capsys, "rollback", "ana", "--store", "s.db")
    assert run(capsys, "edit", "ana", "--drop", "rain", "--store", "s.db")[0] == 0
    with Store.open("s.db") as store:
        now = store.current("ana")
        assert (now.version, now.parent) == (2, 0), "numbers are never used twice"
        assert len(store.versions("ana")) == 3


def test_lines_in_an_editor(persona, capsys, monkeypatch):
    tea, rain = persona.bullets
    text = lines_of(persona.lock(rain.id))
    assert f"{tea.id}  Likes tea." in text and f"{rain.id}! Hates rain." in text
    assert edited_text(persona, lines_of(persona)) is persona
    changed = edited_text(persona, f"style:\n! Never emoji.\npreferences:\n{tea.id}! Likes tea.\n")
    assert [(b.sentence, b.locked) for b in changed.bullets] == [("Likes tea.", True), ("Never emoji.", True)]
    with pytest.raises(InputError, match="no such line"):
        edited_text(persona, "00000000 Who knows?")
    save_persona(persona, "ana.json")
    monkeypatch.setattr("click.edit", lambda text, **_: text.replace("Likes tea.", "Likes coffee."))
    assert "Likes coffee." in run(capsys, "edit", "ana.json", "--by", "zoe")[1]
    monkeypatch.setattr("click.edit", lambda text, **_: text + "deadbeef lost?")
    code, _, err = run(capsys, "edit", "ana.json")
    assert code == 2 and ".edit.txt" in err, "what was written is kept"
    monkeypatch.setattr("click.edit", lambda text, **_: None)
    assert run(capsys, "edit", "ana.json")[1].startswith("nothing changed")
    assert load_persona("ana.json").version == 1


OPTIMIZERS = {
    "edits": lambda: PersonaAlignment(proposer=EditProposer(), epochs=2, progress=False),
    "keywords": lambda: PersonaAlignment(proposer=KeywordProposer(), epochs=2, progress=False),
    "rewrites": lambda: PersonaAlignment(proposer=RewriteProposer(), gate=AlwaysAccept(2), epochs=2, progress=False),
    "paper": lambda: PersonaAlignment.as_in_paper(progress=False),
    "portrait": Portrait,
    "gepa": lambda: GEPA(gate=PersonaAlignment().gate_for(16), calls=30),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_locked_lines_survive(name):
    user = SyntheticUser(seed=3)
    fact = Bullet(section="who", text="Answers so far (1): 'x' 1.", source="fact", locked=True)
    mine = Persona(user_id=user.user_id, bullets=(fact,)).add(MINE[0], section="style").add(MINE[1], section="who")
    agent = PersonaAgent(SIGNATURE, history=user.interactions(16), persona=mine)
    with dspy.context(lm=rule_following_lm()):
        aligned = OPTIMIZERS[name]().compile(agent, trainset=agent.examples())
    kept = aligned.persona.value.bullets
    assert {*MINE, fact.text} <= {b.sentence for b in kept if b.locked}


def test_a_cohort_takes_no_locked_line_away():
    users = [SyntheticUser(seed=s, user_id=f"u{s}") for s in (1, 2, 3)]
    with dspy.context(lm=rule_following_lm()):
        agents = [PersonaAgent(SIGNATURE, history=u.interactions(16)) for u in users]
        done = [PersonaAlignment(epochs=1, progress=False).compile(a, trainset=a.examples()) for a in agents]
        cohort = Cohort([p.persona.value for p in done])
        mine = Persona(user_id="u9").add(MINE[0])
        agent = PersonaAgent(SIGNATURE, history=SyntheticUser(seed=1, user_id="u9").interactions(9), persona=mine)
        aligned = PersonaAlignment(cohort=cohort, epochs=1, progress=False).compile(agent, trainset=agent.examples())
    assert aligned.persona.value.line(MINE[0]).locked
