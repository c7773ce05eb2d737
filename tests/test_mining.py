"""Edits that code makes: counted, fitted in among others, dropped when outgrown."""

from optimizers.evidence import Evidence
from optimizers.loss import Simulated
from optimizers.mining import fitted, mined, mined_style, outdated, shift
from persona_dspy.core.answers import ResponseKind
from persona_dspy.core.interactions import Interaction
from persona_dspy.core.persona import Bullet, Persona

TEXT = ResponseKind(name="text")
RATING = ResponseKind(name="rating", labels=("1", "2", "3", "4", "5"))
LABEL = ResponseKind(name="label", labels=("a", "b"))


def rule(words, then, **values):
    return Bullet(section="what decides", words=tuple(words), then=then, **{"source": "learned", **values})


def item(n, query, response):
    return Interaction(user_id="u", query=query, response=response, id=f"i{n}")


def after(persona, bullet):
    return [b.sentence for b in persona.apply(fitted(persona, bullet)).bullets]


def test_words_join_the_rule_with_the_same_response():
    persona = Persona(user_id="u", bullets=(rule(["ghost"], "a"),))
    assert after(persona, rule(["demon", "ghost"], "a")) == ['If it mentions "ghost" or "demon", answer "a".']


def test_words_leave_the_rule_with_another_response():
    persona = Persona(user_id="u", bullets=(rule(["ghost", "demon"], "a"),))
    assert after(persona, rule(["ghost"], "b")) == [
        'If it mentions "demon", answer "a".',
        'If it mentions "ghost", answer "b".',
    ]
    assert after(persona, rule(["ghost", "demon"], "b")) == ['If it mentions "ghost" or "demon", answer "b".']


def test_locked_rules_facts_and_free_words_stay():
    kept = (rule(["ghost"], "a", locked=True), rule(["ghost"], "a", source="fact", id="f"))
    free = Bullet(section="what decides", when="the query is long", then="a", source="learned")
    persona = Persona(user_id="u", bullets=(*kept, free))
    said = after(persona, rule(["ghost"], "b"))
    assert len(said) == 4


def test_a_rule_that_would_grow_too_long_stands_apart():
    words = ["w" + "abcdefghij"[n] * 20 for n in range(7)]
    persona = Persona(user_id="u", bullets=(rule(words, "a"),))
    grown = persona.apply(fitted(persona, rule(["another" * 6], "a")))
    assert len(grown.bullets) == 2
    assert grown.bullets[0].words == tuple(words)


def test_one_phrase_for_each_end_of_a_text():
    old = Bullet(section="style", opening="well", text='Starts with "well".', source="learned")
    persona = Persona(user_id="u", bullets=(old,))
    assert after(persona, Bullet(section="style", opening="so", text='Starts with "so".')) == ['Starts with "so".']
    assert len(after(persona, Bullet(section="style", ending="so", text='Ends with "so".'))) == 2


def test_style_is_what_most_of_the_latest_texts_share():
    past = [item(n, "q", f"well then number {n} is over") for n in range(8)]
    assert [b.text for b in mined_style(past, TEXT)] == ['Starts with "well then number".', 'Ends with "is over".']
    assert mined_style([item(n, "q", f"{n} {n} {n}") for n in range(8)], TEXT) == []
    assert mined_style(past, LABEL) == []


def test_a_shift_needs_two_gaps_that_point_one_way():
    def seen(*pairs):
        return [
            Simulated(interaction_id=str(n), query="q", answer=a, gold=g, score=float(a == g))
            for n, (a, g) in enumerate(pairs)
        ]

    assert shift(seen(("4", "2"), ("3", "2"), ("5", "3")), RATING).text == "Rates 1.7 lower than you would think."
    assert shift(seen(("4", "2"), ("3", "4")), RATING) is None
    assert shift(seen(("4", "2"), ("3", "3"), ("3", "3")), RATING) is None
    assert shift(seen(("4", "2"), ("4", "2")), LABEL) is None


def test_what_the_past_has_outgrown_is_dropped():
    learned, locked = rule(["ghost"], "a"), rule(["ghost"], "b", locked=True)
    persona = Persona(user_id="u", bullets=(learned, locked))
    before = [item(n, "a ghost", "a") for n in range(4)]
    now = [item(n + 10, "a ghost", "b") for n in range(3)]
    assert outdated(persona, before) == []
    assert [e.id for e in outdated(persona, [*before, *now])] == [learned.id]
    found = mined(persona, Evidence(kind=LABEL, simulated=(), feedback=(), past=now), [*before, *now])
    assert found[0].op == "drop"


def test_a_rule_is_outdated_once_three_interactions_speak_of_it_and_contradict_it():
    rule = Bullet(section="what decides", words=("ghost",), then="comedy", source="learned")
    persona = Persona(user_id="u", bullets=(rule,))
    past = [Interaction(user_id="u", query=f"a ghost story {n}", response="horror", id=str(n)) for n in range(3)]
    assert [outdated(persona, past[:n]) != [] for n in range(4)] == [False, False, False, True]


def test_a_rule_outlives_fewer_than_three_contradictions():
    learned = rule(["ghost"], "a")
    persona = Persona(user_id="u", bullets=(learned,))
    contradictions = [item(n, "a ghost", "b") for n in range(3)]
    dropped = [[edit.id for edit in outdated(persona, contradictions[:n])] for n in range(4)]
    assert dropped == [[], [], [], [learned.id]]
