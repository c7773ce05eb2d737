"""The LM's summary: what it reads, what it keeps, and what fades."""

import re

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizers import PersonaAlignment
from optimizers.acceptance import AlwaysAccept
from persona_dspy import Interaction, PersonaAgent, compile_users
from persona_dspy.cli.sources import StoredHistory
from persona_dspy.core.persona import Persona
from persona_dspy.errors import InputError
from persona_dspy.memory.profile import SemanticMemory
from persona_dspy.memory.profile_lines import Profile, ProfileLine, count_line_tokens, merge_lines
from persona_dspy.store.store import Store
from persona_dspy.testing.fake_lm import FakeLM
from persona_dspy.testing.rule_follower import RuleFollower
from persona_dspy.testing.synthetic import SyntheticUser, TagFilm

TOPICS = ("horror", "comedy", "drama")


def past(n, start=0, topic=lambda n: TOPICS[n % 3], user_id="u"):
    return [
        Interaction(user_id=user_id, query=f"film {i}", response=topic(i), id=f"i{i}") for i in range(start, start + n)
    ]


def numbered(text):
    return [(int(n), words) for n, words in re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE)]


class Reader:
    """An LM that says of each topic it sees "Likes <topic>.", by the examples that show it; ``calls`` by kind."""

    def __init__(self):
        self.calls = {"summarise": [], "revise": [], "merge": []}
        self.lm = FakeLM(self)

    def __call__(self, prompt):
        notes = numbered(prompt.fields.get("notes", ""))
        if "examples" not in prompt.fields:
            self.calls["merge"].append([words for _, words in notes])
            return {"lines": [{"line": words, "notes": [n]} for n, words in notes[: max(1, len(notes) // 2)]]}
        shown = numbered(prompt.fields["examples"])
        self.calls["revise" if notes else "summarise"].append([words for _, words in shown])
        lines = []
        for topic in dict.fromkeys(words.rpartition(" -> ")[2] for _, words in shown):
            line = f"Likes {topic}."
            note = next((n for n, words in notes if words == line), 0)
            lines.append({"line": line, "examples": [n for n, w in shown if w.endswith(topic)], "note": note})
        return {"lines": lines if notes else [{k: v for k, v in line.items() if k != "note"} for line in lines]}

    @property
    def read(self):
        return [w for kind in ("summarise", "revise") for window in self.calls[kind] for w in window]


def summary(reader, memory, items, profile=None):
    with dspy.context(lm=reader.lm):
        return memory(interactions=items, profile=profile)


def test_a_short_history_is_one_call_and_each_line_has_its_evidence():
    reader = Reader()
    made = summary(reader, SemanticMemory(sample=12), past(9))
    assert [len(calls) for calls in reader.calls.values()] == [1, 0, 0]
    assert {b.text: b.evidence for b in made.bullets} == {
        f"Likes {topic}.": tuple(f"i{n}" for n in range(9) if TOPICS[n % 3] == topic) for topic in TOPICS
    }
    assert {b.section for b in made.bullets} == {"who"}
    assert {b.source for b in made.bullets} == {"summary"}


def test_a_long_history_is_read_in_windows_spread_over_it():
    reader = Reader()
    made = summary(reader, SemanticMemory(sample=10, windows=4), past(1000))
    windows = reader.calls["summarise"]
    assert [len(w) for w in windows] == [10] * 4
    assert [windows[n][0] for n in range(4)] == [f"film {n} -> {TOPICS[n % 3]}" for n in (0, 330, 660, 990)]
    assert windows[3][-1].startswith("film 999 ")
    assert (made.profile.covers, made.profile.read) == (1000, 40)
    assert [b.hits for b in made.bullets] and sum(b.hits for b in made.bullets) == 40
    assert len(made.bullets) == 3, "lines that say the same are one"
    assert all(e[-1] in ("i997", "i998", "i999") for b in made.bullets for e in [b.evidence])


@pytest.mark.parametrize("n", [3, 12, 13, 25, 48, 49])
def test_all_is_read_once_where_it_fits(n):
    reader = Reader()
    summary(reader, SemanticMemory(sample=12, windows=4), past(n))
    assert len(reader.read) == len(set(reader.read)) == (n if n <= 48 else 48)


def test_new_episodes_alone_are_read():
    reader, memory = Reader(), SemanticMemory(sample=12)
    first = summary(reader, memory, past(300)).profile
    before = len(reader.read)
    grown = summary(reader, memory, past(303), Profile.model_validate_json(first.model_dump_json())).profile
    assert reader.read[before:] == [f"film {n} -> {TOPICS[n % 3]}" for n in (300, 301, 302)]
    assert [len(calls) for calls in reader.calls.values()] == [4, 1, 0]
    assert (grown.covers, grown.read) == (303, first.read + 3)
    assert {line.evidence[-1] for line in grown.lines} == {"i300", "i301", "i302"}
    assert sum(line.hits for line in grown.lines) == sum(line.hits for line in first.lines) + 3
    with dspy.context(lm=reader.lm):
        assert memory.grow(first, past(3, start=300)) == grown, "the earlier ones are not needed"
    calls = len(reader.lm.engine.calls)
    assert summary(reader, memory, past(303), grown).profile == grown
    assert len(reader.lm.engine.calls) == calls


def test_a_profile_of_other_interactions_is_left_aside():
    reader, memory = Reader(), SemanticMemory(sample=12)
    whole = summary(reader, memory, past(12)).profile
    hidden = [i for i in past(14) if i.id not in ("i3", "i7")]  # a gate's: as many are left, but not the same
    made = summary(reader, memory, hidden, whole).profile
    assert not {"i3", "i7"} & {e for line in made.lines for e in line.evidence}
    assert reader.calls["revise"] == []
    other = summary(reader, memory, past(12, user_id="v"), whole).profile
    assert (other.user_id, other.read) == ("v", 12)
    with pytest.raises(InputError, match="one user's"):
        memory(interactions=[*past(3), *past(3, user_id="v")])


class Kept(dict):
    """The least that keeps profiles."""

    def profile(self, user_id):
        return self.get(user_id)

    def put_profile(self, user_id, profile):
        self[user_id] = profile


def test_profiles_are_kept_by_user():
    reader, kept = Reader(), Kept()
    summary(reader, SemanticMemory(sample=12, keep=kept), past(12))
    summary(reader, SemanticMemory(sample=12, keep=kept), past(12, user_id="v"))
    again = summary(reader, SemanticMemory(sample=12, keep=kept), past(15)).profile
    assert len(reader.read) == 27
    assert (again.covers, Profile.model_validate(kept["u"]), kept["v"]["covers"]) == (15, again, 12)


def test_what_new_episodes_do_not_confirm_fades():
    reader, memory = Reader(), SemanticMemory(sample=10, half_life=20)
    profile = summary(reader, memory, past(10, topic=lambda n: "horror" if n < 2 else "comedy")).profile
    assert [line.text for line in profile.lines] == ["Likes comedy.", "Likes horror."]
    with dspy.context(lm=reader.lm):
        for start in range(10, 60, 10):
            profile = memory.grow(profile, past(10, start=start, topic=lambda n: "comedy"))
            assert ("Likes horror." in [line.text for line in profile.lines]) == (start < 50), start
    assert profile.lines[0].hits == 58


@settings(max_examples=40, deadline=None)
@given(
    told=st.lists(
        st.tuples(st.text(max_size=300), st.lists(st.integers(-3, 15), max_size=5), st.integers(-2, 9)), max_size=12
    ),
    n=st.integers(3, 60),
    tokens=st.integers(1, 200),
)
def test_whatever_the_lm_says_the_cap_and_the_evidence_hold(told, n, tokens):
    def say(prompt):
        if "examples" not in prompt.fields:
            return {"lines": [{"line": text, "notes": numbers} for text, numbers, _ in told]}
        extra = (lambda note: {"note": note}) if "notes" in prompt.fields else (lambda _: {})
        return {"lines": [{"line": text, "examples": ns, **extra(note)} for text, ns, note in told]}

    memory, profile = SemanticMemory(sample=12, windows=3, tokens=tokens), None
    with dspy.context(lm=FakeLM(say)):
        for end in (n, n + 5, n + 40):
            profile = memory(interactions=past(end), profile=profile).profile
            assert count_line_tokens(profile.lines) <= tokens
            assert profile.covers == end
            known = {f"i{i}" for i in range(end)}
            assert all(line.evidence and set(line.evidence) <= known for line in profile.lines)
    Persona(user_id="u", bullets=tuple(profile.bullets())).render()


def test_over_the_cap_lines_are_merged_and_the_strongest_stay():
    lm = Reader()
    many = tuple(
        ProfileLine(text=f"Trait number {n} of this user.", evidence=(f"i{n}",), hits=n, weight=n, at=40)
        for n in range(1, 41)
    )
    memory = SemanticMemory(sample=12, tokens=40)
    known = Profile(user_id="u", lines=many, covers=0, read=40)
    with dspy.context(lm=lm.lm):
        grown = memory.grow(known, past(3))
    sizes = [len(notes) for notes in lm.calls["merge"]]
    assert sizes and max(sizes) <= 16
    assert count_line_tokens(grown.lines) <= 40
    assert grown.lines[0].text == "Trait number 40 of this user."


def test_an_answer_that_cannot_be_read_loses_nothing():
    reader, memory = Reader(), SemanticMemory(sample=12)
    known = summary(reader, memory, past(12)).profile
    with dspy.context(lm=FakeLM(lambda prompt: "no lines at all"), adapter=dspy.JSONAdapter()):
        same = memory.grow(known, past(5, start=12))
        none = memory(interactions=past(30)).profile
    assert (same.lines, same.covers, same.read) == (known.lines, 17, 12)
    assert (none.lines, none.read) == ((), 0)


def test_joined_lines_keep_their_evidence_and_weigh_as_of_the_latest():
    old = ProfileLine(text="A", evidence=("1", "2", "3", "4"), hits=4, weight=4.0, at=0)
    new = ProfileLine(text="B", evidence=("5", "6"), hits=2, weight=2.0, at=20)
    one = merge_lines([new, old], "C", half_life=20)
    assert (one.text, one.evidence, one.hits, one.weight, one.at) == ("C", ("2", "3", "4", "5", "6"), 6, 4.0, 20)


@pytest.mark.parametrize("wrong", [{"sample": 2}, {"windows": 0}, {"tokens": 0}, {"half_life": 0}])
def test_options_are_checked(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        SemanticMemory(**wrong)
    assert SemanticMemory()(interactions=past(2)).bullets == []
    assert SemanticMemory()(interactions=[]).bullets == []


def test_kept_in_the_store_it_lasts_and_is_forgotten(tmp_path):
    """A second process reads what is new alone; a forgotten user is read from the start."""
    for length, read in ((24, 24), (30, 6), (30, 0)):
        reader = Reader()
        with Store.open(tmp_path / "personas.db") as store:
            store.add_episodes("u", past(length))
            said = summary(reader, SemanticMemory(keep=store), store.episodes("u"))
        assert len(reader.read) == read
        assert said.profile.covers == length and {b.text for b in said.bullets} == {f"Likes {t}." for t in TOPICS}
    with Store.open(tmp_path / "personas.db") as store:
        assert Profile.model_validate(store.profile("u")) == said.profile
        small = summary(reader, SemanticMemory(tokens=4, keep=store), store.episodes("u"))
        assert 0 < count_line_tokens(small.profile.lines) <= 4, "kept under a higher cap"
        assert store.forget("u").removed["persona_profiles"] == 1
        store.add_episodes("u", past(24))
        summary(reader, SemanticMemory(keep=store), store.episodes("u"))
        assert len(reader.read) == 24
    assert b"Likes" in b"".join(p.read_bytes() for p in tmp_path.iterdir())


def test_a_fleet_keeps_summaries_in_its_store(tmp_path):
    """... and leaves the caller's optimizer as it was."""
    user = SyntheticUser(seed=3)
    asked = []
    follower = RuleFollower()

    def says(prompt):
        if "examples" not in prompt.fields:
            return follower(prompt)
        asked.append(prompt.fields["examples"].count(" -> "))
        return {"lines": [{"line": "Likes short answers.", "examples": [1, 2]}]}

    optimizer = PersonaAlignment(epochs=1, gate=AlwaysAccept(), summary=SemanticMemory())
    program = PersonaAgent(TagFilm)
    for length in (12, 15):
        with Store.open(tmp_path / "personas.db") as store, dspy.context(lm=FakeLM(says)):
            store.add_episodes(user.user_id, user.interactions(length))
            history = StoredHistory.of(store, user.user_id)
            (result,) = compile_users(program, [history], optimizer, store=store)
            assert not result.error, result.error
            assert store.profile(user.user_id)["covers"] == length - 3  # the latest are simulated next
    assert asked == [9, 3]
    assert optimizer.summary._keep is None


def test_the_task_is_told_and_a_capable_lm_reads_texts_whole():
    long = " ".join(f"word{n}" for n in range(200))
    items = [Interaction(user_id="u", query=f"{long} {n}", response=f"{long} reply", id=f"i{n}") for n in range(4)]
    for small in (False, True):
        lm = FakeLM(lambda prompt: {"lines": [{"line": "Likes words.", "examples": [1, 2]}]}, small=small)
        with dspy.context(lm=lm):
            SemanticMemory()(interactions=items, asked="Write the reply that this user would write.")
        (call,) = lm.engine.calls
        assert call.fields["task"] == "Write the reply that this user would write."
        assert ("word199" in call.fields["examples"]) is not small
