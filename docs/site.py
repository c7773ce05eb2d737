"""MkDocs hooks: pages that are written from the code at build time, so that they cannot go stale."""


def on_page_markdown(markdown, page, **_):
    """Fills ``<!-- commands -->``."""
    if page.file.src_uri == "commands.md":
        return markdown.replace("<!-- commands -->", commands())
    return markdown


def commands():
    """Help of every command: what it does, its example, arguments and options."""
    import typer

    from persona_dspy.cli import app

    return "\n\n".join(_command(words, command) for words, command in walk(typer.main.get_command(app)))


def walk(group, words=("persona-dspy",)):
    """(words, click command) of every command, groups opened."""
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from walk(command, (*words, name))
        else:
            yield (*words, name), command


def _command(words, command):
    text = "\n\n".join(
        f"```bash\n{part.removeprefix('Example: ')}\n```" if part.startswith("Example: ") else part
        for part in (command.help or "").split("\n\n")
    )
    rows = ["| option | what |", "|---|---|"]
    for parameter in command.params:
        names = (
            ", ".join(f"`{o}`" for o in parameter.opts if o.startswith("-"))
            or f"`{parameter.metavar or parameter.name}`"
        )
        default = parameter.default
        known = f" Default: `{default}`." if default not in (None, False, "", ()) and not callable(default) else ""
        rows.append(f"| {names} | {(getattr(parameter, 'help', '') or '').replace('|', chr(92) + '|')}{known} |")
    return f"## {' '.join(words[1:])}\n\n{text}\n\n" + "\n".join(rows)
