"""The survivors of base/, by module and reason."""

from __future__ import annotations

from tests.mutation.survivors.reasons import MOMENT, RACE, SLOWER, Explained

EXPLAINED: Explained = {
    "base/block_hashes": {
        SLOWER: [  # a million small items are not sorted
            (
                "for identifier, hash, size_in_bytes in"
                " sorted(item for item in items if has_hashes(item[2])):",
                "for identifier, hash, size_in_bytes in sorted(item for item in items):",
            )
        ],
    },
    "base/limits": {
        SLOWER: [  # what is said of letters says it of bytes as well
            (
                "and (value.isascii() or _utf8_length(value) is not None)",
                "and ((_utf8_length(value) is not None))",
            ),
            (
                'if len(relpath) > MAX_RELPATH_BYTES or relpath.count("/")'
                " >= MAX_RELPATH_COMPONENTS:",
                "if (relpath.count('/') >= MAX_RELPATH_COMPONENTS):",
            ),
        ],
    },
    "base/durable_files": {
        RACE: [
            (
                "fd = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)",
                "fd = os.open(scratch, (os.O_RDWR | os.O_CREAT) | os.O_CLOEXEC, mode)",
            )
        ],
        MOMENT: [
            (
                "if left.stat().st_mtime < time.time() - older_than_s:",
                "if left.stat().st_mtime <= time.time() - older_than_s:",
            )
        ],
    },
    "base/locks": {
        MOMENT: [
            ("if time.monotonic() >= end_s:", "if time.monotonic() > end_s:"),
            (
                'return os.pread(fd, 4096, 0).decode("utf-8", "replace")',
                'return os.pread(fd, 4097, 0).decode("utf-8", "replace")',
            ),
        ]
    },
}
