"""Block hashes as an overlay: from a freeze to the reader who gets no byte of a wrong block."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dserverfs.base import hash_overlay
from dserverfs.base.errors import IntegrityError, UsageError
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import Dataset, DserverURI, identifier_of
from dserverfs.base.retry import Deadline
from dserverfs.client import Client
from dserverfs.reading import hash_pages
from dserverfs.reading.comparison_report import BY_BLOCK, WHOLE_LAST
from dserverfs.remote.routes import Routes
from dserverfs.settings import Settings
from tests.support.dtool_datasets import content_of
from tests.support.patience import LATE_S
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

CONTENTS = {"large": content_of("overlay", 3 * BLOCK_SIZE + 17), "small": b"small"}

Open = Callable[[str], Client]


@pytest.fixture
def open_client(
    server: ServerHandle, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Open:
    """Clients with caches of their own, which take the server for one of upstream's."""
    capabilities = Routes.capabilities

    def upstream_s(routes: Routes) -> object:
        return replace(capabilities(routes), extended=False, parts=False, block_hashes=False)

    monkeypatch.setattr(Routes, "capabilities", upstream_s)

    def open_client(value: str) -> Client:
        settings = Settings({"DSERVER_TOKEN": token, "DSERVER_BLOCK_HASHES": value}, {})
        directory = tmp_path / str(uuid.uuid4())
        return Client(
            DserverURI.parse(server.base_uri).server,
            settings,
            cache_directory=directory / "cache",
            staging_directory=directory / "staging",
            adopt=False,
        )

    return open_client


def frozen(client: Client, base_uri: str) -> Dataset:
    client.staging.open()
    staged = client.staging.create(base_uri, f"overlay-{uuid.uuid4()}", "grumpy")
    for name, content in CONTENTS.items():
        (staged.tree / name).write_bytes(content)
    client.freezer.freeze(staged).result(60)
    assert staged.frozen_as is not None
    return staged.frozen_as


@pytest.mark.expects_log("block 1 does not have its hash; fetched once more")
def test_wrong_block_is_found_in_any_order_of_reading(
    open_client: Open, server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hash_pages, "WAIT_S", LATE_S)
    with open_client("overlay") as writer:
        dataset = frozen(writer, server.backend_uri)
        overlays = writer.resolver.metadata(dataset).overlays
    wrong = bytearray(CONTENTS["large"])
    wrong[BLOCK_SIZE + 5] ^= 1
    StoredItems.of(server, dataset.uri).put("large", bytes(wrong))

    with open_client("") as reader:  # the setting is the writer's
        contents = dict(reader.catalogue.contents(dataset))
        assert reader.reader.report.of_item(contents["large"]) == BY_BLOCK
        for index in (2, 0, 3):
            block = reader.reader.filler.obtain(contents["large"], index, Deadline(60))
            right = CONTENTS["large"][index * BLOCK_SIZE :][:BLOCK_SIZE]
            assert block.read(0, BLOCK_SIZE) == right
        with pytest.raises(IntegrityError):
            reader.reader.filler.obtain(contents["large"], 1, Deadline(60))

    (name,) = overlays
    values = json.loads(overlays[name])
    assert name == hash_overlay.NAME
    assert values.keys() == {identifier_of(relpath) for relpath in CONTENTS}
    assert values[identifier_of("small")] is None


def test_nothing_is_written_unless_it_is_wanted(open_client: Open, server: ServerHandle) -> None:
    with open_client("none") as client:
        dataset = frozen(client, server.backend_uri)
        contents = dict(client.catalogue.contents(dataset))

        assert client.resolver.metadata(dataset).overlays == {}
        assert client.reader.report.of_item(contents["large"]) == WHOLE_LAST


def test_server_that_keeps_an_object_of_them_gets_no_overlay(
    open_client: Open, server: ServerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with open_client("overlay") as client:
        dataset = frozen(client, server.backend_uri)

        assert client.resolver.metadata(dataset).overlays == {}
        assert client.block_hashes.has(dataset)


def test_setting_of_another_value_is_refused(open_client: Open) -> None:
    with pytest.raises(UsageError, match="DSERVER_BLOCK_HASHES=yes: must be overlay or none"):
        open_client("yes")
