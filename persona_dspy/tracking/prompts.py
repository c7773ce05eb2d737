"""Personas in MLflow's Prompt Registry: one prompt a user, one version a persona, alias ``current``."""

from __future__ import annotations

from typing import Any

from persona_dspy.core import PersonaDocument, user_key
from persona_dspy.errors import InputError
from persona_dspy.tracking.protocol import prompt_name

__all__ = ["move_prompt", "register_prompt"]


def register_prompt(client: Any, run_id: str, document: PersonaDocument) -> None:
    """A new version of the user's prompt, which becomes ``current``; its tag ``run_id`` names the run that made it.

    The prompt's name is a hash, since names end up in code and links; by its tag ``user`` the registry's page finds it.
    """
    name = prompt_name(document.user_id)
    tags = {"persona_version": str(document.version), "persona_dspy.user": user_key(document.user_id)}
    tags["run_id"] = run_id  # NOTE MLflow's own link looks for the run at the global tracking URI
    prompt = client.register_prompt(name, document.system_prompt or " ", f"version {document.version}", tags)
    client.set_prompt_alias(name, "current", prompt.version)
    client.set_prompt_tag(name, "user", document.user_id)


def move_prompt(client: Any, user_id: str, version: int) -> None:
    """Move the alias ``current`` to the prompt of a persona version.

    Raises:
        InputError: that version was not registered.
    """
    name = prompt_name(user_id)
    versions = {p.tags.get("persona_version"): p.version for p in _versions(client, name)}
    if str(version) not in versions:
        raise InputError(f"prompt of {user_id!r}: version {version!r}: expected one of {sorted(map(str, versions))}")
    client.set_prompt_alias(name, "current", versions[str(version)])


def _versions(client: Any, name: str) -> list[Any]:
    if not client.search_prompts(f"name = '{name}'"):
        return []
    last = max((int(v.version) for v in client.search_prompt_versions(name)), default=0)
    prompts = (client.get_prompt_version(name, number) for number in range(1, last + 1))
    return [prompt for prompt in prompts if prompt is not None]
