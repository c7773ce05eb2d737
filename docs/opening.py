"""The parts of README that show what came out of commands, between markers: one persona, and the newest results.

    python docs/opening.py            # writes them anew from examples/, docs/RESULTS.md
    python docs/opening.py --answers  # the answers without and with the persona, too

The persona is one that ``make demo`` learned; a test compares README with what this writes.
"""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
HISTORY = ROOT / "examples" / "support_agents.jsonl"
ANSWERS = ROOT / "examples" / "support_agents.answers.jsonl"
PERSONA = ROOT / "examples" / "agent-03.json"
MAIL = ROOT / "examples" / "mail.txt"
SYSTEMS = ("persona", "persona@no-alignment", "rag", "icl", "direct", "nearest")
WHAT = {
    "persona": "PersonaAgent, aligned",
    "persona@no-alignment": "PersonaAgent, counted facts only",
    "rag": "retrieval: the same episodes, no persona",
    "icl": "the latest episodes as demos",
    "direct": "the LM alone",
    "nearest": "no LM: vote of the 5 nearest episodes",
}


def history():
    """A draft that the user was given, and ten of the user's comments on such drafts."""
    user = json.loads(PERSONA.read_text(encoding="utf-8"))["user_id"]
    mine = [row for row in map(json.loads, HISTORY.read_text(encoding="utf-8").splitlines()) if row["user_id"] == user]
    draft = textwrap.shorten(mine[0]["draft"], 205, placeholder=" ...")
    draft = textwrap.fill(draft, 118, initial_indent="> ", subsequent_indent="> ")
    lines = [f"{row['time']}  {' '.join(row['comment'].split())}" for row in mine[:10]]
    return f"{draft}\n\n```text\n" + "\n".join(lines) + "\n```"


def persona():
    """The system prompt that came out."""
    text = json.loads(PERSONA.read_text(encoding="utf-8"))["system_prompt"]
    lines = [textwrap.fill(line, 118, subsequent_indent="  ") if line else "" for line in text.splitlines()]
    return "```text\n" + "\n".join(lines) + "\n```"


def answers():
    """One answer without the persona and with it, by the command line; the capable model's answers are replayed."""
    query = MAIL.read_text(encoding="utf-8")
    return both(*(subprocess.run(asked(*more), **_RUN, input=query).stdout for more in (("--without-persona",), ())))


_RUN = {"check": True, "capture_output": True, "text": True, "cwd": ROOT}


def asked(*more):
    """The command that asks for an answer to the mail on its standard input, as README says it."""
    files = [path.relative_to(ROOT).as_posix() for path in (PERSONA, HISTORY, ANSWERS)]
    return ["persona-dspy", "ask", files[0], "--history", files[1], "--lm", f"replayed:{files[2]}", "-", *more]


def both(without, with_persona):
    """Two answers as README shows them."""
    lines = []
    for title, answer in (("without", without), ("with", with_persona)):
        given = answer.strip()
        whole = (
            textwrap.wrap(" ".join(given.split()), 108) if len(given) > 300 else [x for x in given.splitlines() if x]
        )
        lines += [f"{title if not n else '':9}{line}".rstrip() for n, line in enumerate(whole)]
    return "```text\n" + "\n".join(lines) + "\n```"


def results():
    """Every task of docs/RESULTS.md that has a table: a row a system, the score with its interval."""
    text = (ROOT / "docs" / "RESULTS.md").read_text(encoding="utf-8")
    tables = {}
    for part in text.split("\n### ")[1:]:
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:1] == "|"]
        if len(rows) > 2 and rows[0][0] == "system":
            named = {row[0]: row for row in rows[2:]}
            task = part.partition("(")[0].strip()
            tables[f"{task}, {rows[0][3].replace('[95%]', '').strip()}"] = named
    lines = ["| system | " + " | ".join(tables) + " |", "|---|" + "---|" * len(tables)]
    for system in SYSTEMS:
        cells = [_short(named[system][3]) if system in named else "-" for named in tables.values()]
        lines.append(f"| {WHAT[system]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _short(cell):
    return re.sub(r"\b0\.", ".", cell)


def filled(text, parts):
    """README with the parts between their markers."""
    for name, part in parts.items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)"
        text, count = re.subn(pattern, lambda m, p=part: m[1] + p + "\n" + m[2], text, flags=re.DOTALL)
        assert count == 1, f"README.md: expected one pair of markers for {name}"
    return text


def main():
    parts = {"history": history(), "persona": persona(), "results": results()}
    if "--answers" in sys.argv[1:]:
        parts["answers"] = answers()
    README.write_text(filled(README.read_text(encoding="utf-8"), parts), encoding="utf-8")


if __name__ == "__main__":
    main()
