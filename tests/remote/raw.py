"""A server that sends prepared bytes, for what nginx cannot be made to say."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class RawServer:
    """Server of one answer after the other, whatever is asked.

    Args:
        answers: answers in order, each with its header.

    Attributes:
        requests: requests as they came.
        connections: number of connections so far.
    """

    def __init__(self, answers: Sequence[bytes]) -> None:
        self._answers = [*answers]
        self.requests: list[bytes] = []
        self.connections = 0

    @property
    def url(self) -> str:
        """Address, without a slash at its end."""
        return f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        if self._connection is not None:  # a client's pool may keep it open
            with contextlib.suppress(OSError):  # it has ended
                self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()

    def _serve(self) -> None:
        while self._answers:
            try:
                self._connection, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            with self._connection as connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                self._talk(connection)

    def _talk(self, connection: socket.socket) -> None:
        while self._answers:
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.requests.append(request)
            answer = self._answers.pop(0)
            connection.sendall(answer)
            if b"ETag" not in answer:  # no sound answer
                return
