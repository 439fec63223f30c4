"""Tokens: their sources, and the claims in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dserverfs.base.errors import NotAuthenticated
from dserverfs.remote.tokens import TokenSource, expires_at
from tests.support.quirky_server import jwt


@pytest.mark.parametrize(
    ("token", "subject"),
    [
        (jwt(sub="grumpy"), "grumpy"),
        (jwt(sub=5), None),
        (jwt(), None),
        ("e30.bm90IGpzb24.x", None),
        ("e30.!.x", None),
        ("opaque", None),
    ],
)
def test_subject_of_a_token(token: str, subject: str | None) -> None:
    assert TokenSource(token, None).subject() == subject


def test_empty_token_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")

    with pytest.raises(NotAuthenticated, match="is empty"):
        TokenSource(None, tmp_path / "token").token()


@pytest.mark.parametrize(
    ("token", "expiry_s"),
    [(jwt(exp=1.6e9), 1.6e9), (jwt(exp="soon"), None), (jwt(exp=-1), None), ("opaque", None)],
)
def test_expiry_of_a_token(token: str, expiry_s: float | None) -> None:
    assert expires_at(token) == expiry_s
