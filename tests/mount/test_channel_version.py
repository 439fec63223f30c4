"""The version of what a channel and a daemon tell each other, which may be of two installations."""

from __future__ import annotations

import hashlib
import os
from struct import Struct

import pytest

from dserverfs.mount.channel import contents, messages, rows
from dserverfs.mount.channel.handles import Use
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.messages import Kind, Shared
from dserverfs.mount.channel.succession import Heritage, Recipe

# Of version 2. If this is another one, raise messages.VERSION, and write it down here.
VERSION, DIGEST = 2, "e1592e244142a445"


def digest() -> str:
    """Return a digest of all that both have to understand alike."""
    told: list[object] = [
        *((kind.name, int(kind)) for kind in Kind),
        *((use.name, int(use)) for use in Use),
        *(Heritage._fields, Recipe._fields, Shared.BYTES, messages.MAX_BYTES, messages.MAX_BLOCKS),
    ]
    for module in (messages, rows, contents):
        told += sorted(
            (name, each.format) for name, each in vars(module).items() if isinstance(each, Struct)
        )
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def test_version_is_another_one_with_each_change_of_what_is_told() -> None:
    assert (messages.VERSION, digest()) == (VERSION, DIGEST)


@pytest.mark.parametrize("version", [0, messages.VERSION - 1, messages.VERSION + 1])
def test_channel_of_another_version_is_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(messages, "VERSION", version)
        memory = Shared.create()
    fds = Heritage._make(os.memfd_create(name) for name in Heritage._fields)
    try:
        with pytest.raises(ValueError, match="another version"):
            Link.inherit(fds._replace(memory=memory))
    finally:
        for fd in (*fds, memory):
            os.close(fd)
