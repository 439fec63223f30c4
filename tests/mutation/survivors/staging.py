"""The survivors of writing/staging/, by module and reason."""

from __future__ import annotations

from tests.mutation.survivors.reasons import MOMENT, SAME, SLOWER, TYPES, Explained, each

EXPLAINED: Explained = {
    "writing/staging/survey": {
        MOMENT: [
            (
                "content = file.read(MAX_README_BYTES + 1)",
                "content = file.read(MAX_README_BYTES + 2)",
            )
        ],
    },
    "writing/staging/dataset": {
        SAME: [
            ("self._changes = 0", "self._changes = 1"),
            ("self._changes += 1", "self._changes -= 1"),
            ("self._changes += 1", "self._changes += 2"),
        ],
        MOMENT: [
            (
                "content = file.read(MAX_STATE_BYTES + 1)",
                "content = file.read(MAX_STATE_BYTES + 2)",
            ),
            (
                "if len(content) > max(status.st_blocks * 512, status.st_size):",
                "if len(content) >= max(status.st_blocks * 512, status.st_size):",
            ),
            (
                "if len(content) > max(status.st_blocks * 512, status.st_size):",
                "if len(content) > max(status.st_blocks * 513, status.st_size):",
            ),
        ],
    },
    "writing/staging/file_hashes": {
        SAME: [  # what is closed keeps nothing either
            ("self._connection = None", "pass"),
        ],
        SLOWER: [
            ("other.result()", "pass"),
            ('connection.execute("PRAGMA journal_mode = WAL")', "pass"),
            ('connection.execute("PRAGMA synchronous = NORMAL")', "pass"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = max(8, os.cpu_count() or 1)"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = min(8, (1))"),
            ("THREADS = min(8, os.cpu_count() or 1)", "THREADS = min(8, (os.cpu_count()))"),
            *each(
                "os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)",
                "pass",
                "os.posix_fadvise(descriptor, 1, 0, os.POSIX_FADV_SEQUENTIAL)",
                "os.posix_fadvise(descriptor, 0, 1, os.POSIX_FADV_SEQUENTIAL)",
            ),
        ],
    },
    "writing/staging/sealing": {
        TYPES: [
            (
                "if found.admin_metadata is None or found.manifest is None:",
                "if (found.manifest is None):",
            ),
            (
                "if found.admin_metadata is None or found.manifest is None:",
                "if (found.admin_metadata is None):",
            ),
        ],
        SLOWER: [
            (
                'pool = ThreadPoolExecutor(1, thread_name_prefix="sync")',
                'pool = ThreadPoolExecutor(2, thread_name_prefix="sync")',
            ),
            ("pool.shutdown(wait=False)", "pass"),
            ("pool.shutdown(wait=False)", "pool.shutdown(wait=True)"),
        ],
    },
    "writing/staging/area": {
        SAME: [("del self._known[path]", "pass")],
    },
}
