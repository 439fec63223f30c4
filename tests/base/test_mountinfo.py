"""What is mounted: whatever other programs call their mounts, all lines are understood."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.mountinfo import Mounted, all_mounted, parse

# What the kernel escapes in a path (fs/proc_namespace.c).
ESCAPED = b" \t\n\\"

paths = st.binary(min_size=1, max_size=40).map(lambda name: b"/" + name.replace(b"\0", b"x"))


def line_of(path: bytes, fstype: bytes = b"ext4", source: bytes = b"/dev/sda1") -> bytes:
    """Return a line of mountinfo as the kernel writes it."""
    escaped = b"".join(b"\\%03o" % byte if byte in ESCAPED else bytes([byte]) for byte in path)
    return b"36 35 0:45 / " + escaped + b" rw,noatime shared:1 - " + fstype + b" " + source + b" rw"


@given(st.lists(paths, max_size=6))
def test_each_path_is_read_as_it_is(names: list[bytes]) -> None:
    found = parse(b"".join(line_of(name) + b"\n" for name in names))

    assert [os.fsencode(mounted.path) for mounted in found] == names


@given(paths, st.binary(max_size=80).filter(lambda line: b"\n" not in line))
def test_a_line_of_another_form_hides_no_other(path: bytes, odd: bytes) -> None:
    found = parse(odd + b"\n" + line_of(path) + b"\n")

    assert os.fsencode(found[-1].path) == path


@pytest.mark.parametrize(
    ("options", "owner"), [(b"rw,user_id=1000,group_id=5", 1000), (b"rw", None), (b"", None)]
)
def test_owner_is_whoever_mounted(options: bytes, owner: int | None) -> None:
    line = b"36 35 0:45 / /m rw - fuse.dserverfs dserver://h:1/s3/b " + options

    assert parse(line) == [
        Mounted("/m", "fuse.dserverfs", "dserver://h:1/s3/b", os.makedev(0, 45), owner)
    ]


def test_the_kernel_of_this_machine_is_understood() -> None:
    assert "/proc" in {mounted.path for mounted in all_mounted()}
