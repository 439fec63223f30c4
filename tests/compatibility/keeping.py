"""What a version leaves on the disk in every state, made by that version itself.

    python -m tests.compatibility.keeping SOURCES ARCHIVE

SOURCES is a checkout of the version, with the packages that it pins. A user of its server is
given a home with a token, settings, a cache, staged datasets in each state, and changes that
are not sent; the server has datasets, users, links and uploads under way. Where a state lasts
for a moment, the version runs from a copy that ends itself there by SIGKILL, and where it
needs gigabytes, from one with smaller limits. Nothing else differs, but: files were written
at whole seconds, which archives keep; locks are empty, which name the machine; the server's
port is `released.PORT`.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.compatibility.released import PORT, with_dserverfs_of
from tests.support import accounts
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import Remountable, remountable, stopped, wait_for_end
from tests.support.servers import ServerHandle, begin, put_items, running_server, upload_body

USER, PASSWORD = "keeper", "kept for the next version"
ITEMS = {
    "empty": b"",
    "small.txt": b"small\n",
    "nested/block.bin": content_of("nested/block.bin", 3000) + bytes(1 << 20),
}
# Staged by each name, and how the version is ended there.
STAGED = {
    "was-open": {"one": b"1", "two/2": b"22"},
    "was-sealed": {"one": b"sealed"},
    "was-uploading": {"large": bytes(11 << 20), "small": b"uploading"},
    "was-completing": {"one": b"completing"},
    "was-frozen": {"one": b"frozen"},
    "has-failed": {"one": b"failed"},
}
BEGUN = {"a": b"alpha", "b": b"beta"}  # an upload of the server's first user, and only "a" came
_KILL = "__import__('os').kill(__import__('os').getpid(), 9)"
# What is put before a line of the version's sources, so that it ends itself there.
ENDS = {
    "was-uploading": (
        "pieces.py",
        '        return headers.get("Etag", "")',
        f"        {_KILL}\n",
    ),
    "was-completing": ("uploader.py", "        self._routes.complete(", f"        {_KILL}\n"),
    "was-frozen": ("staging.py", "            self._gone = True\n", f"            {_KILL}\n"),
}
_LIMITS = (
    ("server/storage.py", "max_put_bytes: int = 5 * GIB", "max_put_bytes: int = 6 * MIB"),
    ("server/storage.py", "part_bytes: int = 64 * MIB", "part_bytes: int = 5 * MIB"),
    ("server/accounts.py", "timedelta(days=7)", "timedelta(days=36500)"),
)
PENDING, REFUSED = "---\ndescription: not sent yet\n", '"refused"'


def edition(sources: Path, target: Path, *changes: tuple[str, str, str]) -> Path:
    """Return a copy of the sources with some lines changed."""
    shutil.copytree(sources / "dserverfs", target / "dserverfs")
    for name, old, new in changes:
        path = target / "dserverfs" / name
        text = path.read_text()
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))
    return target


def fill(account: Account, directory: Path, files: dict[str, bytes]) -> None:
    for relpath, content in files.items():
        path = directory / relpath
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    account.run("find", directory, "-exec", "touch", "-d", "@1600000000", "{}", "+", check=True)


@contextlib.contextmanager
def mounted(account: Account, uri: str, staging: Path) -> Iterator[Remountable]:
    with remountable(account, uri, {}) as mount:
        mount.staging = staging
        mount.mount("--freeze-delay", "manual")
        yield mount


def one_dataset(staging: Path, name: str) -> Path:
    """Return the directory of a staged dataset."""
    for state in staging.glob("*/*/*/state"):
        if json.loads(state.read_text())["name"] == name:
            return state.parent
    raise AssertionError(f"{name} is not staged")


def make(sources: Path, directory: Path) -> None:
    """Make `home` and `server` in a directory."""
    limited = edition(sources, directory / "limited", *_LIMITS)
    user = with_dserverfs_of(accounts.current(directory), limited)
    data, staging, stash = directory / "server", user.home / "staging", directory / "stash"
    stash.mkdir()
    config = user.home / ".config/dtool/dtool.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"DSERVER_STAGING_DIR": "~/staging", "DSERVER_USERNAME": USER}))
    manage = ("serve", "--data", data)
    grant = ("permission", "grant", USER, "s3://datasets", "--search", "--register")
    option = ("--port", PORT)
    with running_server(data, *option, sources=limited) as server:
        base = server.base_uri
        user.dserverfs(*manage, "user", "add", USER, check=True)
        user.run(
            *(user.python, "-m", "dserverfs", *manage, "user", "password", USER),
            input=f"{PASSWORD}\n",
            check=True,
        )
        user.dserverfs(*manage, *grant, check=True)
        user.dserverfs(*manage, "base-uri", "add", "s3://other", check=True)
        user.run(
            *(user.python, "-m", "dserverfs", "login", base.split("/")[2]),
            input=f"{PASSWORD}\n",
            check=True,
        )
        local = make_dataset(directory, "kept-dataset", ITEMS)
        with mounted(user, base, staging) as mount:
            user.run("cp", "-r", local, mount.path, check=True)
            user.dserverfs("freeze", mount.path / "kept-dataset", check=True)
            user.run("grep", "-rq", "nothing", mount.path / "kept-dataset")  # all is read
            user.run("sh", "-c", "ls -lR > /dev/null", check=True)
            (mount.path / "kept-dataset/.dtool/tags/second").touch()
            user.dserverfs("umount", mount.path, check=True)
        body = upload_body(BEGUN, name="begun")
        put_items(begin(server, body), {"a": BEGUN["a"]})
        (user.home / "begun.json").write_text(json.dumps(body))
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(running_server(data, *option, sources=limited))
        mount = stack.enter_context(mounted(user, base, staging))
        for name, files in STAGED.items():
            fill(user, mount.path / name, files)
        list((mount.path / "kept-dataset").iterdir())
        stop(server)
        for name in ("was-sealed", *ENDS):
            done = user.dserverfs("freeze", mount.path / name)
            assert done.returncode == 1, done
        with contextlib.suppress(OSError):  # the server is away
            (mount.path / "kept-dataset/README.yml").write_text(PENDING)
        kill_when(mount, lambda: mount.states()["was-sealed"] == "sealed")
    for name in STAGED:
        found = one_dataset(staging, name)
        (stash / name).mkdir()
        shutil.move(found, stash / name / found.name)
    place = found.parent
    edits = staging / ".edits"
    shutil.move(edits, stash / ".edits")
    with running_server(data, *option, sources=limited):
        for name, (module, line, before) in ENDS.items():
            ending = edition(sources, directory / f"ending-{name}", (module, line, before + line))
            (kept,) = (stash / name).iterdir()
            shutil.move(kept, place / kept.name)
            ending_user = with_dserverfs_of(user, ending)
            with mounted(ending_user, base, staging) as mount, contextlib.suppress(AssertionError):
                wait_for_end(mount.daemon())
            assert mount.states() == {name: name.removeprefix("was-")}
            shutil.move(place / kept.name, kept)
        (kept,) = (stash / "has-failed").iterdir()
        shutil.move(kept, place / kept.name)
        with mounted(user, base, staging) as mount:
            list((mount.path / "kept-dataset").iterdir())
            user.dserverfs(*manage, "permission", "revoke", *grant[2:4], "--register", check=True)
            user.dserverfs("freeze", mount.path / "has-failed")
            assert mount.states() == {"has-failed": "failed"}
            with contextlib.suppress(OSError):
                (mount.path / "kept-dataset/.dtool/annotations/refused.json").write_text(REFUSED)
            mount.end(signal.SIGKILL)
        shutil.move(place / kept.name, kept)
        user.dserverfs(*manage, *grant, check=True)
    shutil.copytree(stash / ".edits", edits, dirs_exist_ok=True)
    for name in STAGED:
        (kept,) = (stash / name).iterdir()
        shutil.move(kept, place / kept.name)


def kill_when(mount: Remountable, is_so: Callable[[], bool]) -> None:
    """Kill the daemon in a moment in which something is so."""
    pid = mount.daemon()
    while True:
        with stopped(pid):
            if is_so():
                mount.end(signal.SIGKILL)
                return
        time.sleep(0.2)  # in which it gets on


def stop(server: ServerHandle) -> None:
    server.process.terminate()
    server.process.wait(30)


def pack(directory: Path, archive: Path) -> None:
    """Write `home` and `server` into an archive, without what is about this machine."""

    def kept(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        name = Path(entry.name).name
        is_of_mounts = name.startswith("crash-") or ".local/state" in entry.name
        if is_of_mounts or name.startswith("weed.log") or not (entry.isfile() or entry.isdir()):
            return None
        entry.uid = entry.gid = 0
        entry.uname = entry.gname = ""
        return entry

    for lock in [*directory.rglob("lock"), *directory.rglob("*.lock")]:
        lock.write_bytes(b"")
    with tarfile.open(archive, "w:xz", preset=9) as tar:
        for name, directory_name in (("home", "home-current"), ("server", "server")):
            tar.add(directory / directory_name, name, filter=kept)


if __name__ == "__main__":
    sources, archive = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="dserverfs-keeping-") as scratch:
        make(sources, Path(scratch))
        pack(Path(scratch), archive)
