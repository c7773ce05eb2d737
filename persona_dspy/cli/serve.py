"""``persona-dspy serve``: an OpenAI-compatible proxy with a persona per user."""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from persona_dspy.cli.output import JsonOption, echo, print_json
from persona_dspy.cli.serving import ServeSettings, alignment_lm
from persona_dspy.cli.store import StoreOption, open_store, queue_folder
from persona_dspy.core import plural

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("serve")(serve)


def serve(  # noqa: PLR0913 - one option each
    upstream: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible API.")] = "https://api.openai.com/v1",
    store: StoreOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="The upstream's model that aligns, with the key in OPENAI_API_KEY. Default: nobody is aligned."
        ),
    ] = None,
    every: Annotated[int, typer.Option(min=1, help="Interactions from one alignment of a user to the next.")] = 3,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    queue: Annotated[
        Path | None,
        typer.Option(help="Folder where feedback waits while the store is gone. Default: beside it."),
    ] = None,
    tracking_uri: Annotated[str, typer.Option(help="MLflow URI for alignments, or 'off'.")] = "off",
    max_bytes: Annotated[int, typer.Option(min=1024, help="The largest body that is read.")] = 4 * 1024 * 1024,
    json_output: JsonOption = False,
) -> None:
    """Serve an OpenAI-compatible API in front of another one: the persona of the request's user is put last into the
    system message. The token of PERSONA_DSPY_TOKEN has to come with each request, in the header X-Persona-Token.

    Example: persona-dspy serve --store personas.db --upstream https://api.openai.com/v1 --model gpt-4o-mini
    """
    from persona_dspy.lm import home_dir

    where = str(home_dir() / "personas.db") if store is None else store
    waiting = queue or queue_folder(where)
    settings = ServeSettings(
        store=where,
        upstream=upstream,
        model=model,
        every=every,
        queue=str(waiting),
        tracking_uri=tracking_uri,
        max_bytes=max_bytes,
    )
    _check(settings)
    url = f"http://{host}:{port}/v1"
    if json_output:
        print_json({"url": url, "workers": workers, **asdict(settings)})
    else:
        learning = (
            f"{model} aligns after every {plural(every, 'interaction')}" if model else "nobody is aligned: no --model"
        )
        echo(f"{url} -> {upstream}; {learning}; feedback waits in {waiting} if need be", err=True)
    settings.to_environment()
    _run(host, port, workers)


def _check(settings: ServeSettings) -> None:
    """What would stop every worker stops the command first.

    Raises:
        InputError: a package is missing, no token, no key, no such upstream.
        StoreError: the store cannot be opened.
    """
    from persona_dspy.errors import InputError, to_install

    try:
        import uvicorn as _  # noqa: F401

        from persona_dspy.service import ProxyOptions, checked_token
    except ModuleNotFoundError as missing:
        raise InputError(f"serve: expected the package {missing.name!r}; {to_install('serve')}") from None
    checked_token(os.environ.get("PERSONA_DSPY_TOKEN"))
    ProxyOptions(upstream=settings.upstream, max_bytes=settings.max_bytes)
    if settings.model is not None:
        alignment_lm(settings.model, settings.upstream)
    open_store(settings.store, new=True).close()


def _run(host: str, port: int, workers: int) -> None:
    import uvicorn

    with tempfile.TemporaryDirectory(prefix="persona-metrics-") as shared:
        if workers > 1:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = shared  # the workers' counts are told as one
        uvicorn.run(
            "persona_dspy.cli.serving:application",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            access_log=False,  # it would name users
            server_header=False,
            timeout_graceful_shutdown=30,
            log_level="warning",
        )
