"""Uploading: what arrives is right, whatever goes wrong on the way; or nothing is registered."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.errors import (
    Cancelled,
    Conflict,
    DserverfsError,
    IntegrityError,
    ItemChanged,
    NotAuthenticated,
    ProtocolError,
    TooLarge,
    Unreachable,
)
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import identifier_of
from dserverfs.base.progress import Progress
from dserverfs.remote.json_body import Items
from dserverfs.remote.upload_urls import UploadUrls
from dserverfs.writing.upload import uploader as uploader_module
from dserverfs.writing.upload.put_retry import ATTEMPTS
from dserverfs.writing.upload.uploader import THREADS, Uploader
from tests.support.dtool_datasets import SIZES, content_of, make_varied_dataset
from tests.support.faulty_put_front import (
    Fault,
    Handler,
    cut_after,
    lose_answer,
    refuse,
    refuse_unread,
    spoil,
    stall,
)
from tests.support.local_uploads import SMALL, Site, local_dataset

pytest_plugins = ["tests.support.upload_fixtures"]

LARGE = {"large.bin": content_of("large.bin", 9 * 1024 * 1024 + 17)}


def started(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[UploadUrls]:
    """Return the list of the answers of all uploads that are begun from now on."""
    answers = []
    start = site.client.resolver.uploads.start

    def noted(base_uri: str, description: Mapping[str, Any], items: Items) -> UploadUrls:
        answers.append(start(base_uri, description, items))
        return answers[-1]

    monkeypatch.setattr(site.client.resolver.uploads, "start", noted)
    return answers


# What arrives


def test_every_byte_and_all_metadata_arrive(site: Site, tmp_path: Path) -> None:
    dataset = LocalDataset.read(make_varied_dataset(tmp_path, "varied-upload"))
    seen: list[Progress] = []

    uri = site.client.uploader.upload(dataset, site.base_uri, on_progress=seen.append)

    assert uri == f"{site.base_uri}/{dataset.admin_metadata['uuid']}"
    assert site.stored(dataset) == {name: content_of(name, size) for name, size in SIZES.items()}
    (registered,) = site.client.resolver.datasets_by_uuid(dataset.admin_metadata["uuid"])
    assert registered.created_at == pytest.approx(dataset.admin_metadata["created_at"])
    metadata = site.client.resolver.metadata(registered)
    assert metadata.tags == ("testing",)
    assert set(metadata.overlays) == {"odd"}
    total = sum(SIZES.values())
    assert seen[-1] == (total, total, len(SIZES), len(SIZES))
    assert seen == sorted(seen)


def test_put_carries_what_is_pinned_and_no_other_header(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"abc", "empty": b"", **LARGE})

    site.uploader.upload(dataset, site.base_uri)

    *items, readme, hashes = site.front.puts
    assert len(items) == 3
    for put in items:
        assert {name.lower() for name in put.headers} == {
            *("host", "user-agent", "content-length"),
            *("content-md5", "x-amz-meta-handle", "x-amz-meta-checksum"),
        }
        assert put.headers["Content-Length"] == str(len(put.content))
    assert readme.content == dataset.readme
    # No URL pins it, so that the store is told in another way what it should get.
    assert (
        hashes.headers["Content-MD5"]
        == base64.b64encode(hashlib.md5(hashes.content).digest()).decode()
    )


def test_small_items_share_few_connections(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)

    site.uploader.upload(dataset, site.base_uri)

    assert site.front.connections <= THREADS + 1


def test_few_large_items_at_once_and_small_ones_beside_them(tmp_path: Path) -> None:
    sizes = {"a": 9 << 20, "b": 8 << 20, "c": 5, "d": 10 << 20, "e": 30 << 20, "f": 11 << 20}
    dataset = local_dataset(tmp_path / "items", dict.fromkeys(sizes, b""))
    items = [replace(item, size_in_bytes=sizes[item.relpath]) for item in dataset.items.values()]
    queue = uploader_module._Queue(lambda: iter(items))

    first = [queue.take() for _ in range(6)]
    queue.done(next(item for item in items if item.relpath == "e"))

    assert [item and item.relpath for item in first] == ["e", "f", "d", "a", "c", None]
    last = queue.take()
    assert last is not None
    assert last.relpath == "b"


# Faults of the store and the way to it


@pytest.mark.parametrize("contents", [{"small": b"small content"}, LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
    "fault",
    [
        refuse(503, "SlowDown", {"Retry-After": "0"}),
        refuse(500, "InternalError"),
        refuse(400, "RequestTimeout"),
        refuse(403, "AccessDenied"),
        refuse_unread(503, "ServiceUnavailable"),
        refuse_unread(403, "AccessDenied"),
        cut_after(0),
        cut_after(5),
        lose_answer,
        spoil,
        stall,
    ],
)
def test_item_arrives_after_a_fault(
    site: Site, tmp_path: Path, contents: dict[str, bytes], fault: Fault
) -> None:
    dataset = local_dataset(tmp_path / "items", contents)
    site.front.faults = [fault]
    seen: list[Progress] = []

    site.uploader.upload(dataset, site.base_uri, on_progress=seen.append)

    assert site.front.faults == []
    assert site.stored(dataset) == contents
    total = sum(map(len, contents.values()))
    assert seen[-1] == (total, total, 1, 1)


def test_urls_that_expired_for_all_are_renewed_once(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)
    answers = started(site, monkeypatch)

    def refuse_the_first_urls(handler: Handler) -> None:
        if len(answers) == 1:
            refuse(403, "AccessDenied")(handler)
        else:
            handler.answer(*handler.ask_store(handler.take()))

    site.front.faults = [refuse_the_first_urls] * len(SMALL)

    site.uploader.upload(dataset, site.base_uri)

    assert len(answers) == 2
    assert site.stored(dataset) == SMALL


def test_urls_that_are_refused_when_new_are_an_error(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    site.front.faults = [refuse(403, "SignatureDoesNotMatch")] * 9
    answers = started(site, monkeypatch)

    with pytest.raises(ProtocolError, match="SignatureDoesNotMatch, for a URL signed just now"):
        site.uploader.upload(dataset, site.base_uri)

    assert len(answers) == 2
    assert not site.is_registered(dataset)


@pytest.mark.parametrize(
    ("fault", "error"),
    [(refuse(503, "SlowDown"), Unreachable), (cut_after(0), Unreachable), (spoil, IntegrityError)],
)
def test_store_that_never_takes_an_item_is_given_up(
    site: Site, tmp_path: Path, fault: Fault, error: type[DserverfsError]
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    site.front.faults = [fault] * ATTEMPTS

    with pytest.raises(error) as failure:
        site.uploader.upload(dataset, site.base_uri)

    assert site.front.faults == []
    assert "Signature" not in str(failure.value)
    assert not site.is_registered(dataset)
    site.uploader.upload(dataset, site.base_uri)
    assert site.stored(dataset) == {"a": b"a"}


def test_store_that_says_how_long_to_wait_is_waited_for(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    site.front.faults = [refuse(503, "SlowDown", {"Retry-After": "7200"})]
    waits: list[float] = []
    monkeypatch.setattr(
        "dserverfs.writing.upload.put_retry.Tally.wait", lambda _, seconds: waits.append(seconds)
    )

    site.uploader.upload(dataset, site.base_uri)

    assert waits == [60.0]  # not longer, however long it says


def test_link_that_is_slow_is_not_one_that_stalls(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    pieces = []

    def slowly(handler: Handler) -> None:
        left = int(handler.headers["Content-Length"])
        while left and not handler.front.released.wait(0.1):
            pieces.append(handler.rfile.read(min(left, 256 * 1024)))
            left -= len(pieces[-1])
        handler.answer(*handler.ask_store(b"".join(pieces)))

    site.front.faults = [slowly]  # 3.6 s in all; the stall timeout is 2 s

    site.uploader.upload(dataset, site.base_uri)

    assert len(pieces) > 30
    assert len(site.front.puts) == 2  # README, block hashes: the item was not sent twice
    assert site.stored(dataset) == LARGE


# Again


def test_what_is_stored_is_not_sent_again(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)
    site.front.faults = [None] * 12 + [refuse(400, "EntityTooLarge")] * 100

    with pytest.raises(ProtocolError):
        site.uploader.upload(dataset, site.base_uri)
    arrived = {key for key in site.front.keys()[:12]}
    site.front.faults = []
    site.front.puts.clear()
    seen: list[Progress] = []
    site.uploader.upload(dataset, site.base_uri, on_progress=seen.append)

    again = site.front.keys()
    assert len(again) == len(SMALL) - 12 + 1
    assert not arrived & set(again)
    assert seen[-1][0] == seen[-1][1]
    assert site.stored(dataset) == SMALL


def test_upload_that_is_registered_already_is_success(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", SMALL)
    uri = site.uploader.upload(dataset, site.base_uri)
    site.front.puts.clear()

    assert site.uploader.is_registered(dataset, uri)
    assert site.uploader.upload(dataset, site.base_uri) == uri
    assert site.front.puts == []


def test_uuid_that_has_other_items_is_a_conflict(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "one", {"a": b"a"})
    site.uploader.upload(dataset, site.base_uri)
    other = local_dataset(tmp_path / "two", {"a": b"b"}, uuid=dataset.admin_metadata["uuid"])

    with pytest.raises(Conflict, match="other items"):
        site.uploader.upload(other, site.base_uri)

    assert site.stored(dataset) == {"a": b"a"}
    assert not site.uploader.is_registered(other, f"{site.base_uri}/{'0' * 8}-{'0' * 4}")


def test_completion_whose_answer_is_lost_is_found_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    transport = site.client._transport
    request = transport.request

    def lossy(method: str, path: str, **options: Any) -> Any:
        response = request(method, path, **options)
        if path.endswith("upload-complete"):
            raise Unreachable("the answer was lost")
        return response

    monkeypatch.setattr(transport, "request", lossy)

    site.uploader.upload(dataset, site.base_uri)

    assert site.is_registered(dataset)


def test_token_that_is_refused_half_way_is_told_and_another_takes_it_up(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"a"})
    good = site.client._transport._tokens._token
    expired = site.server.token_for(site.server.username, exp=1)

    with pytest.raises(NotAuthenticated, match="expired"):
        site.uploader.upload(
            dataset,
            site.base_uri,
            on_progress=lambda _: setattr(site.client._transport._tokens, "_token", expired),
        )
    site.client._transport._tokens._token = good
    site.front.puts.clear()
    site.uploader.upload(dataset, site.base_uri)

    assert len(site.front.puts) == 1  # the README
    assert site.is_registered(dataset)


# Stopping


def test_stop_ends_it_and_it_can_be_taken_up(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", {**SMALL, **LARGE})
    stop = threading.Event()

    def stop_soon(progress: Progress) -> None:
        if progress.items_done == 5:
            stop.set()

    with pytest.raises(Cancelled):
        site.uploader.upload(dataset, site.base_uri, on_progress=stop_soon, stop=stop)

    assert not site.is_registered(dataset)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("upload")]
    site.uploader.upload(dataset, site.base_uri)
    assert site.stored(dataset) == {**SMALL, **LARGE}


@pytest.mark.parametrize("contents", [{"small": b"small content"}, LARGE], ids=["small", "large"])
def test_stop_ends_a_wait_for_a_store_that_stalls(
    site: Site, tmp_path: Path, contents: dict[str, bytes]
) -> None:
    dataset = local_dataset(tmp_path / "items", contents)
    stop = threading.Event()

    def stall_and_stop(handler: Handler) -> None:
        stop.set()
        stall(handler)

    site.front.faults = [stall_and_stop]

    with pytest.raises(Cancelled):
        site.uploader.upload(dataset, site.base_uri, stop=stop)


# Files that change


def change_content(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def shorten(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def remove(path: Path) -> None:
    path.unlink()


def write_anew(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("change", [change_content, shorten, remove, write_anew])
@pytest.mark.parametrize("when", ["before it is sent", "when all are sent"])
def test_file_that_changes_is_named_and_nothing_registered(
    site: Site, tmp_path: Path, change: Any, when: str
) -> None:
    contents = {"nested/changing": b"content" * 50, **SMALL}
    dataset = local_dataset(tmp_path / "items", contents)
    path = tmp_path / "items/nested/changing"
    changed = threading.Event()

    def change_once(progress: Progress) -> None:
        due = 1 if when == "before it is sent" else progress.items_total
        if progress.items_done == due and not changed.is_set():
            changed.set()
            change(path)

    with pytest.raises(ItemChanged) as failure:
        site.uploader.upload(dataset, site.base_uri, on_progress=change_once)

    assert failure.value.relpath == "nested/changing"
    assert "nested/changing" in str(failure.value)
    assert not site.is_registered(dataset)


def test_large_file_that_changes_while_it_is_sent_is_named(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", LARGE)
    path = tmp_path / "items/large.bin"

    def change_and_pass(handler: Handler) -> None:
        path.write_bytes(bytes(len(LARGE["large.bin"])))
        handler.answer(*handler.ask_store(handler.take()))

    site.front.faults = [change_and_pass]

    with pytest.raises(ItemChanged) as failure:
        site.uploader.upload(dataset, site.base_uri)

    assert failure.value.relpath == "large.bin"
    assert not site.is_registered(dataset)


def test_file_that_never_was_what_its_hash_says_is_named(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"right"})
    (tmp_path / "items/a").write_bytes(b"wrong")

    with pytest.raises(ItemChanged, match="other content than was hashed"):
        site.uploader.upload(dataset, site.base_uri)

    assert not site.is_registered(dataset)


def test_file_of_another_size_is_named_before_anything_is_sent(site: Site, tmp_path: Path) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"right"})
    (tmp_path / "items/a").write_bytes(b"longer")

    with pytest.raises(ItemChanged, match="has 6 bytes and not 5"):
        site.uploader.upload(dataset, site.base_uri)

    assert site.front.puts == []


def test_item_that_is_too_large_is_refused_before_anything_is_sent(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = local_dataset(tmp_path / "items", {"a": b"12345", "b": b"123"})
    uploader: Uploader = site.uploader
    monkeypatch.setattr(uploader, "max_item_bytes", lambda base_uri: 4)

    with pytest.raises(TooLarge, match=r"^a: has 5 bytes; .* up to 4"):
        uploader.upload(dataset, site.base_uri)

    assert identifier_of("b") in dataset.items
    assert site.front.puts == []
