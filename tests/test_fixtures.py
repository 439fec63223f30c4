"""The safety net of the suite: nothing it starts outlives it, nothing else is touched."""

from __future__ import annotations

import contextlib
import logging
import os
import pwd
import select
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import accounts, child_processes, fuse_device, leftovers, pace
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.dtool_commands import dtool_of
from tests.support.mount_daemons import wait_for
from tests.support.names import Names
from tests.support.patience import LATE_S
from tests.support.recorded_disk import recorded_disk
from tests.support.unexpected_log import complaint

DAEMON = """
import os, sys, pyfuse3, trio
pyfuse3.init(pyfuse3.Operations(), sys.argv[1], {"fsname=x", "subtype=" + sys.argv[2]})
print("mounted", flush=True)
trio.run(pyfuse3.main)
"""


@pytest.fixture
def dead_root(test_root: Path) -> Iterator[Path]:
    """A root like that of a run that was killed: nobody holds its lock."""
    root = Path(tempfile.mkdtemp(prefix=leftovers.ROOT_PREFIX, dir=test_root))
    root.chmod(0o755)
    yield root
    leftovers.clean(root)


def mount(mount_point: Path, root: Path, subtype: str = "dserverfs") -> subprocess.Popen[bytes]:
    mount_point.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", DAEMON, mount_point, subtype],
        env={**os.environ, leftovers.ROOT_VARIABLE: str(root)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"mounted\n"
    return process


@pytest.mark.usefixtures("fuse")
def test_clean_removes_dead_and_live_mounts_and_their_processes(dead_root: Path) -> None:
    dead = mount(dead_root / "dead mount", dead_root)
    dead.kill()
    dead.wait()
    live = mount(dead_root / "live", dead_root)

    found = leftovers.clean(dead_root)

    assert live.wait(LATE_S) in (0, -signal.SIGKILL)
    assert f"mount {dead_root / 'dead mount'}" in found
    assert f"mount {dead_root / 'live'}" in found
    assert not leftovers.mounts_below(dead_root, fstype=None)
    assert not dead_root.exists()


@pytest.mark.usefixtures("fuse")
def test_clean_touches_no_mount_of_another_kind(dead_root: Path, tmp_path: Path) -> None:
    process = mount(dead_root / "other", tmp_path, subtype="other")
    try:
        found = leftovers.clean(dead_root)

        assert process.poll() is None
        assert leftovers.mounts_below(dead_root, fstype="fuse.other") == [dead_root / "other"]
        assert found == [f"{dead_root}: kept, for {dead_root / 'other'} is still mounted"]
    finally:
        subprocess.run(["fusermount3", "-uz", dead_root / "other"], check=True)
        process.wait(LATE_S)


@pytest.mark.usefixtures("fuse")
def test_clean_removes_disks_and_what_serves_them(dead_root: Path) -> None:
    with recorded_disk(dead_root / "disk"):
        found = leftovers.clean(dead_root)

        assert found == [f"disk {dead_root / 'disk'}", f"disk {dead_root / 'disk.served'}"]
        assert not dead_root.exists()


def test_clean_kills_only_processes_of_the_root(dead_root: Path, tmp_path: Path) -> None:
    def sleeper(root: Path) -> subprocess.Popen[bytes]:
        environment = {**os.environ, leftovers.ROOT_VARIABLE: str(root)}
        process = subprocess.Popen(["sleep", "60"], env=environment)
        environ = Path(f"/proc/{process.pid}/environ")  # a moment after the program has begun
        wait_for(lambda: os.fsencode(root) in environ.read_bytes(), "the process")
        return process

    ours, other = sleeper(dead_root), sleeper(Path(f"{dead_root}-other"))
    try:
        found = leftovers.clean(dead_root)

        assert ours.wait(LATE_S) == -signal.SIGKILL
        assert other.poll() is None
        assert found == [f"process {ours.pid} (sleep 60)"]
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_clean_removes_sockets_of_stores_that_were_killed(dead_root: Path) -> None:
    directory, name = leftovers.STORE_SOCKETS.parent, f"seaweedfs-{dead_root.name}"
    dead, live = directory / f"{name}-dead.sock", directory / f"{name}-live.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(dead))
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(str(live))
        leftovers.clean(dead_root)

        assert live.exists()
    assert not dead.exists()

    leftovers.clean(dead_root)
    assert not live.exists()


def test_clean_dead_runs_leaves_the_living_alone(
    dead_root: Path, test_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(test_root))
    living = leftovers.Run.start()
    (dead_root / "file").touch()

    leftovers.clean_dead_runs()

    assert not dead_root.exists()
    assert living.root.exists()
    living.end()
    assert not living.root.exists()


def test_spawned_child_dies_with_its_parent() -> None:
    parent_code = (
        "import os, signal, subprocess; from tests.support.child_processes import spawn\n"
        "command = ['sh', '-c', 'echo $$; exec sleep 60']\n"
        "with spawn(command, stdout=subprocess.PIPE) as child:\n"
        "    os.write(1, child.stdout.readline())\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    parent = subprocess.run(
        [sys.executable, "-c", parent_code], stdout=subprocess.PIPE, timeout=30, check=False
    )

    assert parent.returncode == -signal.SIGKILL
    assert_gone(int(parent.stdout))


def assert_gone(pid: int, timeout_s: float = LATE_S) -> None:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # Readable once the process has ended, whether or not anybody has reaped it.
        assert select.select([handle], [], [], timeout_s)[0], f"process {pid} lives on"
    finally:
        os.close(handle)


def test_spawn_refuses_other_threads() -> None:
    raised: list[BaseException] = []

    def in_thread() -> None:
        try:
            with spawn(["true"]):
                pass
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()

    assert len(raised) == 1


def test_spawned_child_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_processes.stop, "__defaults__", (0.1,))

    with spawn(
        ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"

    assert child.returncode == -signal.SIGKILL


@pytest.fixture
def device(tmp_path: Path) -> Path:
    device = tmp_path / "fuse"
    device.touch()
    device.chmod(0o600)
    return device


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the device")


@as_root
def test_device_is_open_for_as_long_as_anybody_uses_it(device: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    first, second = contextlib.ExitStack(), contextlib.ExitStack()

    first.enter_context(fuse_device.usable_by_all(device, state))
    second.enter_context(fuse_device.usable_by_all(device, state))
    assert mode_of(device) == 0o666
    first.close()
    assert mode_of(device) == 0o666
    second.close()
    assert mode_of(device) == 0o600


@as_root
def test_device_is_restored_by_the_run_after_a_killed_one(device: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    code = (
        "import os, signal, sys; from pathlib import Path; from tests.support import fuse_device\n"
        "with fuse_device.usable_by_all(Path(sys.argv[1]), Path(sys.argv[2])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, device, state], check=False)
    assert mode_of(device) == 0o666

    with fuse_device.usable_by_all(device, state):
        pass

    assert mode_of(device) == 0o600


def test_ordinary_user_runs_dserverfs_with_nothing_of_ours(ordinary_user: Account) -> None:
    code = "import os, dserverfs, pyfuse3, trio, requests, dtoolcore, diskcache; print(os.getuid())"

    result = ordinary_user.run(ordinary_user.python, "-c", code)

    assert (result.returncode, result.stderr) == (0, "")
    assert int(result.stdout) == pwd.getpwnam(ordinary_user.name).pw_uid != 0
    assert "DSERVER_TOKEN" not in ordinary_user.environment
    assert ordinary_user.home.owner() == ordinary_user.name


def test_ordinary_user_can_open_the_fuse_device(fuse: None, ordinary_user: Account) -> None:
    result = ordinary_user.run("sh", "-c", ": <>/dev/fuse")

    assert (result.returncode, result.stderr) == (0, "")


def test_process_of_ordinary_user_dies_with_its_parent(ordinary_user: Account) -> None:
    show = ordinary_user.run(
        *(ordinary_user.python, "-c"),
        "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n)); "
        "print(n.value)",
    )

    # An ordinary user's own runs go through spawn alone, which has a test of its own.
    assert int(show.stdout) == (signal.SIGKILL if os.geteuid() == 0 else 0)


def test_client_is_copied_whole_for_users_that_cannot_reach_the_checkout(tmp_path: Path) -> None:
    client = accounts.copy_client(tmp_path / "client")
    code = "import dserverfs, pyfuse3, trio, urllib3, dtoolcore, diskcache; print(dserverfs)"

    result = subprocess.run(
        [os.path.realpath(sys.executable), "-c", code],
        env={"PYTHONPATH": str(client)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, result.stderr) == (0, "")
    assert str(client) in result.stdout


def test_file_below_a_private_directory_is_not_reachable(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "file").touch()

    assert not accounts.is_reachable_by_all(tmp_path / "file")
    assert accounts.is_reachable_by_all(Path("/usr/bin/env"))


def test_login_that_is_left_in_a_home_is_told_and_deleted(tmp_path: Path) -> None:
    tokens = tmp_path / "home-current/.config/dserverfs/tokens"
    tokens.mkdir(parents=True)
    assert accounts.logged_in(tmp_path) == ""
    (tokens / "localhost:5000").write_text("token")

    assert "tokens/localhost:5000" in accounts.logged_in(tmp_path)
    assert not [*tokens.iterdir()]


@pytest.mark.expects_log("^WARNING dserverfs.x: cache is full", "ERROR")
def test_announced_warnings_pass(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("dserverfs.x").warning("cache is %s", "full")
    logging.getLogger("dserverfs.y").error("staged data is kept")

    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ([], "logged, and not expected:\nWARNING dserverfs.x: cache is full"),
        (["full"], None),
        (["full", "empty"], "expected in the log, and not found: 'empty'"),
    ],
)
def test_complaint_tells_what_was_not_announced(patterns: list[str], expected: str | None) -> None:
    record = logging.LogRecord(
        "dserverfs.x", logging.WARNING, __file__, 1, "cache is %s", ("full",), None
    )

    assert complaint([record], patterns) == expected


pytest_plugins = ["pytester"]


def test_warning_fails_the_test_that_did_not_announce_it(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest("from tests.conftest import *")
    pytester.makepyfile(
        "import logging\ndef test_it():\n    logging.getLogger('dserverfs.x').warning('trouble')"
    )

    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*WARNING dserverfs.x: trouble*"])


def test_long_files_are_there() -> None:
    checkout = Path(__file__).parents[1]

    assert [file for file in pace.LONGEST if not (checkout / file).is_file()] == []


def test_run_on_workers_begins_with_the_longest_file(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    pytester.makeconftest(
        "from tests.support import pace\n"
        "pace.LONGEST = ('test_long.py',)\n"
        "from tests.conftest import *\n"
    )
    # With one test it would be last, by the number of tests and by its name.
    many = "import pytest\n@pytest.mark.parametrize('n', range(4))\ndef test_it(n): pass\n"
    pytester.makepyfile(test_a=many, test_b=many, test_long="def test_it(): pass\n")

    run = pytester.runpytest_subprocess("-n1", "--dist=loadfile", "-v", "-p", "no:cacheprovider")

    run.assert_outcomes(passed=9)
    ran = [line for line in run.outlines if "PASSED" in line]
    assert "test_long.py" in ran[0]


def test_long_file_that_is_not_named_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "LONGEST", ("tests/test_long.py",))
    seconds = pace.Seconds()
    for number in range(100):
        seconds.add(f"tests/test_{number}.py::test_it", 1.0)
    seconds.add("tests/test_7.py::test_other", 2.0)
    of_a_part = seconds.missing()
    seconds.add("tests/test_long.py::test_it", 20.0)

    assert of_a_part == []
    assert [line.partition(" took ")[0] for line in seconds.missing()] == ["tests/test_7.py"]


@pytest.mark.parametrize("command", [["config", "cache"], ["name", "file:///not-there"]], ids=str)
def test_warm_dtool_is_as_a_process_of_its_own(tmp_path: Path, command: list[str]) -> None:
    config = tmp_path / ".config/dtool/dtool.json"
    config.parent.mkdir(parents=True)
    config.write_text('{"DTOOL_CACHE_DIRECTORY": "/of/this/home"}')
    dtool = dtool_of(tmp_path, "token")

    warm = dtool.run(*command)
    cold = subprocess.run(
        [Path(sys.executable).with_name("dtool"), *command],
        env=dict(dtool.environment),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (warm.returncode, warm.stdout, warm.stderr) == (
        cold.returncode,
        cold.stdout,
        cold.stderr,
    )
    assert warm.stdout == "/of/this/home\n" or warm.returncode != 0


def test_name_that_two_files_of_tests_make_is_told_in_whichever_comes_second(
    tmp_path: Path,
) -> None:
    def make(server: Path, *named: str) -> None:
        server.mkdir(exist_ok=True)
        with sqlite3.connect(server / "dserver.sqlite") as database:
            database.execute("CREATE TABLE IF NOT EXISTS dataset (uri TEXT, name TEXT)")
            database.executemany(
                "INSERT INTO dataset VALUES (?, ?)", [(f"{uuid.uuid4()}", name) for name in named]
            )

    registry, here, there = tmp_path / "names", tmp_path / "here", tmp_path / "there"
    ours, theirs = Names(), Names()
    assert ours.taken_twice(registry, here, "none.py") == "", "there is no server yet"

    make(here, "one", "two", "a-dataset")
    assert ours.taken_twice(registry, here, "first.py") == ""
    make(here, "one")
    assert ours.taken_twice(registry, here, "first.py") == ""
    make(there, "three", "a-dataset")
    assert theirs.taken_twice(registry, there, "second.py") == ""
    make(there, "two")
    assert "two (first.py)" in theirs.taken_twice(registry, there, "second.py")
    make(here, "three")
    assert "three (second.py)" in ours.taken_twice(registry, here, "third.py")
