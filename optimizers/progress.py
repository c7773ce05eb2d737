"""A progress bar over the LM calls of one compile."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm

from optimizers.options import Observer

__all__ = ["progress_bar"]


@contextmanager
def progress_bar(user_id: str, most: int, *, shown: bool) -> Generator[list[Observer]]:
    """Observers that move a bar of ``most`` calls, at most, on standard error; none off the main thread, where many
    compile at once, and no bar where standard error is neither a terminal nor a notebook."""
    if not shown or threading.current_thread() is not threading.main_thread():
        yield []
        return
    with tqdm(total=most, desc=f"aligning {user_id}", unit="call", disable=None, leave=False) as bar:

        def move(event: dict[str, Any]) -> None:
            bar.update(min(event["calls"], most) - bar.n)
            if event["event"] == "step" and event.get("score") is not None:
                bar.set_postfix(score=f"{event['score']:.2f}")

        yield [move]
