"""A fake LM that follows the rules it is shown, and says which rules explain a set of mistakes.

It knows how the world tags, rates and describes films, but no
user: that must be in its prompt. Every optimizer that asks it to reflect gets the same deductions from what it shows,
in its own format: edits, whole rewrites, and the reflection prompts of dspy.GEPA, gepa, dspy.SIMBA and dspy.COPRO.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from persona_dspy.memory import content_words
from persona_dspy.testing.fake_lm import Prompt

__all__ = [
    "CHOICES",
    "FILLER",
    "LABELS",
    "QUALITY",
    "STANDARD",
    "TOPICS",
    "Case",
    "RuleFollower",
    "deduced",
    "described",
    "heeded",
    "merged",
    "minutes_of",
]

TOPICS: dict[str, tuple[str, ...]] = {
    "space": ("rocket", "planet", "astronaut", "galaxy", "orbit"),
    "love": ("wedding", "kiss", "romance", "sweetheart", "honeymoon"),
    "crime": ("detective", "murder", "heist", "gangster", "alibi"),
    "fear": ("ghost", "haunted", "scream", "demon", "cellar"),
    "laughs": ("prank", "clumsy", "joke", "sitcom", "slapstick"),
    "past": ("castle", "knight", "emperor", "pharaoh", "viking"),
}
"""Topic -> words that give it away; no word belongs to two topics."""

STANDARD = {
    "space": "sci-fi", "love": "romance", "crime": "thriller", "fear": "horror", "laughs": "comedy", "past": "history",
}  # fmt: skip
LABELS = tuple(STANDARD.values())
CHOICES = ("watch", "skip")
FILLER = ("story", "young", "small", "town", "family", "long", "journey", "night", "friends", "secret")
QUALITY: dict[str, tuple[str, ...]] = {
    "1": ("dreadful", "unbearable", "worthless"),
    "2": ("boring", "clichéd", "lukewarm"),
    "3": ("decent", "average", "watchable"),
    "4": ("charming", "gripping", "lovely"),
    "5": ("masterpiece", "unforgettable", "flawless"),
}
"""Rating that the world gives -> words of a description that tell it."""

_RULE = re.compile(r'[Ii]f ([^.\n]+?), answer "([^"]+)"\.')
_LONGER = re.compile(r'If it runs longer than (\d+) minutes, answer "skip", unless it is about (\w+)\.')
_MINUTES = re.compile(r"runs (\d+) minutes")
_SHIFT = re.compile(r"[Rr]ates ([\d.]+) (higher|lower) than you would think")
_STYLE = re.compile(r'([Ss]tarts|[Ee]nds) with "([^"]+)"')
_SAID = re.compile(r'This user answers "([^"]+)" for: ([^.\n]+)\.')
_CONTRAST = re.compile(
    r"query: (.*)\n(?:(?:our response|an assistant's draft): (.*)\n)?(?:the person .*\n)?"
    r"the (?:user's own|person's) response: (.*)"
)
_JUDGED = re.compile(r"query: (.*)\n(?:our response|an assistant's draft): (.*)\nthe (?:user|person) (.*)")
_WANTED = re.compile(r"I call that ([\w-]+)")
_LINE = re.compile(r"^\[id (\w+)[^\]]*\] (.+)$", re.MULTILINE)
_NUMBERED = re.compile(r"^(?:attempt (\d+)$|(\d+)\. )", re.MULTILINE)
_DRAFTS = ("draft A", "draft B")
_OWN = re.compile(r"own response was \"([^\"]+)\"")
_FENCED = re.compile(r'<data source="([^"\n]*)" id="\w+">\n(.*?)\n</data', re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A mistake as shown: what was asked, our response (empty where not shown), the user's own."""

    query: str
    ours: str
    gold: str


def described(query: str) -> str:
    """How the world puts a film into a headline: its telling words, in alphabetical order."""
    words = sorted(w for w in content_words(query) if any(w in marks for marks in TOPICS.values()))
    return "a film about " + " and ".join(words or ["people"])


def minutes_of(query: str) -> int:
    """How long a film runs, as its description says; 0 where it does not."""
    found = _MINUTES.search(query)
    return int(found[1]) if found else 0


