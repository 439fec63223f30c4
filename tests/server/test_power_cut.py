"""A power cut on the machine of `dserverfs serve`: what was acknowledged is there afterwards."""

from __future__ import annotations

import signal
from pathlib import Path

from dserverfs.base.block_hashes import HEAD_BYTES
from dserverfs.base.model import DserverURI
from dserverfs.catalogue.refreshed import loaded
from tests.support.block_hashes import object_of
from tests.support.dtool_datasets import README, content_of, make_dataset
from tests.support.ext4_disk import MIB, after_power_cut, ext4_disk
from tests.support.mounts import client_of, publish
from tests.support.servers import encoded, running_server

ITEMS = {
    **{f"small/{number}": content_of(f"small {number}", 3000) for number in range(20)},
    "large": content_of("large", 3 * MIB + 7),
}
CHANGED = "changed: 1\n"


def test_power_cut_after_a_freeze_or_a_change_loses_nothing_of_it(
    test_root: Path, tmp_path: Path
) -> None:
    local = make_dataset(tmp_path, "acknowledged", ITEMS)
    with (
        ext4_disk(test_root / "server-before-the-cut", 512 * MIB) as disk,
        running_server(disk / "data") as before,
    ):
        (uri,) = publish(before.base_uri, before.token, tmp_path / "cache", local)
        with after_power_cut(disk, test_root / "server-after-the-freeze") as left:
            assert_has_all(left / "data", uri, tmp_path / "freeze", README)
        path = f"/readmes/{encoded('s3://datasets/' + uri.rpartition('/')[2])}"
        before.request("PUT", path, {"readme": CHANGED}).raise_for_status()
        with after_power_cut(disk, test_root / "server-after-the-change") as left:
            before.process.send_signal(signal.SIGKILL)
            assert_has_all(left / "data", uri, tmp_path / "change", CHANGED)


def assert_has_all(data: Path, uri: str, cache: Path, readme: str) -> None:
    """Start a server with that data, and find the dataset whole in it."""
    with running_server(data) as after:
        found = f"{after.base_uri}/{uri.rpartition('/')[2]}"
        with client_of(found, after.token, cache) as client:
            (dataset,) = client.catalogue.datasets_below(DserverURI.parse(found))
            contents = dict(client.catalogue.contents(dataset))
            assert set(contents) == set(ITEMS)
            for relpath, content in contents.items():
                assert client.stored.digest(content, content.size_in_bytes) == content.hash, relpath
            large = contents["large"]
            hashes = client.block_hashes.fetch(large, 0, large.number_of_blocks)
            assert hashes == object_of(ITEMS)[HEAD_BYTES:]
            assert loaded(lambda: client.catalogue.readme(dataset)).decode() == readme
