"""Who counts as still writing: the rule, on processes that are made up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.processes import Processes
from dserverfs.writing.staging.writers import PROMPT_S, Writers, sentence

TERMINAL = 34816

PF_KTHREAD = 0x00200000


class Machine:
    """A /proc with processes in it, and a clock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now_s = 1000.0
        (root / "self").symlink_to(str(os.getpid()))
        self.start(1, "init", parent=0, session=1)

    def start(
        self,
        pid: int,
        name: str,
        *,
        parent: int = 1,
        session: int | None = None,
        group: int | None = None,
        terminal: int = 0,
        foreground: int = -1,
        started: int = 5,
        cgroup: str = "0::/",
        threads: tuple[int, ...] = (),
        flags: int = 0x00400000,  # PF_RANDOMIZE
    ) -> None:
        session = pid if session is None else session
        group = session if group is None else group
        text = (
            f"{pid} ({name}) S {parent} {group} {session} {terminal} {foreground}"
            f" {flags} 0 0 0 0 0 0 0 0 20 0 1 0 {started} 0 0"
        )
        for number in (pid, *threads):
            directory = self.root / str(number)
            directory.mkdir(exist_ok=True)
            (directory / "status").write_text(f"Name:\t{name}\nTgid:\t{pid}\n")
        # Of threads only what is asked of them, for /proc does not list them.
        (self.root / str(pid) / "stat").write_text(text)
        (self.root / str(pid) / "cgroup").write_text(cgroup)

    def end(self, *pids: int) -> None:
        for pid in pids:
            for path in (self.root / str(pid)).iterdir():
                path.unlink()
            (self.root / str(pid)).rmdir()

    def later(self) -> None:
        self.now_s += 2 * PROMPT_S


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    # One that no process here is given: in a namespace of its own the tests' may be 61.
    monkeypatch.setattr(os, "getpid", lambda: 4_000_000)
    return Machine(tmp_path)


@pytest.fixture
def writers(machine: Machine) -> Writers:
    return Writers(Processes(machine.root), lambda: machine.now_s)


def pids(writers: Writers, asked_by: int = 0) -> list[int]:
    return sorted(one.pid for one in writers.running(asked_by=asked_by))


def test_one_that_wrote_counts_until_it_ends(machine: Machine, writers: Writers) -> None:
    machine.start(50, "python", threads=(51, 52))
    writers.wrote(52)

    assert [str(one) for one in writers.running()] == ["python (pid 50), which wrote to it"]
    machine.end(50)
    assert not writers.running()


def test_another_process_with_the_same_pid_does_not_count(
    machine: Machine, writers: Writers
) -> None:
    machine.start(50, "python", started=5)
    writers.wrote(50)

    machine.start(50, "python", started=6)

    assert not writers.running()


def test_one_with_the_same_pid_that_writes_counts(machine: Machine, writers: Writers) -> None:
    machine.start(50, "python", started=5)
    writers.wrote(50)
    machine.start(50, "other", started=6)
    machine.now_s += 60
    writers.wrote(50)

    assert [one.name for one in writers.running()] == ["other"]


def test_script_whose_programs_write_counts_as_long_as_it_runs(
    machine: Machine, writers: Writers
) -> None:
    """`for i in ...; do compute; cp out-$i DIR; done`, as a batch job."""
    machine.start(40, "slurmstepd")
    machine.start(50, "job.sh", parent=40)
    for pid in range(60, 70):
        machine.start(pid, "cp", parent=50, session=50)
        writers.wrote(pid)
        machine.end(pid)
        machine.start(100, "compute", parent=50, session=50)

        assert pids(writers) == [50]
    machine.end(50)
    assert pids(writers) == [100]  # in the background
    machine.end(100)
    assert pids(writers) == []


