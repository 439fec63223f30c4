"""An answer's content, as JSON and as text for messages."""

from __future__ import annotations

import pytest

from dserverfs.base.errors import ProtocolError
from dserverfs.remote.answers import Answer


def test_content_is_read_as_json() -> None:
    assert Answer("http://h/a", content=b'{"a": [1]}').json() == {"a": [1]}


def test_content_that_is_no_json_is_told_without_the_query() -> None:
    with pytest.raises(ProtocolError, match="is this a dserver") as refusal:
        Answer("http://h/a?token=secret", content=b"<html>").json()

    assert "http://h/a" in str(refusal.value)
    assert "secret" not in str(refusal.value)


def test_text_of_another_encoding_can_be_shown() -> None:
    assert Answer("http://h/a", content=b"caf\xe9").text == "caf\ufffd"