def _threshold(cases: Sequence[Case]) -> list[str]:
    """The length above which films are skipped, and the one topic of which long ones are watched all the same: of all
    such sentences the one that most of the cases bear out, the middle one of several equally good."""
    fits: dict[tuple[int, str], int] = {}
    for minutes in range(70, 170, 2):
        for topic, marks in TOPICS.items():
            fits[minutes, topic] = sum(
                (minutes_of(c.query) > minutes and not content_words(c.query) & set(marks)) == (c.gold == "skip")
                for c in cases
            )
    best = [key for key, count in fits.items() if count == max(fits.values())]
    minutes, topic = best[len(best) // 2]
    return [f'If it runs longer than {minutes} minutes, answer "skip", unless it is about {topic}.']


def deduced(cases: Sequence[Case]) -> list[str]:
    """The rules that mistakes show, as sentences, at most three; it knows which words mean the same.

    Example:
        >>> deduced([Case(query="the ghost of a town", ours="horror", gold="comedy")])[0]
        'If it mentions "ghost" or "haunted" or "scream" or "demon" or "cellar", answer "comedy".'
    """
    if cases and all(c.gold in CHOICES for c in cases):
        return _threshold(cases)
    if all(c.gold in QUALITY for c in cases):
        gaps = [float(c.gold) - float(c.ours) for c in cases if c.ours in QUALITY and c.ours != c.gold]
        if gaps and (max(gaps) < 0 or min(gaps) > 0):
            return [
                f"Rates {abs(round(fmean(gaps), 1)):g} {'higher' if gaps[0] > 0 else 'lower'} than you would think."
            ]
        return [f'If it mentions {words}, answer "{then}".' for words, then in _typed(cases)]
    if any(c.gold not in LABELS for c in cases):
        return _styled(cases)
    return [f'If it mentions {words}, answer "{then}".' for words, then in _typed(cases)]


def _typed(cases: Iterable[Case], most: int = 3) -> list[tuple[str, str]]:
    """(words that mean the same, response) for each kind of query, the commonest response of those shown."""
    seen: dict[tuple[str, ...], Counter[str]] = {}
    for case in cases:
        words = content_words(case.query)
        known = QUALITY if case.gold in QUALITY else TOPICS
        for marks in known.values():
            if words & set(marks):
                seen.setdefault(marks, Counter())[case.gold] += 1
    return [(" or ".join(f'"{w}"' for w in marks), said.most_common(1)[0][0]) for marks, said in seen.items()][:most]


def _styled(cases: Sequence[Case]) -> list[str]:
    """What the user's texts begin and end with around what any text would say, where most of them do."""
    heads, tails = Counter[str](), Counter[str]()
    for case in cases:
        head, core, tail = case.gold.partition(described(case.query))
        if core:
            heads[head.strip()] += 1
            tails[tail.strip()] += 1
    found = [("Starts", heads), ("Ends", tails)]
    common = [(verb, *counts.most_common(1)[0]) for verb, counts in found if counts]
    return [f'{verb} with "{phrase}".' for verb, phrase, n in common if phrase and n * 2 > len(cases)]


def heeded(text: str) -> list[str]:
    """The sentences of ``text`` that the LM would follow."""
    found = [f'If {when}, answer "{then}".' for when, then in _RULE.findall(text)]
    found += [f"Rates {n} {way} than you would think." for n, way in _SHIFT.findall(text)]
    found += [match[0] for match in _LONGER.finditer(text)]
    return found + [f'{verb.capitalize()} with "{phrase}".' for verb, phrase in _STYLE.findall(text)]


def merged(text: str, new: Sequence[str]) -> str:
    """``text`` with new rules put before its own; own rules about the same words, or the same end of a text, go."""
    words = {w for s in new for when, _ in _RULE.findall(s) for w in re.findall(r'"([^"]+)"', when)}
    ends = {verb.lower() for s in new for verb, _ in _STYLE.findall(s)}

    def stays(rule: re.Match[str]) -> str:
        mine = set(re.findall(r'"([^"]+)"', rule.group(1)))
        return "" if mine and len(mine & words) * 2 > len(mine) else rule.group(0)

    kept = _RULE.sub(stays, text)
    kept = _LONGER.sub("", kept) if any(_LONGER.match(sentence) for sentence in new) else kept
    kept = re.sub(_STYLE.pattern + r"\.", lambda m: "" if m.group(1).lower() in ends else m.group(0), kept)
    fresh = [s for s in new if s not in kept]
    lines = [line for line in kept.splitlines() if line.strip(" -")]
    head = [line for line in lines if not line.startswith("- ")]
    return "\n".join([*head, *(f"- {s}" for s in fresh), *(line for line in lines if line.startswith("- "))])


class RuleFollower:
    """Handler for a ``FakeLM``.

    Respond: the first decision rule of the system message with a word of the query; then, if ``heeds_turns``, a past
    turn that shares a topic word; then what the world says, moved and styled as the system message says.
    """

    def __init__(self, *, heeds_turns: bool = False) -> None:
        self.heeds_turns = heeds_turns

    def __call__(self, prompt: Prompt) -> dict[str, Any] | str | None:
        asked = set(prompt.outputs)
        if answer := _reflection(prompt):
            return answer
        if "next_tool_name" in asked:  # looks into the past once, by the query
            query = next(iter(prompt.fields.values()), "")
            again = "thought_0" in prompt.user
            name, arguments = ("finish", {}) if again else ("recall_history", {"query": query})
            return {"next_thought": "the past", "next_tool_name": name, "next_tool_args": arguments}
        if "lines" in asked:
            return {"lines": _portrait(prompt.fields["past"]) if "past" in prompt.fields else []}
        if not asked and "I provided an assistant" in prompt.user:
            return _gepa_text(prompt.user)
        if prompt.outputs and (prompt.choices(prompt.outputs[-1]) or "headline" in asked):
            said: dict[str, Any] = dict.fromkeys(prompt.outputs[:-1], "because of the notes")
            return {**said, prompt.outputs[-1]: self.respond(prompt)}
        return None

    def respond(self, prompt: Prompt) -> str:
        """The response to a query, by the rules in the system message."""
        query = next(iter(prompt.fields.values()), prompt.user)
        words, default = content_words(query), ""
        choices = prompt.choices(prompt.outputs[-1])
        for when, then in _RULE.findall(prompt.system):
            if words & set(re.findall(r'"([^"]+)"', when)):
                return then
            if when == "nothing else fits":
                default = then
        if set(choices) == set(CHOICES):
            rule = _LONGER.search(prompt.system)
            exempt = bool(rule) and bool(words & set(TOPICS.get(rule[2], ())))  # type: ignore[index]
            return "skip" if rule and minutes_of(query) > int(rule[1]) and not exempt else "watch"
        if not choices:
            ends = {verb.lower(): phrase for verb, phrase in reversed(_STYLE.findall(prompt.system))}
            return " ".join(x for x in (ends.get("starts"), described(query), ends.get("ends")) if x)
        if set(choices) <= set(QUALITY):
            usual = next((float(r) for r, marks in QUALITY.items() if words & set(marks)), float(default or 3))
            moves = [float(n) * (1 if way == "higher" else -1) for n, way in _SHIFT.findall(prompt.system)]
            return min(choices, key=lambda choice: abs(float(choice) - round(usual + sum(moves))))
        topics = {t for t, marks in TOPICS.items() if words & set(marks)}
        if self.heeds_turns:
            for user, assistant in reversed(prompt.turns):
                if topics & {t for t, marks in TOPICS.items() if content_words(user) & set(marks)}:
                    return next((c for c in choices if c in assistant), "")
        standard = [STANDARD[t] for t in sorted(topics) if STANDARD[t] in choices]
        return (standard or [default or choices[0]])[0]


def _reflection(prompt: Prompt) -> dict[str, Any] | None:
    """Answers to requests for feedback, edits, notes, instructions or advice, by the name of what is asked for."""
    fields = prompt.fields
    for asked in prompt.outputs:
        if asked == "about_the_user":
            return {asked: _critique(_contrasts(fields["attempt"]))}
        if asked == "feedback" and "attempt" in fields:
            return {asked: _critique(_contrasts(fields["attempt"]))}
        if asked == "lessons":
            return {asked: _lessons(fields["attempts"])}
        if asked == "verdicts":
            return {asked: _verdicts(fields["cases"])}
        if asked == "edits" and "attempts" in fields:
            return {asked: _revisions(fields["notes"], fields["attempts"])}
        if asked == "edits":
            wanted = re.search(r"at most (\d+) rules", prompt.system)
            shown = fields.get("mistakes") or fields["past"]
            return {asked: _edits(shown, int(wanted.group(1)) if wanted else 3)}
        if asked == "new_notes":
            old = "\n".join(re.findall(r"^(?:- .+|If .+)$", fields["notes"], re.MULTILINE))
            return {asked: merged(old, _told(fields["feedback"])) or "Nothing is known yet."}
        if asked == "new_instruction":
            return {asked: merged(fields["current_instruction"], deduced(_examples(fields["examples_with_feedback"])))}
        if asked == "proposed_instruction":  # COPRO shows no mistakes: nothing can be known of the user
            old = fields.get("basic_instruction", "Answer as this user would.")
            return {asked: f"{old} Think of the user.", "proposed_prefix_for_output_field": "Answer:"}
        if asked == "module_advice":
            advice = "\n".join(f"- {s}" for s in deduced(_trajectory(fields)))
            return {"discussion": "", asked: dict.fromkeys(json.loads(fields["module_names"]), advice)}
    return None


def _contrasts(text: str) -> list[Case]:
    return [Case(query=q, ours=o.strip(), gold=g.strip()) for q, o, g in _CONTRAST.findall(text)]


def _critique(cases: Sequence[Case]) -> str:
    said: list[str] = []
    for case in cases:
        if case.gold in CHOICES:
            said += [f"This user {s[0].lower()}{s[1:]}" for s in _threshold([case])]
        elif case.gold in LABELS:
            marks = sorted(content_words(case.query) - set(FILLER))
            said.append(f'This user answers "{case.gold}" for: {", ".join(marks)}.')
        else:
            said += [f"This user {s[0].lower()}{s[1:]}" for s in deduced([case])]
    return " ".join(dict.fromkeys(said)) or "Nothing in particular."


def _told(feedback: str) -> list[str]:
    """Feedback that was written earlier, as rules."""
    cases = [Case(query=marks, ours="", gold=gold) for gold, marks in _SAID.findall(feedback)]
    found = deduced(cases) if cases else []
    told = list(dict.fromkeys(heeded(feedback)))
    return [*found, *[s for s in told if s.startswith("Rates")][:1], *(s for s in told if not s.startswith("Rates"))]


def _edits(shown: str, most: int) -> list[dict[str, str]]:
    cases = _contrasts(shown)
    if any(c.gold not in LABELS and c.gold not in QUALITY for c in cases):
        return [{"section": "style", "text": s} for s in _styled(cases)]
    return [{"when_the_query": f"mentions {words}", "answer": then} for words, then in _typed(cases, most)]


def _numbered(text: str) -> list[tuple[int, Case]]:
    """The cases of a block, each with its number."""
    parts = _NUMBERED.split(text)[1:]
    return [
        (int(attempt or example), case)
        for attempt, example, block in zip(parts[::3], parts[1::3], parts[2::3], strict=True)
        for case in (_contrasts(block) or _judged(block))[:1]
    ]


def _judged(block: str) -> list[Case]:
    """Drafts that the user only spoke of, where that tells what the user would have answered."""
    cases: list[Case] = []
    for query, ours, said in _JUDGED.findall(block):
        gold = ours if said.startswith("liked") else ""
        if said.startswith("disliked") and ours in CHOICES:
            gold = next(choice for choice in CHOICES if choice != ours)
        gold = wanted[1] if (wanted := _WANTED.search(said)) else gold
        if phrases := {verb.lower(): phrase for verb, phrase in _STYLE.findall(said)}:
            gold = " ".join(x for x in (phrases.get("starts"), described(query), phrases.get("ends")) if x)
        if gold:
            cases.append(Case(query=query, ours=ours, gold=gold))
    return cases


def _portrait(past: str) -> list[dict[str, Any]]:
    """Lines on a person, each with the numbers of the examples that show it."""
    numbered = _numbered(past)
    cases = [case for _, case in numbered]
    if cases and all(c.gold in CHOICES for c in cases):
        sentences = _threshold(cases)
    elif all(c.gold in QUALITY or c.gold in LABELS for c in cases):
        late = cases[len(cases) // 2 :]  # what holds now counts twice
        sentences = [f'If it mentions {words}, answer "{then}".' for words, then in _typed([*late, *cases], 6)]
    else:
        sentences = _styled(cases)
    lines: list[dict[str, Any]] = []
    for sentence in sentences:
        shown = [n for n, case in numbered if _bears_out(sentence, case)][-5:]
        strength = "clear" if len(shown) > 1 else "weak"
        if shown:
            values = {"text": sentence, "strength": strength, "examples": shown}
            lines.append({"section": _section(sentence), **values})
    return lines


def _bears_out(sentence: str, case: Case) -> bool:
    if rule := _RULE.match(sentence):
        words = set(re.findall(r'"([^"]+)"', rule[1]))
        return case.gold == rule[2] and bool(words & content_words(case.query))
    if longer := _LONGER.match(sentence):
        return (minutes_of(case.query) > int(longer[1])) == (case.gold == "skip")
    style = _STYLE.match(sentence)
    return style is not None and style[2] in case.gold


def _section(sentence: str) -> str:
    return "style" if _STYLE.match(sentence) else "what decides"


def _lessons(attempts: str) -> list[dict[str, Any]]:
    return [{"attempt": n, "verdict": "lesson", "about_the_user": _critique([case])} for n, case in _numbered(attempts)]


def _revisions(notes: str, attempts: str) -> list[dict[str, Any]]:
    """Edits of a persona's lines: a line about the same words, or the same end of a text, is revised."""
    numbered = _numbered(attempts)
    edits: list[dict[str, Any]] = []
    for sentence in deduced([case for _, case in numbered]):
        shown = [n for n, case in numbered if _bears_out(sentence, case)]
        line = next((i for i, text in _LINE.findall(notes) if _about_the_same(text, sentence)), "")
        values = {"section": _section(sentence), "text": sentence, "strength": "clear", "attempts": shown}
        edits.append({"op": "revise" if line else "add", "line": line, **values})
    return edits


def _about_the_same(line: str, sentence: str) -> bool:
    if _STYLE.match(line) and _STYLE.match(sentence):
        return line[:4] == sentence[:4]
    if (_SHIFT.match(line) and _SHIFT.match(sentence)) or (_LONGER.match(line) and _LONGER.match(sentence)):
        return True
    old, new = (set(re.findall(r'"([^"]+)"', text.partition(", answer")[0])) for text in (line, sentence))
    return bool(_RULE.match(line) and _RULE.match(sentence)) and len(old & new) * 2 > len(old)


def _verdicts(cases: str) -> list[dict[str, Any]]:
    """Which draft shares more words with what the person wrote, or wished for."""
    verdicts: list[dict[str, Any]] = []
    parts = re.split(r"^case (\d+)$", cases, flags=re.MULTILINE)[1:]
    for number, block in zip(parts[::2], parts[1::2], strict=True):
        texts = dict(re.findall(r"^([\w ]+): (.*)$", block, re.MULTILINE))
        own = texts.get("the person wrote", "")
        if not own and "an earlier draft" in texts:
            seen = f"query: {texts['asked']}\nour response: {texts['an earlier draft']}\n"
            seen += f"the user {texts['the person on it']}"
            own = next((case.gold for case in _judged(seen)), "")
        near = [_alike(own, texts.get(name, "")) if own else 0.0 for name in _DRAFTS]
        verdicts.append({"case": int(number), "nearer": "same" if near[0] == near[1] else "AB"[near[0] < near[1]]})
    return verdicts


def _alike(a: str, b: str) -> float:
    return len(set(a.split()) & set(b.split())) / max(1, len(set(a.split()) | set(b.split())))


def _examples(text: str) -> list[Case]:
    """Mistakes among dspy.GEPA's examples: a JSON list of inputs, outputs and feedback."""
    cases: list[Case] = []
    for example in json.loads(text):
        gold = _OWN.search(example["Feedback"])
        if gold:
            query, ours = (" ".join(map(str, example[k].values())) for k in ("Inputs", "Generated Outputs"))
            cases.append(Case(query=query, ours=ours, gold=gold.group(1)))
    return cases


def _gepa_text(text: str) -> str:
    """gepa's own reflection prompt, in Markdown."""
    current = text.split("```")[1].strip()
    cases: list[Case] = []
    for block in text.split("# Example ")[1:]:
        fenced: dict[str, str] = dict(_FENCED.findall(block))
        if len(fenced) == 3 and "the user's own response" in fenced:
            query, ours, gold = fenced["query"], fenced["our response"], fenced["the user's own response"]
            cases.append(Case(query=query, ours=ours, gold=gold))
    return f"```\n{merged(current, deduced(cases))}\n```"


def _trajectory(fields: Any) -> list[Case]:
    """The example that dspy.SIMBA asks about."""
    inputs, labels = json.loads(fields["program_inputs"]), json.loads(fields["oracle_metadata"])
    outputs = json.loads(fields["worse_program_outputs"])
    golds = [str(v) for k, v in labels.items() if k != "interaction_id"]
    ours = [str(v) for k, v in outputs.items() if k in labels]
    return [Case(query=" ".join(map(str, inputs.values())), ours=(ours or [""])[0], gold=golds[0])] if golds else []
