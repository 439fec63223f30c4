"""What `dserverfs status` says of comparing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.reading import comparison_report
from tests.support.accounts import Account
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

LARGE = 2 * BLOCK_SIZE + 1
BY_BLOCK, FIRST, LAST, NOTHING = (
    comparison_report.BY_BLOCK,
    comparison_report.WHOLE_FIRST,
    comparison_report.WHOLE_LAST,
    comparison_report.NOTHING,
)


@pytest.mark.parametrize(
    ("has_hashes", "policy", "of_dataset", "of_large", "of_small"),
    [
        (True, "complete", BY_BLOCK, BY_BLOCK, FIRST),
        (True, "strict", BY_BLOCK, BY_BLOCK, FIRST),
        (True, "off", NOTHING, NOTHING, NOTHING),
        (False, "complete", LAST, LAST, FIRST),
        (False, "strict", FIRST, FIRST, FIRST),
    ],
)
def test_status_says_how_items_are_compared(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    token: str,
    tmp_path: Path,
    has_hashes: bool,
    policy: str,
    of_dataset: str,
    of_large: str,
    of_small: str,
) -> None:
    items = {"small": b"small", "large": content_of(f"{tmp_path}", LARGE)}
    local = make_dataset(tmp_path, f"compared-{has_hashes}-{policy}", items)
    (uri,) = publish(server.base_uri, token, tmp_path / "cache", local)
    stored = StoredItems.of(server, uri)
    if not has_hashes:
        stored.client.delete_object(Bucket=stored.bucket, Key=f"{stored.uuid}/block-hashes")
    options = ("--cache-dir", str(tmp_path / "own"), "--verify", policy)
    with mounted(current_user, uri, token, *options) as path:

        def compared(below: str) -> str:
            done = current_user.dserverfs("status", "--json", path / below)
            assert done.returncode == 0, done.stderr
            return str(json.loads(done.stdout)["compared"])

        assert [compared(each) for each in (".", "data/large", "data/small")] == [
            of_dataset,
            of_large,
            of_small,
        ]
        for name, content in items.items():
            assert (path / "data" / name).read_bytes() == content
        done = current_user.dserverfs("status", "--json")
        (mount,) = (m for m in json.loads(done.stdout)["mounts"] if m["path"] == str(path))
        by_block = LARGE if of_large == BY_BLOCK else 0
        as_files = 0 if policy == "off" else LARGE + 5 - by_block
        assert mount["compared"] == {
            "received": LARGE + 5,
            "by_block": by_block,
            "as_files": as_files,
            "from_cache": 0,
        }
        if by_block:
            lines = current_user.dserverfs("status").stdout
            assert "2.0 MiB fetched: 2.0 MiB compared block by block, 5 B as whole files" in lines
