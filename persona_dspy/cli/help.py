"""Help pages: options in groups, every name and default whole at 80 columns."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["GROUPS", "grouped"]

GROUPS: dict[str, str] = {
    "Users and files": "task users queries out store history persona user group skip_bad_rows limit evaluation "
    "dataset columns from_mlflow experiment since fields traces title pages "
    "queue predict official version base_url split every_user seeds "
    "only sections of to",
    "Models": "lm reflection_lm model upstream retrieval k turn_tokens seed actions knowledge without_persona",
    "Lines": "add revise drop lock unlock by",
    "Learning": "program metric auto recent epochs gate optimizer_calls in_paper every",
    "Comparison": "systems references ablations scale cold",
    "Budgets": "budget_calls budget_tokens budget_usd user_budget_calls user_budget_tokens calls tokens usd seconds "
    "estimate calls_per_second",
    "How it runs": "workers processes engine resume fresh host port max_bytes yes",
    "Output": "progress json_output tracking_uri runs register_prompts trace trace_json help",
}
"""Options by the name of their parameter, in the order in which a long help page shows them."""
COMMANDS: dict[str, str] = {
    "Learn and use": "compile status show ask edit report",
    "Store": "ingest users history diff rollback export import forget",
    "Serve": "serve",
    "Measure": "evaluate reproduce",
    "Set up": "config models data",
}
_GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
_LONG = 8  # so many options are no list that one reads
_COLUMN = 26
_KINDS = {
    "<int range>": "N",
    "<int>": "N",
    "<float range>": "X",
    "<float>": "X",
    "<path>": "PATH",
    "<str>": "TEXT",
    "<list[str]>": "TEXT",
    "<list[path]>": "PATH",
}


class _Command(TyperCommand):
    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, then options; in groups where there are many."""
        arguments: list[tuple[str, str]] = []
        options: dict[str, list[tuple[str, str]]] = defaultdict(list)
        parameters = self.get_params(ctx)
        many = sum(p.param_type_name == "option" for p in parameters) > _LONG
        for parameter in parameters:
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            if parameter.param_type_name == "argument":
                arguments.append(record)
            else:
                group = _GROUP_OF.get(str(parameter.name), "Other") if many else "Options"
                options[group].append(_record(parameter, *record))
        sections = {"Arguments": arguments, **{g: options[g] for g in (*GROUPS, "Other", "Options")}}
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records, col_max=_COLUMN)


def _record(option: Any, names: str, text: str) -> tuple[str, str]:
    """A switch that is off by default is named once, and its default not at all: nobody types --no-resume."""
    if option.is_flag and not option.default:
        return ", ".join(option.opts), option.help or ""
    for kind, word in _KINDS.items():
        names = names.replace(kind, word)
    return names, text


class _Group(TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Every command with its first sentence, by what it is for."""
        left = dict.fromkeys(self.list_commands(ctx))
        for title, names in {**COMMANDS, "Commands": " ".join(self.list_commands(ctx))}.items():
            rows = [(name, self._first_sentence(ctx, name)) for name in names.split() if name in left]
            for name, _ in rows:
                del left[name]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _first_sentence(self, ctx: Any, name: str) -> str:
        command: Any = self.get_command(ctx, name)
        paragraph = " ".join((command.help or "").partition("\n\n")[0].split())
        return paragraph.partition(". ")[0].rstrip(".") + "."


def grouped(app: typer.Typer) -> typer.Typer:
    """The app with such help pages, those of the commands in its groups too."""
    app.rich_markup_mode = None
    app.info.cls = _Group
    for command in app.registered_commands:
        command.cls = _Command
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            grouped(inner.typer_instance)
    return app
