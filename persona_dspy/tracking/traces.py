"""Traces on their way to MLflow: its form of a span, and a queue. Imports no mlflow: only the tracker does."""

from __future__ import annotations

import base64
import json
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Self

from persona_dspy.agent import Span, Trace
from persona_dspy.core import Erasure, Forgets, Interaction, user_key
from persona_dspy.errors import RunError

__all__ = ["TraceSender", "information", "wire_spans"]

_QUEUE = 1000
_PATIENCE = 30  # seconds that a trace which is being written is waited for
_FORGOTTEN = 10_000  # users, the latest: longer than any answer of theirs is under way
_PREVIEW = 1000  # characters of query and response in MLflow's list of traces


class TraceSender:
    """Takes traces at once and sends them one after the other from a thread; call it with a ``Trace``. What users say
    of an answer (``assess``) goes after it.

    Args:
        send: writes one trace down; raises RunError where that fails.
        send_said: writes down what a user said of one; by default nobody does.
        simulated: whether it wants traces of answers to past interactions too.
        tracker: whose traces these are: it can forget a user; None = nobody can.

    Attributes:
        lost: how many could not be sent, or came faster than they could be.
        trouble: the first reason why, or empty.

    Example:
        >>> sent = []
        >>> with TraceSender(sent.append) as sender:
        ...     sender(Trace(user_id="u1", query="Alien", persona_version=0, persona=""))
        >>> len(sent), sender.lost
        (1, 0)
    """

    def __init__(
        self,
        send: Callable[[Trace], Any],
        *,
        simulated: bool = False,
        send_said: Callable[[Interaction], Any] | None = None,
        tracker: Forgets | None = None,
    ) -> None:
        self.simulated, self.lost, self.trouble, self.tracker = simulated, 0, "", tracker
        self._send, self._send_said = send, send_said
        self._queue: queue.Queue[tuple[float, Trace | Interaction] | None] = queue.Queue(_QUEUE)
        self._forgotten: OrderedDict[str, float] = OrderedDict()  # key of a user -> when, seconds since 1970
        self._lock = threading.Condition()
        self._writing = ""  # the key of the user whose item is being written
        self._thread = threading.Thread(target=self._work, daemon=True, name="trace-sender")
        self._thread.start()

    def __call__(self, trace: Trace) -> None:
        self._take(trace)

    def assess(self, said: Interaction) -> None:
        """What a user said of the answer whose trace has the interaction's id."""
        if self._send_said is not None:
            self._take(said)

    def drop(self, user_id: str) -> int:
        """From now on nothing of the user is written that was taken, or began, before: neither what waits (how many)
        nor answers that are under way."""
        with self._lock:
            self._forgotten[user_key(user_id)] = time.time()
            self._forgotten.move_to_end(user_key(user_id))
            while len(self._forgotten) > _FORGOTTEN:
                self._forgotten.popitem(last=False)
        return sum(entry is not None and entry[1].user_id == user_id for entry in list(self._queue.queue))

    def forget(self, user_id: str) -> Erasure:
        """``drop``, and a wait for what is being written now; what was written, ``tracker`` removes."""
        waiting, note = self.drop(user_id), ""
        with self._lock:
            if not self._lock.wait_for(lambda: self._writing != user_key(user_id), _PATIENCE):
                note = f"MLflow did not answer in {_PATIENCE} s to a trace of the user: forget again"
        return Erasure(place="traces on their way", removed={"waiting traces": waiting}, note=note)

    def _may_write(self, taken_at: float, item: Trace | Interaction) -> bool:
        began = min(taken_at, item.started) if isinstance(item, Trace) else taken_at
        with self._lock:
            may = began >= self._forgotten.get(key := user_key(item.user_id), 0.0)
            self._writing = key if may else ""
            return may

    def _take(self, item: Trace | Interaction) -> None:
        try:
            self._queue.put_nowait((time.time(), item))
        except queue.Full:
            self._missed("MLflow is slower than the answers")

    def __deepcopy__(self, memo: dict[int, Any]) -> TraceSender:
        return self  # DSPy copies contexts' values in places; there is one queue

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout: float = 120.0) -> None:
        """Wait until all that was taken is sent, ``timeout`` seconds at most."""
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            pass
        else:
            self._thread.join(timeout)
        if left := self._queue.qsize():  # the thread is stuck, or ended by what nobody expected of MLflow
            self._missed("MLflow did not answer" if self._thread.is_alive() else "the sender failed", left)

    def _work(self) -> None:
        while (entry := self._queue.get()) is not None:
            if self._may_write(*entry):
                self._write(entry[1])

    def _write(self, item: Trace | Interaction) -> None:
        try:
            if isinstance(item, Trace):
                self._send(item)
            elif self._send_said is not None:
                self._send_said(item)
        except RunError as failure:
            self._missed(str(failure))
        finally:
            with self._lock:
                self._writing = ""
                self._lock.notify_all()

    def _missed(self, why: str, count: int = 1) -> None:
        with self._lock:
            self.lost += count
            self.trouble = self.trouble or why


