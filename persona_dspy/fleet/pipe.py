"""Messages between a fleet's process and its workers, over a pair of sockets that nobody else can open.

The only place that pickles objects, for Ray's actors too: a program with its signatures has no other form. No pickle is
ever in a file.
"""

from __future__ import annotations

import os
import threading
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from persona_dspy.agent import keys_pickled

__all__ = ["Pipe"]


class Pipe:
    """One end; any thread may send, one receives.

    Example:
        >>> import socket
        >>> one, other = (Pipe(s.detach()) for s in socket.socketpair())
        >>> one.send("user", 1, {"id": "u1"})
        >>> other.receive()
        ('user', 1, {'id': 'u1'})
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)  # processes that a program's tools start must not inherit it
        self._connection, self._sending = Connection(descriptor), threading.Lock()

    @staticmethod
    def packed(*message: Any) -> bytes:
        """A message as bytes for ``post``. Raises whatever an object that cannot be pickled raises."""
        with keys_pickled():
            return cloudpickle.dumps(message)

    @staticmethod
    def unpacked(message: bytes) -> tuple[Any, ...]:
        """What ``packed`` made bytes of."""
        return cloudpickle.loads(message)

    def send(self, *message: Any) -> None:
        """Raises OSError where the other end is gone."""
        self.post(self.packed(*message))

    def post(self, message: bytes) -> None:
        """Send a message that ``packed`` made."""
        with self._sending:
            self._connection.send_bytes(message)

    def receive(self) -> tuple[Any, ...]:
        """The next message; EOFError or OSError where the other end is gone."""
        return self.unpacked(self._connection.recv_bytes())

    def close(self) -> None:
        self._connection.close()
