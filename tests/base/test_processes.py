"""Processes, as /proc shows them."""

from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest

from dserverfs.base.processes import Processes


def test_this_process_is_found_by_each_of_its_threads() -> None:
    processes = Processes()
    found = []

    thread = threading.Thread(
        target=lambda: found.append(processes.of_thread(threading.get_native_id()))
    )
    thread.start()
    thread.join()

    (process,) = found
    assert process is not None
    assert process.pid == os.getpid()
    assert process.parent == os.getppid()
    assert (process.group, process.session) == (os.getpgrp(), os.getsid(0))
    assert not process.has_ended


@pytest.mark.parametrize("thread", [0, -1, 1 << 30])
def test_thread_that_is_none_of_ours_is_unknown(thread: int) -> None:
    assert Processes().of_thread(thread) is None


def test_zombie_has_ended() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

        found = Processes().find(child.pid)

        assert found is not None
        assert found.has_ended
    assert Processes().find(child.pid) is None


def test_first_thread_may_end_before_the_others(tmp_path: Path) -> None:
    stat = "7 (a b) Z 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 99 0"
    (tmp_path / "7").mkdir()
    for threads, has_ended in ((1, True), (2, False)):
        (tmp_path / "7/stat").write_text(stat.format(threads=threads))

        found = Processes(tmp_path).find(7)

        assert found is not None
        assert (found.name, found.started, found.has_ended) == ("a b", 99, has_ended)


@pytest.mark.parametrize(
    "name", ["", "a) R 1 2 3 (b", "\x1b[31m", "two\nlines", "\udcff", "(" * 15]
)
def test_name_of_any_letters_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "7").mkdir()
    text = f"7 ({name}) S 1 2 3 4 5 6 0 0 0 0 0 0 0 0 20 0 1 0 99 0"
    (tmp_path / "7/stat").write_bytes(text.encode("utf-8", "surrogateescape"))

    found = Processes(tmp_path).find(7)

    assert found is not None
    assert found[3:] == (1, 2, 3, 4, 5, False, False, False)
    assert found.name.isprintable()


@pytest.mark.parametrize("text", ["", "7", "7 (x", "7 (x) S", "7 (x) S a b c d e f", "\x00"])
def test_what_cannot_be_read_is_no_process(tmp_path: Path, text: str) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(text)

    assert Processes(tmp_path).find(7) is None


def test_proc_of_another_pid_namespace_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to(str(os.getpid() + 1))
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (x) S 1 2 3 4 5 6 0 0 0 0 0 0 0 0 20 0 1 0 99 0")
    (tmp_path / "7/status").write_text("Tgid:\t7\n")

    assert Processes(tmp_path).of_thread(7) is None


def test_parents_in_a_circle_end() -> None:
    processes = Processes()
    me = processes.find(os.getpid())
    assert me is not None

    pids = [process.pid for process in processes.above(me)]

    assert len(pids) == len(set(pids))
    assert pids[0] == os.getppid()
