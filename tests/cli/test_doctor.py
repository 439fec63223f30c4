"""`dserverfs doctor`: what is wrong is found, in time, and said without secrets."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jwt
import pytest

from dserverfs.base import disk_space
from dserverfs.base.mountinfo import FSTYPE, Mounted
from dserverfs.broker import DserverStorageBroker
from dserverfs.cli import machine_checks, mount_helper
from dserverfs.cli.findings import Check, State, finding_of, ok
from dserverfs.cli.main import main
from dserverfs.mount import mountpoint
from tests.support.accounts import Account
from tests.support.doctors import SERVER_CHECKS, Doctor, Said
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.front import Exchange, Fault, Front, for_good, front
from tests.support.front_faults import another_date, errs, reset, says, stall
from tests.support.logins import host_of
from tests.support.mount_daemons import remountable
from tests.support.mounts import publish
from tests.support.servers import ServerHandle, running_server

pytest_plugins = ["tests.support.doctor_fixtures"]


@pytest.fixture(scope="module")
def looked_at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server with a dataset, of these tests alone: elsewhere some delete what doctor looks at."""
    scratch = tmp_path_factory.mktemp("doctor")
    items = {"large": content_of("doctor", 5_000_000), "small": b"small"}
    with running_server(scratch / "server") as server:
        local = make_dataset(scratch, "doctor", items)
        publish(server.base_uri, server.token, scratch / "cache", local)
        yield server


def test_doctor_finds_nothing_wrong_where_all_is_well(
    looked_at: ServerHandle, doctor: Doctor
) -> None:
    said = doctor(host_of(looked_at), DSERVER_TOKEN=looked_at.token)

    assert said.status == 0, said.findings
    assert [each["check"] for each in said.findings if each["state"] != "ok"] == []
    names = [each["check"] for each in said.findings]
    assert names[-len(SERVER_CHECKS) :] == SERVER_CHECKS
    assert {"dserverfs", "packages", "fuse", "mount helper", "dtool", "cache"} <= {*names}
    assert looked_at.username in said.of("token")["said"]
    assert "MiB of an item" in said.of("throughput")["said"]  # the one that was frozen last


