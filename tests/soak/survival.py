"""Daemons are killed one after the other, while what is cached is read and compared."""

from __future__ import annotations

from dserverfs.base.items import BLOCK_SIZE
from tests.soak.turns import Figures, Part, Turn
from tests.support import accounts, fuse_device
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mount_daemons import remountable
from tests.support.mounts import publish
from tests.support.random_reader import reading
from tests.support.servers import running_server
from tests.support.successors import kill_daemon

SIZE = 5 * BLOCK_SIZE + 4321
NAME = "survival"


def run(turn: Turn) -> Figures:
    directory = turn.directory
    account = accounts.current(directory)
    kills = 0
    with fuse_device.usable_by_all(), running_server(directory / "server") as server:
        local = make_dataset(directory, "survives", {"large": content_of(NAME, SIZE)})
        (uri,) = publish(server.base_uri, server.token, directory / "publishing", local)
        with remountable(account, uri, {"DSERVER_TOKEN": server.token}) as mount:
            mount.mount("--channel", "on")
            path = mount.path / "data/large"
            assert path.read_bytes() == content_of(NAME, SIZE)
            with reading(path, NAME, SIZE) as one, reading(path, NAME, SIZE) as other:
                while kills == 0 or not turn.is_over():
                    kill_daemon(mount)
                    kills += 1
    return {"kills": kills, "reads": one.reads + other.reads}


PART = Part("survival", "cached reads see no error while daemons are killed", run)
