"""A dserver's answer to one request.

Made by the transport, read by everything that asks a dserver.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import urllib3

from dserverfs.base.errors import ProtocolError
from dserverfs.base.limits import parse_json
from dserverfs.base.printable import public_url


@dataclass
class Answer:
    """The answer; its `content` is empty while the body is unread."""

    url: str
    status: int = 200
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=urllib3.HTTPHeaderDict)
    content: bytes = b""
    body: urllib3.BaseHTTPResponse | None = None  # to be read and closed by the transport

    @property
    def text(self) -> str:
        """Return the content as text for messages."""
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Return the JSON of the content; raises ProtocolError."""
        try:
            return parse_json(self.content, f"{public_url(self.url)}: the answer")
        except ProtocolError as error:
            raise ProtocolError(f"{error}; is this a dserver?") from error
