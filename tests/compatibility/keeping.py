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
from tests.support.patience import LATE_S
from tests.support.servers import ServerHandle, begin, put_items, running_server, upload_body
from tests.support.staged_states import staged_states

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
_GRANT = ("permission", "grant", USER, "s3://datasets", "--search", "--register")
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
    for directory, record in staged_states(staging):
        if record["name"] == name:
            return directory
    raise AssertionError(f"{name} is not staged")


def make(sources: Path, directory: Path) -> None:
    """Make `home` and `server` in a directory."""
    version = Keeping(sources, directory)
    with version.server() as server:
        version.add_user(server.base_uri)
        version.fill_server(server)
    version.stage()
    with version.server():
        for name, line in ENDS.items():
            version.end_at(name, line)
        version.fail()
    version.put_back()


class Keeping:
    """A user of the version and a server of it, each killed where it is to be kept."""

    def __init__(self, sources: Path, directory: Path) -> None:
        self.sources, self.directory = sources, directory
        self.limited = edition(sources, directory / "limited", *_LIMITS)
        self.user = with_dserverfs_of(accounts.current(directory), self.limited)
        self.data, self.staging = directory / "server", self.user.home / "staging"
        self.manage = ("serve", "--data", self.data)
        self.base = ""
        # What is staged is put aside, so that a mount has the one that it is to end with.
        self.stash = directory / "stash"
        self.stash.mkdir()

    def server(self) -> contextlib.AbstractContextManager[ServerHandle]:
        return running_server(self.data, "--port", PORT, sources=self.limited)

    def mounted(
        self, user: Account | None = None
    ) -> contextlib.AbstractContextManager[Remountable]:
        return mounted(user or self.user, self.base, self.staging)

    def add_user(self, base: str) -> None:
        """Have a user with a token, settings and rights."""
        self.base = base
        config = self.user.home / ".config/dtool/dtool.json"
        config.parent.mkdir(parents=True)
        settings = {"DSERVER_STAGING_DIR": "~/staging", "DSERVER_USERNAME": USER}
        config.write_text(json.dumps(settings))
        self.user.dserverfs(*self.manage, "user", "add", USER, check=True)
        self._with_password(*self.manage, "user", "password", USER)
        self.user.dserverfs(*self.manage, *_GRANT, check=True)
        self.user.dserverfs(*self.manage, "base-uri", "add", "s3://other", check=True)
        self._with_password("login", base.split("/")[2])

    def _with_password(self, *arguments: str | Path) -> None:
        program = (self.user.python, "-m", "dserverfs", *arguments)
        self.user.run(*program, input=f"{PASSWORD}\n", check=True)

    def fill_server(self, server: ServerHandle) -> None:
        """Freeze a dataset, read it through a cache, link to it; begin to upload another."""
        local = make_dataset(self.directory, "kept-dataset", ITEMS)
        with self.mounted() as mount:
            self.user.run("cp", "-r", local, mount.path, check=True)
            self.user.dserverfs("freeze", mount.path / "kept-dataset", check=True)
            self.user.run("grep", "-rq", "nothing", mount.path / "kept-dataset")  # all is read
            self.user.run("sh", "-c", "ls -lR > /dev/null", check=True)
            (mount.path / "kept-dataset/.dtool/tags/second").touch()
            self.user.dserverfs("umount", mount.path, check=True)
        body = upload_body(BEGUN, name="begun")
        put_items(begin(server, body), {"a": BEGUN["a"]})
        (self.user.home / "begun.json").write_text(json.dumps(body))

    def stage(self) -> None:
        """Write each dataset, and a README, which nothing is sent of; put them aside."""
        with contextlib.ExitStack() as stack:
            server = stack.enter_context(self.server())
            mount = stack.enter_context(self.mounted())
            for name, files in STAGED.items():
                fill(self.user, mount.path / name, files)
            list((mount.path / "kept-dataset").iterdir())
            stop(server)
            for name in ("was-sealed", *ENDS):
                done = self.user.dserverfs("freeze", mount.path / name)
                assert done.returncode == 1, done
            with contextlib.suppress(OSError):  # the server is away
                (mount.path / "kept-dataset/README.yml").write_text(PENDING)
            kill_when(mount, lambda: mount.states()["was-sealed"] == "sealed")
        for name in STAGED:
            found = one_dataset(self.staging, name)
            (self.stash / name).mkdir()
            shutil.move(found, self.stash / name / found.name)
            self.place = found.parent
        shutil.move(self.staging / ".edits", self.stash / ".edits")

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Have one dataset in its place inside the block, and put it aside again."""
        (aside,) = (self.stash / name).iterdir()
        shutil.move(aside, self.place / aside.name)
        yield
        shutil.move(self.place / aside.name, aside)

    def end_at(self, name: str, line: tuple[str, str, str]) -> None:
        """Have the version end itself before a line, while it freezes a dataset."""
        module, before, kill = line
        change = (module, before, kill + before)
        ending = edition(self.sources, self.directory / f"ending-{name}", change)
        user = with_dserverfs_of(self.user, ending)
        with self.alone(name), self.mounted(user) as mount:
            with contextlib.suppress(AssertionError):
                wait_for_end(mount.daemon())
            assert mount.states() == {name: name.removeprefix("was-")}

    def fail(self) -> None:
        """Have the server refuse a dataset, and an annotation, for want of a right."""
        with self.alone("has-failed"), self.mounted() as mount:
            list((mount.path / "kept-dataset").iterdir())
            revoke = ("permission", "revoke", *_GRANT[2:4], "--register")
            self.user.dserverfs(*self.manage, *revoke, check=True)
            self.user.dserverfs("freeze", mount.path / "has-failed")
            assert mount.states() == {"has-failed": "failed"}
            with contextlib.suppress(OSError):
                (mount.path / "kept-dataset/.dtool/annotations/refused.json").write_text(REFUSED)
            mount.end(signal.SIGKILL)
        self.user.dserverfs(*self.manage, *_GRANT, check=True)

    def put_back(self) -> None:
        """Have all that was put aside where the version had it."""
        shutil.copytree(self.stash / ".edits", self.staging / ".edits", dirs_exist_ok=True)
        for name in STAGED:
            (aside,) = (self.stash / name).iterdir()
            shutil.move(aside, self.place / aside.name)


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
    server.process.wait(LATE_S)


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
