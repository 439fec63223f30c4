"""The survivors of writing/, but for what is staged, by module and reason."""

from __future__ import annotations

from tests.mutation.survivors.reasons import MOMENT, RACE, SAME, SLOWER, TYPES, Explained, each

EXPLAINED: Explained = {
    "writing/edits/journal": {
        SAME: [("self._count = itertools.count(1)", "self._count = itertools.count(2)")],
        RACE: [
            (
                "(session / name).unlink(missing_ok=True)",
                "(session / name).unlink(missing_ok=False)",
            ),
            (
                "shutil.rmtree(session, ignore_errors=True)",
                "shutil.rmtree(session, ignore_errors=False)",
            ),
        ],
    },
    "writing/edits/sender": {
        SLOWER: [  # what must not be sent is looked at once more when its turn comes
            (
                "self._local.wait_until_closed(min(timeout_s, LATE_CLOSE_S))",
                "self._local.wait_until_closed(max(timeout_s, LATE_CLOSE_S))",
            ),
            (
                "if file.note.is_complete and file not in self._sending.values():",
                "if (file not in self._sending.values()):",
            ),
            (
                "if file.note.is_complete and file not in self._sending.values():",
                "if (file.note.is_complete):",
            ),
            ("self._refused.discard(file)", "pass"),
        ],
        TYPES: [
            (
                "if file.target is None or not file.is_unsent or not file.note.is_complete:",
                "if (not file.is_unsent or not file.note.is_complete):",
            )
        ],
        SAME: [
            (
                "change = Change(target, content, 0, None, None)",
                "change = Change(target, content, 1, None, None)",
            ),
            (  # nobody looks at what becomes of the thread's work
                "pass # logged, and kept in its note",
                "raise # logged, and kept in its note",
            ),
        ],
    },
    "writing/edits/view": {
        TYPES: [
            (
                "if path is None or self._numbers.get(path) != number:",
                "if (self._numbers.get(path) != number):",
            )
        ],
        SAME: [
            *each(  # another number than before
                "self._times_sent[path] = self._times_sent.get(path, 0) + 1",
                "self._times_sent[path] = (self._times_sent.get(path, 0) - 1)",
                "self._times_sent[path] = self._times_sent.get(path, 0) + 2",
                "self._times_sent[path] = self._times_sent.get(path, 1) + 1",
            ),
            (  # nothing is sent of it before it is changed
                'note = Note(dataset, "", is_complete=False, changed_at=time.time(), read=read)',
                'note = Note(dataset, "", is_complete=True, changed_at=time.time(), read=read)',
            ),
        ],
    },
    "writing/edits/local_file": {
        SAME: [
            ("self.changes = 1", "self.changes = 2"),
            *each(  # a change is counted twice
                "if self.target is not None and (self.note.is_complete or not self.is_unsent):",
                "if (self.note.is_complete or not self.is_unsent):",
                "if (self.target is not None):",
            ),
        ]
    },
    "writing/upload/uploader": {
        TYPES: [  # every server sets a limit
            (
                "if limit is not None and item.size_in_bytes > limit:",
                "if (item.size_in_bytes > limit):",
            )
        ],
    },
    "writing/upload/put_retry": {
        MOMENT: [
            (
                "while left > 0 and not self._broken.is_set():",
                "while left >= 0 and not self._broken.is_set():",
            )
        ],
    },
    "writing/freeze_schedule": {
        TYPES: [
            (
                "if self._delay_s is None or not self.is_armed(staged):",
                "if (not self.is_armed(staged)):",
            )
        ],
        SAME: [  # equal, "4 times its longest pause so far" is said as well
            (
                "is_longer = PAUSES * staged.longest_pause_s > self._delay_s",
                "is_longer = PAUSES * staged.longest_pause_s >= self._delay_s",
            )
        ],
    },
    "writing/freezer": {
        SLOWER: [  # its thread looks sooner, or later, once more
            *each(
                "self._condition.wait(min(wait_s or LOOK_AGAIN_S, LOOK_AGAIN_S))",
                "pass",
                "self._condition.wait(max(wait_s or LOOK_AGAIN_S, LOOK_AGAIN_S))",
                "self._condition.wait(min((LOOK_AGAIN_S), LOOK_AGAIN_S))",
            ),
            ("if not self._freeze_all(due):", "if (self._freeze_all(due)):"),
            ("begun = False", "begun = True"),
            ("begun = True", "begun = False"),
        ],
        SAME: [  # each job is told to stop as well, and ends as soon as it begins
            ("self._pool.shutdown(wait=False, cancel_futures=True)", "pass"),
            (
                "self._pool.shutdown(wait=False, cancel_futures=True)",
                "self._pool.shutdown(wait=False, cancel_futures=False)",
            ),
        ],
    },
    "writing/freeze_job": {
        MOMENT: [("if time.monotonic() > end_s:", "if time.monotonic() >= end_s:")],
        SLOWER: [
            ("self.stop.wait(0.02)", "pass"),
            (
                'with ThreadPoolExecutor(1, thread_name_prefix="seal") as pool:',
                'with ThreadPoolExecutor(2, thread_name_prefix="seal") as pool:',
            ),
        ],
        SAME: [
            (
                "on_taken=lambda item: taken.__setitem__(item.identifier, True),",
                "on_taken=lambda item: taken.__setitem__(item.identifier, False),",
            )
        ],
    },
}
