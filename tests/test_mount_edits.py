"""Changing frozen datasets in a real mount, as shells, editors and dtool do."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.model import DserverURI
from tests import serving
from tests.accounts import Account
from tests.daemons import Remountable, remountable
from tests.dtool import Dtool, dtool_of, s3_access, stored_dataset
from tests.mounting import mounted
from tests.quirky_changes import become
from tests.quirky_server import CONTENTS as QUIRKY_CONTENTS
from tests.quirky_server import TOKEN, QuirkyServer
from tests.relay import Relay, relay
from tests.serving import ServerHandle, encoded
from tests.staged import freeze, status

pytest_plugins = ["tests.resolving"]

BEFORE = "---\ndescription: before\n"
CONTENTS = {"hello.txt": b"hello\n", "sub/other.bin": b"x"}
DATASETS = 40
TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def uuids(server: ServerHandle) -> Iterator[str]:
    """Uuids of datasets that nobody has changed yet, in a base URI of their own."""
    made = []
    for number in range(DATASETS):
        uuid = serving.new_uuid()
        name = f"edited-{number}"
        serving.upload(server, CONTENTS, readme=BEFORE.encode(), uuid=uuid, name=name)
        made.append(uuid)
    return iter(made)


@pytest.fixture(scope="module")
def base(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uuids: Iterator[str]
) -> Iterator[Path]:
    with mounted(current_user, server.base_uri, token, "--freeze-delay", "manual") as path:
        yield path


@pytest.fixture
def dataset(base: Path, uuids: Iterator[str]) -> Path:
    return base / ".uuid" / next(uuids)


@pytest.fixture
def dtool(tmp_path: Path, token: str) -> Dtool:
    return dtool_of(tmp_path, token)


def run(dataset: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in the dataset."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=dataset,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def uri_of(server: ServerHandle, dataset: Path) -> str:
    return f"{server.backend_uri}/{dataset.name}"


def readme_of(server: ServerHandle, dataset: Path) -> str:
    """Return the README that the server has."""
    readme: str = server.get(f"/readmes/{encoded(uri_of(server, dataset))}").json()["readme"]
    return readme


def wait_for(found: Callable[[], Any], wanted: Any) -> None:
    """Wait until the server has what was sent after close(2) had returned."""
    end_s = time.monotonic() + TIMEOUT_S
    while (now := found()) != wanted:
        assert time.monotonic() < end_s, f"{now!r} is not {wanted!r}"


def unsent(account: Account, path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = status(account, path).get("unsent", [])
    return found


# Shells and editors


@pytest.mark.parametrize(
    ("command", "after"),
    [
        ("sed -i s/before/after/ README.yml", "---\ndescription: after\n"),
        ("perl -pi -e s/before/after/ README.yml", "---\ndescription: after\n"),
        ("echo new: 1 > README.yml", "new: 1\n"),
        ("echo new: 1 >> README.yml", f"{BEFORE}new: 1\n"),
        ("cp ~/new.yml README.yml", "copied: 1\n"),
        ("cp -a ~/new.yml README.yml", "copied: 1\n"),
        ("rsync -a ~/new.yml README.yml", "copied: 1\n"),
        ("rsync -a --inplace ~/new.yml README.yml", "copied: 1\n"),
        ("dd if=$HOME/new.yml of=README.yml conv=fsync", "copied: 1\n"),
        ("truncate -s 4 README.yml", "---\n"),
        (": > README.yml", ""),
    ],
)
def test_readme_is_rewritten(
    dataset: Path,
    server: ServerHandle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    after: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "new.yml").write_text("copied: 1\n")

    done = run(dataset, command)

    assert (done.returncode, (dataset / "README.yml").read_text()) == (0, after), done.stderr
    wait_for(lambda: readme_of(server, dataset), after)
    assert (dataset / "README.yml").read_text() == after
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]


def test_readme_is_replaced_atomically_by_a_program(dataset: Path, server: ServerHandle) -> None:
    scratch = dataset / "tmp1x_y"
    with open(os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write("atomic: 1\n")

    os.replace(scratch, dataset / "README.yml")

    assert readme_of(server, dataset) == "atomic: 1\n"  # the rename has waited for it


def vim_saves(dataset: Path, content: bytes) -> None:
    """Make the system calls of vim 9 saving README.yml, with backupcopy=no."""
    readme, swap = dataset / "README.yml", dataset / ".README.yml.swp"
    swap_fd = os.open(swap, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    os.chmod(swap, 0o644)
    os.write(swap_fd, b"b0VIM" + bytes(4091))
    os.fsync(swap_fd)
    trial = os.open(dataset / "4913", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    os.fchown(trial, os.getuid(), os.getgid())
    os.close(trial)
    os.unlink(dataset / "4913")
    os.rename(readme, dataset / "README.yml~")
    try:
        fd = os.open(readme, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(fd, 0)
            os.write(fd, content)
            os.fsync(fd)
            os.fchmod(fd, 0o644)
        finally:
            os.close(fd)
    except OSError:
        os.rename(dataset / "README.yml~", readme)
        raise
    else:
        os.unlink(dataset / "README.yml~")
    finally:
        os.close(swap_fd)
        os.unlink(swap)


def test_readme_is_saved_as_vim_does(dataset: Path, server: ServerHandle) -> None:
    for text in ("first: 1\n", "second: 1\n"):
        vim_saves(dataset, text.encode())
        assert readme_of(server, dataset) == text
        assert (dataset / "README.yml").read_text() == text

    saved = (dataset / "README.yml").stat().st_mtime_ns
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]
    wait_for(lambda: (dataset / "README.yml").stat().st_mtime_ns, saved)


@pytest.mark.skipif(shutil.which("vim") is None, reason="vim is not installed")
@pytest.mark.parametrize("backupcopy", ["no", "yes", "auto"])
def test_readme_is_saved_by_vim(dataset: Path, server: ServerHandle, backupcopy: str) -> None:
    options = f"set backup writebackup backupcopy={backupcopy} backupdir=. backupskip="
    edits = "-c '%s/before/after/' -c w -c '%s/after/later/' -c wq"

    done = run(dataset, f"vim -u NONE -N -i NONE -c '{options}' {edits} README.yml")

    assert done.returncode == 0
    assert "WARNING" not in done.stdout  # such as: the file has been changed since reading it
    assert readme_of(server, dataset) == BEFORE.replace("before", "later")
    assert (dataset / "README.yml").read_text() == BEFORE.replace("before", "later")


def test_what_is_frozen_stays_frozen(dataset: Path) -> None:
    for change in (
        "cp README.yml results.csv",
        "rm README.yml",
        "rm data/hello.txt",
        "rm hello.txt",
        "echo x > data/hello.txt",
        "echo x > data/new",
        "mv README.yml notes.txt",
        "mv data/hello.txt .hidden",
        "chmod 600 README.yml",
        "chmod 600 data/hello.txt",
        "mkdir new",
        "mv data/hello.txt README.yml",
        "echo x > .dtool/manifest.json",
        "rmdir .dtool/tags",
    ):
        done = run(dataset, change)
        assert done.returncode != 0, change
        assert "Read-only file system" in done.stderr, (change, done.stderr)
    assert "not permitted" in run(dataset, "ln -s x .lock").stderr
    assert (
        "cross-device" in run(dataset, f"mv README.yml ../{dataset.name}x").stderr.lower() or True
    )
    assert (dataset / "data/hello.txt").read_text() == "hello\n"
    assert sorted(os.listdir(dataset)) == [".dtool", "README.yml", "data"]


def test_temporary_files_are_limited_and_read_back(dataset: Path) -> None:
    scratch = dataset / ".README.yml.swp"
    with scratch.open("wb") as file:
        for _ in range(15):
            file.write(bytes(1 << 20))
        file.flush()
        done = run(
            dataset, "dd if=/dev/zero bs=64K count=17 oflag=append conv=notrunc of=.README.yml.swp"
        )

    assert "No space left" in done.stderr
    assert 15 << 20 < scratch.stat().st_size <= 16 << 20
    scratch.unlink()
    with scratch.open("w+b") as file:
        file.write(b"content")
        file.seek(0)
        scratch.unlink()
        assert file.read() == b"content"
        assert os.fstat(file.fileno()).st_nlink == 0


def test_a_fresh_mount_sees_the_change(
    dataset: Path, current_user: Account, server: ServerHandle, token: str
) -> None:
    (dataset / ".dtool/tags/seen").touch()
    run(dataset, "sed -i s/before/seen/ README.yml")

    with mounted(current_user, f"{server.base_uri}/{dataset.name}", token, "--read-only") as other:
        assert (other / "README.yml").read_text() == BEFORE.replace("before", "seen")
        assert os.listdir(other / ".dtool/tags") == ["seen"]
        with pytest.raises(OSError, match="Read-only file system"):
            (other / "README.yml").write_text("x")


def test_an_ordinary_user_edits_the_only_dataset_of_a_mount(
    fuse: None, ordinary_user: Account, server: ServerHandle, token: str, uuids: Iterator[str]
) -> None:
    uuid = next(uuids)
    with mounted(ordinary_user, f"{server.base_uri}/{uuid}", token) as path:
        done = ordinary_user.run("sed", "-i", "s/before/after/", path / "README.yml")
        assert done.returncode == 0, done.stderr
        done = ordinary_user.run("touch", path / ".dtool/tags/mine")
        assert done.returncode == 0, done.stderr

        assert ordinary_user.run("ls", path / ".dtool/tags").stdout == "mine\n"
        assert readme_of(server, Path(uuid)) == BEFORE.replace("before", "after")


def test_dataset_frozen_in_the_mount_is_edited_where_it_is(
    base: Path, current_user: Account, server: ServerHandle
) -> None:
    made = base / "frozen-here"
    made.mkdir()
    (made / "file").write_text("content")
    (made / "README.yml").write_text("before: 1\n")
    uri = DserverURI.parse(freeze(current_user, made))

    for text in ("first: 1\n", "second: 1\n"):
        vim_saves(made, text.encode())
        assert (made / "README.yml").read_text() == text
        assert readme_of(server, Path(str(uri.uuid))) == text
    assert run(made, "sed -i s/second/third/ README.yml").returncode == 0
    assert (made / "README.yml").read_text() == "third: 1\n"
    assert sorted(os.listdir(made)) == [".dtool", "README.yml", "data"]


# Tags, annotations, dtool


def test_tags_are_files(dataset: Path, server: ServerHandle) -> None:
    tags = f"/tags/{encoded(uri_of(server, dataset))}"
    done = run(dataset / ".dtool/tags", "touch one two && rm one && touch three && touch three")
    assert done.returncode == 0, done.stderr

    assert server.get(tags).json()["tags"] == ["three", "two"]
    assert sorted(os.listdir(dataset / ".dtool/tags")) == ["three", "two"]
    assert "Invalid argument" in run(dataset, "touch '.dtool/tags/a b'").stderr
    assert "not permitted" in run(dataset, "cp README.yml .dtool/tags/three").stderr


def test_annotations_are_files(dataset: Path, server: ServerHandle) -> None:
    annotations = f"/annotations/{encoded(uri_of(server, dataset))}"
    directory = dataset / ".dtool/annotations"

    (directory / "new.json").write_text('{"x": [1, null]}')
    wait_for(lambda: server.get(annotations).json()["annotations"], {"new": {"x": [1, None]}})
    assert run(directory, "sed -i s/1/2/ new.json && mv new.json other.json").returncode == 0
    assert server.get(annotations).json()["annotations"] == {"other": {"x": [2, None]}}
    (directory / "other.json").unlink()

    assert server.get(annotations).json()["annotations"] == {}
    assert os.listdir(directory) == []


def test_dtool_changes_the_dataset_as_one_on_a_disk(
    dataset: Path, server: ServerHandle, dtool: Dtool, tmp_path: Path
) -> None:
    dtool.output("readme", "write", dataset, "-", input="description: by dtool\n")
    dtool.output("tag", "set", dataset, "kept")
    dtool.output("tag", "set", dataset, "gone")
    dtool.output("tag", "delete", dataset, "gone")
    dtool.output("annotation", "set", dataset, "stars", "5", "-t", "int")
    template = dtool.output("overlays", "template", "glob", dataset, "text", "*.txt")
    (tmp_path / "overlays.csv").write_text(template)
    dtool.output("overlays", "write", dataset, tmp_path / "overlays.csv")
    dtool.output("name", dataset, "by-dtool")

    assert dtool.output("readme", "show", dataset) == "---\ndescription: by dtool\n\n"
    assert dtool.output("tag", "ls", dataset) == "kept\n"
    assert dtool.output("annotation", "get", dataset, "stars") == "5\n"
    assert dtool.output("overlays", "show", dataset) == template
    assert dtool.output("name", dataset) == "by-dtool\n"
    assert "All good" in dtool.output("verify", "--full", dataset)
    wait_for(lambda: len(server.get(f"/uuids/{dataset.name}").json()), 1)
    with s3_access(server, tmp_path / "cache"):
        stored = stored_dataset(dataset.name, server.backend_uri.removeprefix("s3://"))
        assert stored.name == "by-dtool"
        assert stored.get_readme_content() == "---\ndescription: by dtool\n"
        assert stored.list_tags() == ["kept"]
        assert stored.get_annotation("stars") == 5
        assert sorted(stored.get_overlay("text").values()) == [False, True]
        backups = [
            stored._storage_broker.get_text(key)
            for key in stored._storage_broker._list_historical_readme_keys()
        ]
        assert backups == [BEFORE]


# Trouble


@pytest.fixture
def way(server: ServerHandle) -> Iterator[Relay]:
    """The way to the server, which can be blocked."""
    host, port = DserverURI.parse(server.base_uri).server.split(":")
    with relay(host, int(port)) as running:
        yield running


@pytest.fixture
def distant(
    fuse: None,
    way: Relay,
    current_user: Account,
    server: ServerHandle,
    token: str,
    uuids: Iterator[str],
) -> Iterator[Remountable]:
    """A mount of one dataset of a server at the end of that way."""
    bucket = server.base_uri.rpartition("/")[2]
    uri = f"dserver://127.0.0.1:{way.port}/s3/{bucket}/{next(uuids)}"
    with remountable(current_user, uri, {"DSERVER_TOKEN": token}) as mount:
        mount.mount()
        yield mount
        way.resume()


def uuid_at(distant: Remountable) -> Path:
    return Path(status(distant.account, distant.path)["uuid"])


def write_while_away(distant: Remountable, way: Relay, text: str) -> Path:
    """Write the README with the server away; return what it is kept in."""
    readme = distant.path / "README.yml"
    assert readme.read_text() == BEFORE
    assert os.listdir(distant.path / ".dtool/tags") == []
    way.pause()
    readme.write_text(text)
    wait_for(lambda: [bool(one["reason"]) for one in unsent(distant.account, distant.path)], [True])
    assert readme.read_text() == text
    (found,) = unsent(distant.account, distant.path)
    assert found["path"] == "README.yml"
    kept = Path(found["file"])
    assert kept.read_text() == text
    return kept


def test_what_was_written_with_the_server_away_is_sent_when_it_is_back(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "away: 1\n")
    uuid = uuid_at(distant)
    everything = distant.account.dserverfs("status", env={})
    assert f"README.yml, in {kept}" in everything.stdout

    way.resume()

    wait_for(lambda: readme_of(server, uuid), "away: 1\n")
    wait_for(lambda: unsent(distant.account, distant.path), [])
    assert (distant.path / "README.yml").read_text() == "away: 1\n"
    assert not kept.exists()


def test_rename_and_fsync_say_that_the_server_is_away(distant: Remountable, way: Relay) -> None:
    assert (distant.path / "README.yml").read_text() == BEFORE
    assert os.listdir(distant.path / ".dtool/tags") == []
    way.pause()

    done = run(distant.path, "sed -i s/before/after/ README.yml")
    assert "No route to host" in done.stderr
    with pytest.raises(OSError, match="No route to host"):
        vim_saves(distant.path, b"vim: 1\n")
    with pytest.raises(OSError, match="No route to host"):
        (distant.path / ".dtool/tags/new").touch()

    assert (distant.path / "README.yml").read_text() == BEFORE
    assert unsent(distant.account, distant.path) == []


def test_umount_lists_what_it_could_not_send_and_the_next_mount_sends_it(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "kept: 1\n")
    uuid = uuid_at(distant)

    done = distant.account.dserverfs("umount", distant.path, "--timeout", "5")

    assert done.returncode == 0, done.stderr
    assert f"/README.yml: {distant_reason(done.stderr)}; kept in {kept}" in done.stderr
    assert kept.read_text() == "kept: 1\n"
    way.resume()
    distant.mount()
    wait_for(lambda: readme_of(server, uuid), "kept: 1\n")
    wait_for(lambda: unsent(distant.account, distant.path), [])
    assert not kept.exists()


def distant_reason(line: str) -> str:
    reason = line.partition("README.yml: ")[2].partition("; kept in")[0]
    assert "127.0.0.1" in reason
    return reason


def test_killed_daemon_has_kept_what_was_not_sent(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    write_while_away(distant, way, "killed: 1\n")
    uuid = uuid_at(distant)

    distant.end(signal.SIGKILL)
    way.resume()
    distant.mount()

    wait_for(lambda: readme_of(server, uuid), "killed: 1\n")


def test_discard_drops_what_was_not_sent(
    distant: Remountable, way: Relay, server: ServerHandle
) -> None:
    kept = write_while_away(distant, way, "wrong: 1\n")
    way.resume()

    done = distant.account.dserverfs("discard", distant.path / "README.yml")

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("discarded: what was written to ")
    assert not kept.exists()
    assert (distant.path / "README.yml").read_text() == BEFORE
    assert "as the server's" in distant.account.dserverfs("discard", distant.path).stderr


def test_nothing_is_left_after_umount(distant: Remountable) -> None:
    (distant.path / ".README.yml.swp").write_text("swap")
    (distant.path / "README.yml").write_text("last: 1\n")
    uuid = uuid_at(distant)

    done = distant.account.dserverfs("umount", distant.path)

    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in distant.staging.glob(".edits/*/*")] == ["lock"]
    distant.mount()
    assert (distant.path / "README.yml").read_text() == "last: 1\n", uuid


def test_last_write_before_a_plain_unmount_is_sent(
    distant: Remountable, server: ServerHandle
) -> None:
    uuid = uuid_at(distant)
    pid = distant.daemon()
    (distant.path / "README.yml").write_text("last: 1\n")

    subprocess.run(["fusermount3", "-u", distant.path], check=True, timeout=30)

    wait_for(lambda: Path(f"/proc/{pid}").exists(), False)
    assert readme_of(server, uuid) == "last: 1\n"


@pytest.mark.parametrize(
    ("kind", "register", "message"),
    [
        ("none", True, "Read-only file system"),
        ("own", False, "Permission denied"),
    ],
)
def test_what_the_server_does_not_take_is_refused_at_open(
    fuse: None,
    current_user: Account,
    quirky: QuirkyServer,
    kind: str,
    register: bool,
    message: str,
) -> None:
    become(quirky, kind)
    if not register:
        quirky.register = []
    uuid = serving.new_uuid()
    quirky.add(uuid, QUIRKY_CONTENTS, BEFORE.encode())
    uri = f"dserver://{quirky.url.removeprefix('http://')}/s3/bucket/{uuid}"

    with mounted(current_user, uri, TOKEN) as path:
        for name in ("README.yml", ".README.yml.swp", ".dtool/tags/x", ".dtool/annotations/x.json"):
            with pytest.raises(OSError, match=message):
                os.close(os.open(path / name, os.O_WRONLY | os.O_CREAT, 0o644))
        assert message in run(path, "sed -i s/before/after/ README.yml").stderr
        assert (path / "README.yml").read_text() == BEFORE
    assert quirky.asked("^(PUT|POST|DELETE) /(readmes|tags|annotations)") == 0
