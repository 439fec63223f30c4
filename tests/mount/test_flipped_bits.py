"""One flipped bit of a stored object: an error for its block, in every way of reading."""

from __future__ import annotations

import random
from pathlib import Path

from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.flipped_bits import WAYS, Flips, make_items
from tests.support.mounts import mounted, publish
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle


def test_flipped_bit_is_an_error_for_its_block_and_no_other(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    chance = random.Random(7)
    make_items(tmp_path / "right", 2 * len(WAYS), chance)
    items = {path.name: path.read_bytes() for path in (tmp_path / "right").iterdir()}
    local = make_dataset(tmp_path, "flipped-bits", items)
    (uri,) = publish(server.base_uri, token, tmp_path / "cache", local)
    flips = Flips(current_user, StoredItems.of(server, uri), tmp_path / "right", chance)

    mount = mounted(current_user, uri, token, "--cache-dir", str(tmp_path / "own"))

    assert flips.round(mount, [*WAYS]) == 2 * len(WAYS)
