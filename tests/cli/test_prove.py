"""`dserverfs prove`: whole datasets of a real server compared, and their block hashes added."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import requests

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.cli.main import main
from dserverfs.remote.routes import Capabilities, Routes
from tests.support.accounts import Account
from tests.support.block_hashes import object_of
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle, encoded, upload

LARGE = {
    "deep/large": content_of("proven deep/large", 3 * BLOCK_SIZE + 99),
    "two": content_of("proven two", 2 * BLOCK_SIZE),
    "small": b"small",
    "empty": b"",
}
SMALL = {"small": b"small"}


class Prover:
    """The command, run in this process, by a user with an empty cache."""

    def __init__(self, server: ServerHandle, capture: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self._capture = capture

    def prove(self, *arguments: str, status: int = 0) -> list[str]:
        """Return the lines that it prints."""
        self._capture.readouterr()
        found = main(["prove", *arguments])
        said = self._capture.readouterr()
        assert (found, said.err) == (status, ""), said
        return said.out.splitlines()

    def refusal(self, *arguments: str) -> str:
        """Return the one line that it fails with."""
        assert main(["prove", *arguments]) == 1
        (line,) = self._capture.readouterr().err.splitlines()
        return line

    def upload(self, contents: Mapping[str, bytes], base_uri: str | None = None) -> str:
        """Freeze a dataset without block hashes; return its URI."""
        uri = upload(self.server, contents, base_uri=base_uri)
        return f"dserver://{self.server.base_uri.split('/')[2]}/{uri.replace('://', '/')}"

    def served(self, uri: str) -> bytes | None:
        """Return the block hashes that readers get."""
        *_, bucket, uuid = uri.split("/")
        body = self.server.get(f"/signed-urls/dataset/{encoded(f's3://{bucket}/{uuid}')}").json()
        url = body.get("block_hashes_url")
        return None if url is None else requests.get(url, timeout=30).content


@pytest.fixture
def prover(
    server: ServerHandle,
    token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Prover:
    monkeypatch.setenv("DSERVER_TOKEN", token)
    monkeypatch.setenv("DSERVER_CACHE_DIR", str(tmp_path / "prover-cache"))
    return Prover(server, capsys)


def test_proven_dataset_gets_block_hashes(prover: Prover) -> None:
    uri = prover.upload(LARGE)

    first, again = prover.prove(uri), prover.prove(uri)

    assert first == [f"proven: {uri}: 4 items, 5.0 MiB; block hashes added"]
    assert again == [f"proven: {uri}: 4 items, 5.0 MiB; it has block hashes"]
    assert prover.served(uri) == object_of(LARGE)


def test_dataset_of_small_items_needs_none(prover: Prover) -> None:
    uri = prover.upload(SMALL)

    assert prover.prove(uri) == [f"proven: {uri}: 1 item, 5 B; it needs no block hashes"]


def forge(stored: StoredItems) -> None:
    stored.put("two", LARGE["two"][:-1] + b"?")
    stored.put("small", b"SMALL")


def lose(stored: StoredItems) -> None:
    stored.delete("two")
    stored.delete("empty")


@pytest.mark.parametrize("harm", [forge, lose])
def test_wrong_dataset_is_told_in_one_line_and_gets_nothing(
    prover: Prover, harm: Callable[[StoredItems], None], server: ServerHandle
) -> None:
    uri = prover.upload(LARGE)
    harm(StoredItems.of(server, uri))

    (line,) = prover.prove(uri, status=1)

    assert line.startswith(f"wrong: {uri}: 2 of 4 items; ")
    assert prover.served(uri) is None


def test_wrong_block_hashes_of_right_items_are_told(prover: Prover, server: ServerHandle) -> None:
    uri = prover.upload(LARGE)
    prover.prove(uri)
    right = object_of(LARGE)
    stored = StoredItems.of(server, uri)
    key = {"Bucket": stored.bucket, "Key": f"{stored.uuid}/block-hashes"}
    stored.client.put_object(**key, Body=right[:-1] + bytes([right[-1] ^ 1]))

    (wrong,) = prover.prove(uri, status=1)
    stored.client.delete_object(**key)
    (added,) = prover.prove(uri)

    assert wrong.startswith(f"wrong: {uri}: 1 of 4 items; ")
    assert wrong.endswith("its block hashes are wrong, and its content is right")
    assert added.endswith("block hashes added")
    assert prover.served(uri) == right


def test_what_may_not_be_registered_is_proven_all_the_same(
    prover: Prover, server: ServerHandle
) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    uri = prover.upload(LARGE, base_uri)
    server.request(
        "PUT",
        f"/base-uris/{encoded(base_uri)}",
        {
            "users_with_search_permissions": [server.username],
            "users_with_register_permissions": [],
        },
    ).raise_for_status()

    (line,) = prover.prove(uri)

    assert line.endswith("block hashes not added: you may not register there")
    assert prover.served(uri) is None


def test_server_that_keeps_none_is_told(prover: Prover, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = prover.upload(LARGE)
    monkeypatch.setattr(Routes, "capabilities", lambda routes: Capabilities(True, True))

    (line,) = prover.prove(uri)

    assert line.endswith("this server keeps no block hashes")


def test_all_of_a_base_uri_are_proven_and_those_that_are_need_it_no_more(
    prover: Prover, server: ServerHandle
) -> None:
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    uris = [prover.upload(LARGE, base_uri) for _ in range(3)]
    small = prover.upload(SMALL, base_uri)
    base = small.rpartition("/")[0]
    prover.prove(uris[0])
    stored = StoredItems.of(server, uris[1])._replace(bucket=base.rpartition("/")[2])
    stored.put("deep/large", bytes(3 * BLOCK_SIZE + 99))

    first, again = prover.prove(base, "--all", status=1), prover.prove(base, "--all", status=1)

    proven, wrong = sorted(first[:-1])
    assert proven == f"proven: {uris[2]}: 4 items, 5.0 MiB; block hashes added"
    assert wrong.startswith(f"wrong: {uris[1]}: 1 of 4 items; deep/large: has hash")
    assert first[-1] == "1 dataset proven, no proof needed by 2, 1 wrong"
    assert again == [wrong, "0 datasets proven, no proof needed by 3, 1 wrong"]
    assert [prover.served(uri) for uri in uris] == [object_of(LARGE), None, object_of(LARGE)]
    assert "--all" in prover.refusal(base)


def test_path_in_a_mount_names_its_dataset(
    fuse: None, prover: Prover, current_user: Account, token: str, tmp_path: Path
) -> None:
    local = make_dataset(tmp_path, "proven-by-path", LARGE)
    publish(prover.server.base_uri, token, tmp_path / "cache", local)

    with mounted(current_user, prover.server.base_uri, token) as path:
        of_dataset, of_item, of_mount = (
            current_user.dserverfs("prove", path / inside, env={"DSERVER_TOKEN": token})
            for inside in ("proven-by-path", "proven-by-path/data/two", ".")
        )

    for done in (of_dataset, of_item):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("4 items, 5.0 MiB; it has block hashes\n")
    assert of_mount.returncode == 1
    assert prover.refusal(str(tmp_path)).endswith("is not in a mount of dserverfs")
