"""Whatever bytes others send, each parser reads them or raises an error of ours."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.mutations import mangled
from tests.support.parsers import PARSERS, read_mutated


@pytest.mark.parametrize("name", PARSERS)
def test_example_of_each_parser_is_read(name: str) -> None:
    PARSERS[name].read(PARSERS[name].example)


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=100, deadline=None)
@given(chance=st.randoms(use_true_random=True))
def test_parser_reads_or_raises_an_error_of_ours(name: str, chance: random.Random) -> None:
    """The soak goes on with this, guided by what is covered."""
    for _ in range(10):
        read_mutated(name, mangled(PARSERS[name].example, PARSERS[name].words, chance))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("URI", b"h:1/s3/b/\xd8"),
        ("mounts", b"36 35 4294967296:1 / /mnt rw - fuse.dserverfs dserver://h rw,user_id=0"),
        ("mounts", b"36 35 0:52 / /mnt rw - fuse.dserverfs dserver://h user_id=" + b"9" * 5000),
    ],
)
def test_bytes_that_were_a_fault_are_read(name: str, content: bytes) -> None:
    read_mutated(name, content)
