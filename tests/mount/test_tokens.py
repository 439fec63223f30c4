"""The token of a mount: told of by `status`, and renewed while nobody uses the mount."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from dserverfs.base.errors import NotAuthenticated
from dserverfs.mount.serving import TOKEN_CHECK_S, keep_token
from dserverfs.remote.tokens import TokenSource
from tests.support.accounts import Account
from tests.support.mount_daemons import Remountable
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.mount_fixtures"]


def test_status_tells_where_the_token_is_and_when_it_ends(
    fuse: None, ordinary_user: Account, server: ServerHandle
) -> None:
    now = int(time.time())
    token = server.token_for(server.username, iat=now, exp=now + 100 * 86_400 + 3600)
    with mounted(ordinary_user, server.base_uri, token) as path:
        said = ordinary_user.dserverfs("status").stdout
        facts = json.loads(ordinary_user.dserverfs("status", "--json").stdout)

    lines = said.splitlines()
    first = lines.index(f"mounted: {server.base_uri} at {path}")
    assert lines[first + 1].startswith(
        f"    the token in DSERVER_TOKEN, of {server.username}: expires 20"
    )
    assert lines[first + 1].endswith(" UTC (in 100 days)")
    (mount,) = (each for each in facts["mounts"] if each["path"] == str(path))
    assert mount["token"] == {
        "source": "the token in DSERVER_TOKEN",
        "expires_at": now + 100 * 86_400 + 3600.0,
        "user": server.username,
    }
    assert token not in said


def test_status_tells_why_there_is_no_token(
    fuse: None, current_user: Account, server: ServerHandle, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(server.token)
    with mounted(
        current_user, server.base_uri, "", "-o", f"token_file={file}", env={"DSERVER_TOKEN": ""}
    ) as path:
        file.unlink()
        said = current_user.dserverfs("status").stdout
        file.write_text(server.token)

    lines = said.splitlines()
    line = lines[lines.index(f"mounted: {server.base_uri} at {path}") + 1]
    assert line.startswith(f"    the token in {file}: token file {file}: cannot be read: ")


def test_mount_says_on_the_terminal_that_its_token_is_about_to_end(
    mount: Remountable, server: ServerHandle, tmp_path: Path
) -> None:
    now = int(time.time())
    file = tmp_path / "token"
    file.write_text(server.token_for(server.username, iat=now - 86_400, exp=now + 3600))

    done = mount.account.dserverfs(
        "mount", server.base_uri, mount.path, env={"DSERVER_TOKEN_FILE": str(file)}
    )

    assert done.returncode == 0
    assert done.stderr.startswith(f"the token in {file} ends 20")
    assert done.stderr.count("\n") == 1
    assert mount.account.dserverfs("umount", mount.path).returncode == 0


class Watched(TokenSource):
    """Notes when it is asked; has a token only the second time."""

    def __init__(self) -> None:
        super().__init__("token", None)
        self.asked_at_s: list[float] = []

    def token(self) -> str:
        self.asked_at_s.append(trio.current_time())
        if len(self.asked_at_s) != 2:
            raise NotAuthenticated("no token")
        return "token"


def test_token_of_an_idle_mount_is_looked_at_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Watched()

    async def here(call: Callable[[], object], **_: object) -> object:
        return call()  # the clock goes on while a thread works

    monkeypatch.setattr(trio.to_thread, "run_sync", here)

    async def watch() -> None:
        with trio.move_on_after(3.5 * TOKEN_CHECK_S):
            await keep_token(source)

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    began_s = clock.current_time()
    trio.run(watch, clock=clock)

    waits_s = [at_s - began_s for at_s in source.asked_at_s]
    assert waits_s == pytest.approx([n * TOKEN_CHECK_S for n in (1, 2, 3)], abs=1)