def test_script_that_is_run_from_a_shell_counts_and_the_shell_does_not(
    machine: Machine, writers: Writers
) -> None:
    machine.start(40, "bash", terminal=TERMINAL, foreground=50)
    machine.start(50, "bash", parent=40, session=40, group=50, terminal=TERMINAL, foreground=50)
    machine.start(60, "cp", parent=50, session=40, group=50, terminal=TERMINAL, foreground=50)
    writers.wrote(60)
    machine.end(60)
    assert 50 in pids(writers)

    machine.end(50)
    machine.start(40, "bash", terminal=TERMINAL, foreground=40)

    assert pids(writers) == []


def test_timeout_that_makes_a_group_of_its_own_hides_no_script(
    machine: Machine, writers: Writers
) -> None:
    at: dict[str, Any] = {"session": 40, "terminal": TERMINAL, "foreground": 50}
    machine.start(40, "zsh", terminal=TERMINAL, foreground=50)
    machine.start(50, "job.sh", parent=40, group=50, **at)
    machine.start(60, "timeout", parent=50, group=60, **at)
    machine.start(61, "cp", parent=60, group=60, **at)
    writers.wrote(61)
    machine.end(60, 61)

    assert 50 in pids(writers)


def test_shell_that_waits_for_a_line_does_not_count(machine: Machine, writers: Writers) -> None:
    machine.start(40, "bash", terminal=TERMINAL, foreground=40)

    writers.wrote(40)

    assert pids(writers) == []


def test_shell_that_runs_a_command_is_in_the_middle_of_a_line(
    machine: Machine, writers: Writers
) -> None:
    """`for i in ...; do compute; cp out-$i DIR; done`, typed."""
    machine.start(40, "bash", terminal=TERMINAL, foreground=60)
    machine.start(60, "cp", parent=40, session=40, group=60, terminal=TERMINAL, foreground=60)
    writers.wrote(60)
    machine.end(60)
    machine.start(40, "bash", terminal=TERMINAL, foreground=61)
    machine.start(61, "compute", parent=40, session=40, group=61, terminal=TERMINAL, foreground=61)

    (one,) = writers.running()
    assert str(one) == "bash (pid 40), the shell it was written from, which runs a command"

    machine.start(40, "bash", terminal=TERMINAL, foreground=40)
    assert pids(writers) == []
    machine.later()
    assert pids(writers) == []
    assert not writers.has_shell
    machine.start(40, "bash", terminal=TERMINAL, foreground=62)  # the next line
    assert pids(writers) == []


def test_shell_in_a_shell_does_not_count(machine: Machine, writers: Writers) -> None:
    at: dict[str, Any] = {"session": 40, "terminal": TERMINAL}
    machine.start(40, "bash", terminal=TERMINAL, foreground=60)
    machine.start(50, "salloc", parent=40, group=50, foreground=60, **at)
    machine.start(55, "bash", parent=50, group=55, foreground=60, **at)
    machine.start(60, "cp", parent=55, group=60, foreground=60, **at)
    writers.wrote(60)
    machine.end(60)
    machine.start(55, "bash", parent=50, group=55, foreground=55, **at)

    assert pids(writers) == []


@pytest.mark.parametrize("name", ["python", "job.sh"])
def test_program_with_a_terminal_of_its_own_is_no_shell(
    machine: Machine, writers: Writers, name: str
) -> None:
    """`tmux new 'python job.py'`."""
    machine.start(50, name, terminal=TERMINAL, foreground=50)
    writers.wrote(50)

    assert pids(writers) == [50]


def test_kernel_of_a_notebook_counts_and_the_server_that_began_it_does_not(
    machine: Machine, writers: Writers
) -> None:
    machine.start(40, "jupyter-lab")
    machine.start(50, "python", parent=40)
    machine.start(60, "sh", parent=50, session=50)
    machine.start(61, "cp", parent=60, session=50)
    writers.wrote(61)
    machine.end(60, 61)

    assert pids(writers) == [50]


