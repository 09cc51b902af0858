"""A WebSocket as a test opens it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
from httpx2.websockets import WebSocketDisconnect, WebSocketSession

Message = dict[str, Any]
SECONDS = 20


class Socket:
    """Says and hears JSON."""

    def __init__(self, session: WebSocketSession) -> None:
        self._session = session

    @classmethod
    @contextmanager
    def open(cls, client: httpx2.Client, path: str) -> Iterator[Socket]:
        """Opens one; it is closed at the end."""
        with client.websocket(path) as session:
            yield cls(session)

    def send(self, message: Message) -> None:
        """Says something."""
        self.send_text(json.dumps(message))

    def send_text(self, text: str) -> None:
        """The same, whatever it is."""
        self._session.send_text(text)

    def send_bytes(self, data: bytes) -> None:
        """What is no text."""
        self._session.send_bytes(data)

    def receive(self) -> Message:
        """The next message."""
        said: Message = json.loads(self._session.receive_text(timeout=SECONDS))
        return said

    def until(self, is_it: Callable[[Message], bool]) -> list[Message]:
        """All messages up to the one that is meant."""
        heard = [self.receive()]
        while not is_it(heard[-1]):
            heard.append(self.receive())
        return heard

    def close_code(self) -> int:
        """The code that the server closes with."""
        with pytest.raises(WebSocketDisconnect) as caught:
            self.until(lambda message: False)
        return caught.value.code
