"""Values of JSON, changed as a hostile or broken program might, for tests of what reads them."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from hypothesis import strategies as st

from dserverfs.base.errors import DserverfsError


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(None, True, False, -1, 0, 1.5, 10**30, -(10**30), 10**400, 1e300, math.nan, -math.inf),
    *("", "x", "\ud800", "\0", "../..", "\x1b[2J", "nan", "1e999", "9" * 5000, "x" * 9000),
    *([], {}, [None], {"a": {}}, {"\ud800": 1}, [[]], nested(90), nested(150)),
]
# What is no JSON, or is more than Python can read.
BYTES = [b"\xff", b"\0", b'"', b"}", b"[", b",", b"NaN", b"\\ud800", b"1" * 5000, b"[" * 3000]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container in the value with each of its keys."""
    pending = [value]
    while pending:
        container = pending.pop()
        keys: list[Any] = []
        if isinstance(container, dict):
            keys = list(container)
        elif isinstance(container, list):
            keys = list(range(len(container)))
        for key in keys:
            yield container, key
            pending.append(container[key])


def _change(value: Any, chance: random.Random) -> Any:
    places = list(_places(value))
    if not places or chance.random() < 0.05:
        return copy.deepcopy(chance.choice(HOSTILE))
    container, key = chance.choice(places)
    what = chance.randrange(5)
    if what == 0:
        del container[key]
    elif what == 1 and isinstance(container, dict):
        container[chance.choice(["", "\ud800", "x" * 300, "../x"])] = container.pop(key)
    elif what == 2 and isinstance(container, list):
        container.append(copy.deepcopy(container[key]))
    else:
        container[key] = copy.deepcopy(chance.choice(HOSTILE))
    return value


def mutated(value: Any) -> st.SearchStrategy[bytes]:
    """Return JSON text of the value with some changes; now and then it is no JSON any more."""

    def text(chance: random.Random) -> bytes:
        changed = copy.deepcopy(value)
        for _ in range(chance.randrange(1, 4)):
            changed = _change(changed, chance)
        content = json.dumps(changed).encode()
        if chance.random() < 0.2:
            place = chance.randrange(len(content) + 1)
            after = content[place:] if chance.random() < 0.5 else b""
            content = content[:place] + chance.choice(BYTES) + after
        return content

    return st.randoms(use_true_random=True).map(text)


@contextlib.contextmanager
def only_errors_of_ours() -> Iterator[None]:
    """Let the block raise errors of ours, whose messages print, and log what it leaves out."""
    logging.disable(logging.WARNING)
    try:
        yield
    except DserverfsError as error:
        assert str(error).isprintable()  # noqa: PT017
    finally:
        logging.disable(logging.NOTSET)


def mangled(example: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """Return the example with a few changes: words put in, bytes changed, taken out, repeated."""
    content = bytearray(example)
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(len(content) + 1)
        what = chance.randrange(5)
        if what == 0 and words:
            content[place:place] = chance.choice(words)
        elif what == 1:
            del content[place : place + chance.randrange(1, 8)]
        elif what == 2:
            content[place : place + 1] = bytes([chance.randrange(256)])
        elif what == 3:
            start = chance.randrange(len(content) + 1)
            content[place:place] = content[start : start + 12]
        else:
            content[place:place] = bytes([chance.randrange(256)]) * chance.choice([1, 2, 40, 5000])
    return bytes(content)