def test_program_of_a_desktop_is_not_of_one_job_with_the_desktop(
    machine: Machine, writers: Writers
) -> None:
    machine.start(40, "gnome-shell", cgroup="0::/org.gnome.Shell.service")
    machine.start(50, "fiji", parent=40, session=40, cgroup="0::/app-fiji.scope")
    writers.wrote(50)
    machine.end(50)

    assert pids(writers) == []


def test_one_of_another_session_that_has_the_number_of_the_group_does_not_count(
    machine: Machine, writers: Writers
) -> None:
    machine.start(50, "job.sh")
    writers.wrote(50)
    machine.end(50)
    machine.start(51, "other", session=49, group=50)

    assert pids(writers) == []


def test_group_whose_numbers_come_again_in_another_session_does_not_count(
    machine: Machine, writers: Writers
) -> None:
    machine.start(50, "job.sh", started=5)
    machine.start(60, "cp", parent=50, session=50)
    writers.wrote(60)
    machine.end(50, 60)

    machine.start(50, "other", started=6)
    machine.start(61, "more", parent=50, session=50)

    assert pids(writers) == []


def test_group_counts_when_the_leader_of_its_session_has_ended(
    machine: Machine, writers: Writers
) -> None:
    machine.start(50, "job.sh")
    machine.start(60, "cp", parent=50, session=50)
    machine.start(61, "compute", parent=50, session=50)
    writers.wrote(60)

    machine.end(50, 60)

    assert pids(writers) == [61]


def test_who_cannot_be_known_is_remembered(machine: Machine, writers: Writers) -> None:
    assert not writers.unknown

    writers.wrote(0)

    assert writers.unknown
    assert pids(writers) == []


def test_thread_of_the_kernel_is_none_that_ends(machine: Machine, writers: Writers) -> None:
    machine.start(90, "nfsd", parent=2, session=0, flags=PF_KTHREAD)

    writers.wrote(90)

    assert writers.unknown
    assert pids(writers) == []


def test_session_that_began_outside_the_pid_namespace_is_one_as_well(
    machine: Machine, writers: Writers
) -> None:
    """As in `unshare --pid --fork job.sh`, or a container that was entered; the kernel's aside."""
    machine.start(2, "kthreadd", parent=0, session=0, flags=PF_KTHREAD)
    machine.start(50, "job.sh", parent=0, session=0)
    machine.start(60, "cp", parent=50, session=0)
    machine.start(61, "compute", parent=50, session=0)

    writers.wrote(60)
    machine.end(60)

    assert not writers.unknown
    assert pids(writers) == [50]
    machine.end(50)
    assert pids(writers) == [61]
    assert pids(writers, asked_by=61) == []
    machine.end(61)
    assert pids(writers) == []


def test_who_asks_and_who_began_it_do_not_count(machine: Machine, writers: Writers) -> None:
    """A job script that copies and then unmounts; others that write count all the same."""
    machine.start(50, "job.sh")
    machine.start(60, "cp", parent=50, session=50)
    writers.wrote(60)
    machine.end(60)
    machine.start(70, "dserverfs", parent=50, session=50)
    assert pids(writers, asked_by=70) == []
    assert pids(writers) == [50]

    machine.start(80, "compute", parent=50, session=50)
    machine.now_s += 1
    writers.wrote(80)

    assert pids(writers, asked_by=70) == [80]


def test_many_that_have_ended_are_forgotten(machine: Machine, writers: Writers) -> None:
    machine.start(50, "job.sh")
    for pid in range(1000, 1500):
        machine.start(pid, "cp", parent=50, session=50)
        writers.wrote(pid)
        machine.end(pid)

    assert len(writers._known) < 200
    assert pids(writers) == [50]


def test_several_are_told_in_one_line(machine: Machine, writers: Writers) -> None:
    for pid in (50, 60, 70):
        machine.start(pid, "python")
        writers.wrote(pid)

    running = writers.running()

    assert sentence(running) == "python (pid 50), which wrote to it, and 2 more, still run"
    assert sentence(running[:1]) == "python (pid 50), which wrote to it, still runs"
