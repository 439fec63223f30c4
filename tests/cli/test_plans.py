"""Plans of `warm --plan`: what several lines want of one item, and what is no plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.errors import UsageError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import DserverURI, identifier_of
from dserverfs.cli import plans

URI = "dserver://host/s3/bucket/5b2a3a2c-5a5e-4a37-8d4d-0a1f6c1e9a11"
SIZE = 5 * BLOCK_SIZE

RANGE = st.tuples(st.integers(0, SIZE - 1), st.integers(1, SIZE)).map(
    lambda each: (each[0], min(each[0] + each[1], SIZE))
)
WISH = st.none() | st.lists(RANGE, max_size=4)


def line(ranges: Any, **other: Any) -> bytes:
    values = {"uri": URI, "identifier": identifier_of("x"), "relpath": "x", "hash": "0" * 32}
    return json.dumps({**values, "ranges": ranges, **other}).encode() + b"\n"


@given(wishes=st.lists(WISH, min_size=1, max_size=5))
def test_what_any_line_wants_is_wanted(
    tmp_path_factory: pytest.TempPathFactory, wishes: list[list[tuple[int, int]] | None]
) -> None:
    path = tmp_path_factory.mktemp("plans") / "plan"
    path.write_bytes(b"".join(map(line, wishes)))

    wish = plans.read(path)[DserverURI.parse(URI)][identifier_of("x")]

    assert set(wish.blocks(SIZE)) == {
        offset // BLOCK_SIZE
        for ranges in wishes
        for start, end in ([(0, SIZE)] if ranges is None else ranges)
        for offset in (*range(start, end, BLOCK_SIZE), end - 1)
    }


@pytest.mark.parametrize(
    "other",
    [
        b"no JSON\n",
        b"[]\n",
        line([[5, 5]]),
        line([[-1, 5]]),
        line([[0, 1, 2]]),
        line("all"),
        line(None, uri="dserver://host/s3/bucket"),
        line(None, hash="1" * 32),  # another content than in the first line
    ],
    ids=lambda other: other[:60].decode(),
)
def test_line_that_is_none_is_named(tmp_path: Path, other: bytes) -> None:
    path = tmp_path / "plan"
    path.write_bytes(line([[0, 1]]) + other)

    with pytest.raises(UsageError, match="plan, line 2: is no line of a trace"):
        plans.read(path)
