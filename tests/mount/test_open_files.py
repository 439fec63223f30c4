"""Programs that open more files of a mount than its daemon can hold open."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

from dserverfs.base.items import BLOCK_SIZE
from tests.support.mount_daemons import Remountable
from tests.support.servers import ServerHandle, upload

pytest_plugins = ["tests.support.mount_fixtures"]

LARGE = os.urandom(3 * BLOCK_SIZE)
LIMIT = 200


def open_all(directory: Path, stack: contextlib.ExitStack) -> int:
    """Make files and hold them open until one fails; return the errno of that."""
    try:
        for number in range(LIMIT):
            fd = os.open(directory / str(number), os.O_CREAT | os.O_EXCL | os.O_RDWR)
            stack.callback(os.close, fd)
    except OSError as error:
        return error.errno or -1
    return 0


def test_a_program_with_too_many_open_files_gets_an_error_and_all_others_go_on(
    mount: Remountable, server: ServerHandle
) -> None:
    upload(server, {"large": LARGE, "many/1": b"one"}, name="much-read", readme=b"a: 1\n")
    mount.mount("--freeze-delay", "manual")
    resource.prlimit(mount.daemon(), resource.RLIMIT_NOFILE, (LIMIT, LIMIT))
    staged, frozen = mount.path / "much-open", mount.path / "much-read"
    staged.mkdir()

    with contextlib.ExitStack() as stack:
        assert open_all(staged, stack) == errno.EMFILE

        made = sorted(staged.iterdir())
        assert len(made) == len(os.listdir(staged)) > LIMIT // 3
        assert "much-read" in os.listdir(mount.path)
        assert sorted(os.listdir(frozen / "data")) == ["large", "many"]
        assert (frozen / "data/large").read_bytes() == LARGE
        assert (frozen / "data/many/1").read_bytes() == b"one"
        said = mount.account.dserverfs("status", staged)
        assert f"open_files: {len(made)}" in said.stdout, said.stderr

    made[0].write_bytes(b"goes on")
    assert (frozen / "README.yml").read_text() == "a: 1\n"
    # Its copy may be incomplete, so only its user has it frozen.
    assert "open" in mount.account.dserverfs("status", staged, check=True).stdout
    mount.account.dserverfs("freeze", staged, check=True)
    assert (staged / "0").read_bytes() == b"goes on"
