"""One process of several that read files at the same time: `training` starts them.

Standard input has the paths, one in each line, an empty line, and then, when all processes are
there, another one, which is the start. Standard output says "ready", "read", and at last
the MD5 of each file: exactly the bytes that were read are hashed, when the clock has stopped.
Imports little, so that eight of them start soon.
"""

from __future__ import annotations

import hashlib
import os
import sys


def main() -> None:
    """The arguments are how many bytes there are in all, and how many are asked for at a time."""
    in_all, at_a_time = map(int, sys.argv[1:])
    paths = []
    while path := sys.stdin.buffer.readline().rstrip(b"\n"):
        paths.append(path)
    # Written to before, so that no reading pays for page faults.
    memory = memoryview(bytearray(b"\1" * (in_all + at_a_time)))
    _say("ready")
    sys.stdin.buffer.readline()
    ends = []
    offset = 0
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            while count := os.readv(descriptor, [memory[offset : offset + at_a_time]]):
                offset += count
        finally:
            os.close(descriptor)
        ends.append(offset)
    _say("read")
    for start, end in zip([0, *ends], ends, strict=False):
        _say(hashlib.md5(memory[start:end]).hexdigest())


def _say(what: str) -> None:
    print(what, flush=what in ("ready", "read"))


if __name__ == "__main__":
    main()