def information(trace: Trace) -> dict[str, Any]:
    """The arguments of MLflow's ``TraceInfo`` that tell about the whole trace."""
    return {
        "request_time": int(trace.started * 1000),
        "execution_duration": int(trace.seconds * 1000),
        "request_preview": trace.query[:_PREVIEW],
        "response_preview": trace.response[:_PREVIEW],
        "trace_metadata": {"mlflow.trace.user": trace.user_id[:250]},
        "tags": {
            "mlflow.traceName": "PersonaAgent",
            "persona_dspy.user_id": trace.user_id,
            "persona_dspy.user": user_key(trace.user_id),
            "persona_dspy.persona_version": str(trace.persona_version),
        },
    }


def wire_spans(trace: Trace) -> tuple[str, list[dict[str, Any]]]:
    """The trace's id, and its spans as what MLflow's ``Span.from_dict`` reads, parents first.

    Example:
        >>> trace_id, spans = wire_spans(Trace(user_id="u1", query="Alien", persona_version=0, persona=""))
        >>> [span["name"] for span in spans], trace_id[:3]
        (['PersonaAgent u1'], 'tr-')
    """
    trace_id = trace.id.removeprefix("tr-")
    spans = trace.spans()
    ids = [_coded(secrets.token_hex(8)) for _ in spans]
    return f"tr-{trace_id}", [
        {
            "trace_id": _coded(trace_id),
            "span_id": ids[n],
            "parent_span_id": None if span.parent is None else ids[span.parent],
            "name": span.name,
            "start_time_unix_nano": span.start_ns,
            "end_time_unix_nano": span.end_ns,
            "attributes": _attributes(span, f"tr-{trace_id}"),
            "status": {"code": "STATUS_CODE_ERROR" if span.failed else "STATUS_CODE_OK", "message": ""},
            "events": [],
        }
        for n, span in enumerate(spans)
    ]


def _attributes(span: Span, trace_id: str) -> dict[str, str]:
    values: dict[str, Any] = {
        "mlflow.traceRequestId": trace_id,
        "mlflow.spanType": span.kind,
        "mlflow.spanInputs": span.inputs,
        "mlflow.spanOutputs": span.outputs,
        **{f"persona_dspy.{name}": value for name, value in span.attributes.items()},
    }
    if span.kind == "LLM":  # of calls alone: MLflow adds them up for the whole trace
        tokens = [0 if span.attributes["cached"] else span.attributes[f"{way}_tokens"] for way in ("input", "output")]
        values["mlflow.llm.model"] = span.attributes["model"]
        values["mlflow.chat.tokenUsage"] = {
            "input_tokens": tokens[0],
            "output_tokens": tokens[1],
            "total_tokens": sum(tokens),
        }
    return {name: json.dumps(value, ensure_ascii=False) for name, value in values.items()}


def _coded(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()