def test_doctor_prints_lines_for_people(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    doctor()

    assert main(["doctor"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert [
        line for line in lines if not line.startswith(("ok      ", "warning ", "problem "))
    ] == []
    assert lines[0].startswith("ok       dserverfs: ")


def to_no_store(exchange: Exchange) -> None:
    """Answer with URLs of a port at which nothing listens."""
    answer = exchange.ask()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    body = json.loads(answer.body)
    host = body["admin_metadata_url"].split("/")[2].encode()
    exchange.answer(answer._replace(body=answer.body.replace(host, b"127.0.0.1:%d" % port)))


UPSTREAM = says(200, json.dumps({"versions": {"dservercore": "0.22.0"}}).encode())


@pytest.fixture(scope="module")
def before(looked_at: ServerHandle) -> Iterator[Front]:
    """A web server before the dserver, which does what a test plans."""
    host, _, port = host_of(looked_at).partition(":")
    with front((host, int(port))) as before:
        yield before


@pytest.mark.parametrize(
    ("pattern", "fault", "name", "state", "said"),
    [
        ("GET /config/versions", reset, "server", "problem", "cannot be reached"),
        ("GET /config/versions", stall, "server", "problem", "does not answer in time"),
        ("GET /config/versions", says(200), "server", "problem", "is this a dserver?"),
        ("GET /config/versions", another_date(7200), "clock", "warning", "s behind the server's"),
        ("GET /config/versions", another_date(-7200), "clock", "warning", "s ahead of"),
        ("GET /config/versions", UPSTREAM, "routes", "problem", "no signed-URL routes"),
        ("GET /me", errs(401, msg="Token has expired"), "token", "problem", "refuses the token"),
        ("GET /me", stall, "token", "problem", "no answer within"),
        ("POST /uris", errs(500), "datasets", "problem", "500"),
        ("GET /signed-urls/dataset/", to_no_store, "signed URL", "problem", "cannot be reached"),
        ("GET /signed-urls/dataset/", stall, "signed URL", "problem", "no answer within"),
    ],
)
def test_doctor_names_what_is_wrong_with_a_server(
    before: Front,
    looked_at: ServerHandle,
    doctor: Doctor,
    pattern: str,
    fault: Fault,
    name: str,
    state: str,
    said: str,
) -> None:
    plans = [(pattern, fault)]
    if fault is UPSTREAM:
        plans.append(("/signed-urls/dataset/x", errs(404)))
    server = before.url.removeprefix("http://")

    with contextlib.ExitStack() as stack:
        for each, wrong in plans:
            stack.enter_context(before.planned(each, for_good(wrong)))
        limit = "5" if fault is stall else "60"
        found = doctor(server, "--timeout", limit, DSERVER_TOKEN=looked_at.token)

    assert found.status == (state == "problem")
    assert found.of(name)["state"] == state
    assert said in found.of(name)["said"], found.of(name)
    assert [each["check"] for each in found.findings if each["state"] == state] == [name]


def test_doctor_says_that_nothing_listens(doctor: Doctor) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        found = doctor(host)

    assert found.status == 1
    assert found.of("server")["said"].endswith("Connection refused; is the server running there?")
    assert [each["check"] for each in found.findings if each["check"] in SERVER_CHECKS] == [
        "server"
    ]


def test_doctor_says_that_there_is_no_token(looked_at: ServerHandle, doctor: Doctor) -> None:
    found = doctor(host_of(looked_at))

    assert found.status == 1
    assert found.of("token")["said"].startswith("no token: run dserverfs login")
    assert found.of_server()[-1] == "token"


def test_doctor_tells_of_a_token_that_has_ended(looked_at: ServerHandle, doctor: Doctor) -> None:
    token = looked_at.token_for(looked_at.username, exp=1_500_000_000)

    found = doctor(host_of(looked_at), DSERVER_TOKEN=token)

    assert found.status == 1
    assert "expired 2017-07-14" in found.of("token")["said"]
    assert found.of("token")["todo"] == f"dserverfs login {host_of(looked_at)}"


def test_doctor_prints_no_secret(before: Front, looked_at: ServerHandle, doctor: Doctor) -> None:
    server = before.url.removeprefix("http://")
    outputs = [doctor(server, DSERVER_TOKEN=looked_at.token).output]
    for pattern, fault in (
        ("GET /signed-urls/dataset/", to_no_store),
        ("GET /me", errs(401, msg=f"refused: {looked_at.token}")),
    ):
        with before.planned(pattern, for_good(fault)):
            outputs.append(doctor(server).output)

    assert [text for text in outputs if looked_at.token in text or "Signature" in text] == []


def test_doctor_does_not_wait_for_what_hangs() -> None:
    released = threading.Event()

    found = finding_of(Check("x", lambda: ok(str(released.wait()))), 0.01)

    released.set()
    assert (found.state, found.said) == (State.PROBLEM, "no answer within 0.01 s")


def test_doctor_finds_mounts_that_hang_or_are_dead(
    fuse: None, looked_at: ServerHandle, current_user: Account, doctor: Doctor
) -> None:
    settings = {"DSERVER_TOKEN": looked_at.token}
    with remountable(current_user, looked_at.base_uri, settings) as mount:
        mount.mount()
        doctor.mounts.append(mount.path)
        name, daemon = f"mount {mount.path}", mount.daemon()
        well = doctor().of(name)
        os.kill(daemon, signal.SIGSTOP)
        hangs = doctor("--timeout", "1")
        os.kill(daemon, signal.SIGCONT)
        mount.end(signal.SIGKILL)
        dead = doctor()

    assert (well["state"], well["said"]) == ("ok", f"{looked_at.base_uri} answers")
    assert hangs.status == dead.status == 1
    assert f"fusermount3 -uz {mount.path}" in hangs.of(name)["said"]
    assert f"has died: dserverfs umount {mount.path}, then mount it again" in dead.of(name)["said"]


def test_doctor_without_the_packages_of_mounts_warns(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)

    found = doctor()

    assert found.status == 0
    assert found.of("fuse")["state"] == "warning"
    assert "pip install 'dserverfs[mount]'" in found.of("fuse")["todo"]


def test_doctor_finds_that_there_is_no_fuse(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_fuse.py").write_text("raise ImportError('libfuse3.so.3: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    cases: tuple[tuple[str, object, str], ...] = (
        ("DEVICE", tmp_path / "fuse", "modprobe fuse"),
        ("DEVICE", tmp_path, f"{tmp_path} cannot be opened: Is a directory"),
        ("PACKAGES", ["broken_fuse"], "cannot be loaded: libfuse3.so.3: cannot open"),
    )
    for name, value, said in cases:
        with monkeypatch.context() as patch:
            patch.setattr(mountpoint, name, value)
            found = doctor()

        assert found.status == 1
        assert said in found.of("fuse")["said"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has capabilities to give up")
def test_doctor_finds_that_root_may_not_mount_in_a_container(current_user: Account) -> None:
    command = current_user.dserverfs_command("doctor", "--json")

    done = current_user.run("setpriv", "--bounding-set=-sys_admin", *command)

    found = Said(done.returncode, json.loads(done.stdout), done.stdout)
    assert found.of("fuse")["said"] == "root may not mount here, without CAP_SYS_ADMIN"


def test_doctor_finds_that_a_package_is_missing(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = ["urllib3>=2", "nothing-like-that>=1", 'not-asked-for; extra == "mount"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted)

    found = doctor()

    assert found.status == 1
    assert found.of("packages")["said"] == "nothing-like-that is not installed"


def test_doctor_leaves_mounts_of_others_alone(doctor: Doctor) -> None:
    doctor.others = [Mounted("/nowhere", FSTYPE, "dserver://x", 1, owner=os.geteuid() + 1)]

    assert [each for each in doctor().findings if "/nowhere" in each["check"]] == []


def test_doctor_finds_settings_that_cannot_be_read(doctor: Doctor, tmp_path: Path) -> None:
    path = tmp_path / ".config/dtool/dtool.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")

    found = doctor("localhost:1")

    assert found.status == 1
    assert str(path) in found.of("settings")["said"]
    assert found.of("dserverfs")["state"] == "ok"


def test_doctor_finds_directories_that_take_no_files(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    on_network = {tmp_path / "network"}
    monkeypatch.setattr(
        machine_checks, "fstype_of", lambda path: "nfs4" if path in on_network else "ext4"
    )

    of_file = doctor(
        DSERVER_CACHE_DIR=str(tmp_path / "network"), DSERVER_STAGING_DIR=str(tmp_path / "file")
    )
    monkeypatch.setattr(disk_space, "lacking_in_bytes", lambda path: 1)
    full = doctor(DSERVER_STAGING_DIR=str(tmp_path / "new" / "staging"))

    assert of_file.of("cache")["state"] == "warning"
    assert "network file system (nfs4)" in of_file.of("cache")["said"]
    assert (of_file.status, of_file.of("staging")["state"]) == (1, "problem")
    assert "takes no files: Not a directory" in of_file.of("staging")["said"]
    assert of_file.of("staging")["todo"] == "DSERVER_STAGING_DIR names another directory"
    assert (full.status, full.of("staging")["state"]) == (0, "warning")
    assert not (tmp_path / "new").exists()


def test_doctor_tells_of_each_login(doctor: Doctor, tmp_path: Path) -> None:
    tokens = tmp_path / ".config/dserverfs/tokens"
    tokens.mkdir(parents=True)
    for name, claims, mode in (
        ("good:1", {"exp": 4_000_000_000}, 0o600),
        ("ended:1", {"exp": 1_500_000_000}, 0o600),
        ("open:1", {"exp": 4_000_000_000}, 0o644),
    ):
        (tokens / name).write_text(jwt.encode(claims, "x" * 32))
        (tokens / name).chmod(mode)
    (tokens / "gone:1").symlink_to(tokens / "nothing")

    found = doctor()

    assert found.of("login good:1")["said"].startswith("the token ends 2096-10-02")
    assert found.of("login ended:1")["todo"] == "dserverfs login ended:1"
    assert found.of("login open:1")["todo"] == f"chmod 600 {tokens}/open:1"
    assert found.of("login gone:1")["said"] == f"{tokens}/gone:1: No such file or directory"
    assert [each["state"] for each in found.findings if "login" in each["check"]].count("ok") == 1


def test_doctor_looks_at_the_helper_of_mount_and_at_the_command_dtool(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helper, dtool = tmp_path / "mount.fuse.dserverfs", tmp_path / "dtool"
    mount_helper._write(helper, f"#!/bin/sh\n{mount_helper._MARK}\nexec /gone/python -I -m x\n")
    mount_helper._write(dtool, "#!/elsewhere/bin/python\n")
    monkeypatch.setattr(mount_helper, "DIRECTORY", tmp_path)

    found = doctor(PATH=f"{tmp_path}:{os.environ['PATH']}")

    assert found.status == 1
    assert found.of("mount helper")["said"] == "it runs /gone/python, which is not there"
    assert found.of("dtool")["state"] == "warning"
    assert found.of("dtool")["todo"] == "/elsewhere/bin/python -m pip install dserverfs"


def test_doctor_finds_that_an_ordinary_user_cannot_mount(
    fuse: None, ordinary_user: Account, tmp_path: Path
) -> None:
    """fusermount3 has to run as root for that."""
    program = ordinary_user.home / "doctor" / "fusermount3"
    ordinary_user.run("mkdir", program.parent, check=True)
    ordinary_user.run("ln", "-s", "/bin/true", program, check=True)
    path = ordinary_user.environment["PATH"]
    found = []
    for each in (path, f"{program.parent}:{path}"):
        done = ordinary_user.dserverfs("doctor", "--json", env={"PATH": each})
        findings = Said(done.returncode, json.loads(done.stdout), done.stdout)
        found.append(findings.of("fuse"))

    assert [each["state"] for each in found] == ["ok", "problem"], found
    assert found[1]["todo"].endswith(f"chown root {program}; chmod u+s {program}")


class Entry(NamedTuple):
    """An entry point for a broker of dtool."""

    broker: type | None
    package: str
    value: str = "a:b"

    @property
    def dist(self) -> Entry:
        return self

    @property
    def name(self) -> str:
        return self.package

    def load(self) -> type:
        if self.broker is None:
            raise ImportError("No module named 'gone'")
        return self.broker


class Foreign:
    key = "dserver"


@pytest.mark.parametrize(
    ("entries", "state", "todo"),
    [
        ([Entry(Foreign, "foreign"), Entry(DserverStorageBroker, "dserverfs")], "ok", ""),
        (
            [Entry(DserverStorageBroker, "dserverfs"), Entry(Foreign, "foreign")],
            "warning",
            "pip uninstall foreign",
        ),
        ([Entry(Foreign, "foreign")], "warning", "pip install dserverfs into the Python of dtool"),
        (
            [Entry(DserverStorageBroker, "dserverfs"), Entry(None, "broken")],
            "problem",
            "pip uninstall broken",
        ),
    ],
)
def test_doctor_says_who_serves_the_uris_to_dtool(
    doctor: Doctor,
    monkeypatch: pytest.MonkeyPatch,
    entries: list[Entry],
    state: str,
    todo: str,
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: entries)

    found = doctor().of("dtool")

    assert (found["state"], found["todo"]) == (state, todo)
    assert found["said"]
