"""Bytes from a store: right ranges, and every wrong answer noticed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from dserverfs.base.errors import (
    Busy,
    DeadlineExceeded,
    DserverfsError,
    Garbled,
    IntegrityError,
    NotConnected,
    NotStored,
    NotTheServer,
    Stalled,
    StorageRefused,
    Unreachable,
)
from dserverfs.base.retry import Deadline
from dserverfs.remote.connections import Connections
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.trust import Trust
from tests.support.faulty_store import (
    Fault,
    FaultyStore,
    Handler,
    cut_after,
    faulty_store,
    hang_up,
    ignore_range,
    refuse,
    reset,
    trickle,
)
from tests.support.faulty_store import stall as stall_fault
from tests.support.local_web import Certificates
from tests.support.patience import LATE_S, SOON_S
from tests.support.web_front import make_certificates

CONTENT = bytes(range(256)) * 41 + b"end"
BLOCK = 1000


@pytest.fixture
def store() -> Iterator[FaultyStore]:
    with faulty_store(CONTENT) as running:
        yield running


@pytest.fixture
def storage() -> Iterator[Storage]:
    storage = Storage()
    yield storage
    storage.close()


def read(
    storage: Storage,
    store: FaultyStore,
    start: int = 0,
    length: int = len(CONTENT),
    *,
    etag: str | None = None,
    timeout_s: float = LATE_S,
    blocks: list[bytes] | None = None,
) -> bytes:
    blocks = [] if blocks is None else blocks
    storage.read_range(
        store.url,
        ByteRange(start, length, len(CONTENT)),
        block_size=BLOCK,
        etag=etag,
        deadline=Deadline(timeout_s),
        on_etag=lambda etag: None,
        on_block=lambda block: blocks.append(bytes(block)),
    )
    return b"".join(blocks)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LATE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("start", "length"),
    [(0, 1), (0, BLOCK), (0, len(CONTENT)), (BLOCK, BLOCK + 1), (len(CONTENT) - 1, 1)],
)
@pytest.mark.parametrize("fault", [None, ignore_range])
def test_range_is_handed_out_in_blocks_whether_or_not_the_store_knows_ranges(
    storage: Storage, store: FaultyStore, start: int, length: int, fault: Fault | None
) -> None:
    store.faults = [fault]
    blocks: list[bytes] = []

    assert read(storage, store, start, length, blocks=blocks) == CONTENT[start : start + length]

    assert all(len(block) == BLOCK for block in blocks[:-1])


def test_request_carries_no_token_and_asks_for_no_compression(
    storage: Storage, store: FaultyStore
) -> None:
    read(storage, store)

    assert "Authorization" not in store.requests[0]
    assert store.requests[0]["Accept-Encoding"] == "identity"


def test_connection_is_kept(storage: Storage, store: FaultyStore) -> None:
    for _ in range(5):
        read(storage, store, 0, BLOCK)

    assert len(store.connections) == 1


def test_idle_connections_are_no_more_than_allowed(store: FaultyStore) -> None:
    storage = Storage(connections=Connections(max_idle=4))
    gate = threading.Barrier(12)

    def together(handler: Handler) -> None:
        gate.wait(LATE_S)
        handler.serve()

    store.faults = [together] * 12

    with ThreadPoolExecutor(12) as pool:
        for done in [pool.submit(read, storage, store, 0, 10) for _ in range(12)]:
            assert done.result(LATE_S) == CONTENT[:10]

    wait_until(lambda: store.open_connections == 4)
    storage.close()
    wait_until(lambda: store.open_connections == 0)


@pytest.mark.parametrize("hang_up", [hang_up, reset])
def test_after_a_lost_connection_none_is_used_that_was_kept(
    storage: Storage, store: FaultyStore, hang_up: Fault
) -> None:
    gate = threading.Barrier(3)

    def together(handler: Handler) -> None:
        gate.wait(LATE_S)
        handler.serve()

    store.faults = [together] * 3
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: read(storage, store, 0, 10), range(3)))
    store.faults = [hang_up]

    with pytest.raises(Unreachable):
        read(storage, store, 0, 10)
    assert read(storage, store, 0, 10) == CONTENT[:10]

    assert len(store.connections) == 4


def test_store_that_says_when_to_come_again_is_understood(
    storage: Storage, store: FaultyStore
) -> None:
    store.faults = [refuse(503, "SlowDown", {"Retry-After": "7"})]

    with pytest.raises(Busy, match="503 SlowDown") as refusal:
        read(storage, store, 0, 10)

    assert refusal.value.retry_after_s == 7


@pytest.mark.parametrize("chunked", [False, True])
def test_body_that_trickles_ends_at_the_deadline(
    storage: Storage, store: FaultyStore, chunked: bool
) -> None:
    store.faults = [trickle(0.05, chunked=chunked)] * 2

    began = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        read(storage, store, 0, BLOCK, timeout_s=0.5)
    with pytest.raises(DeadlineExceeded):
        storage.read_object(store.url, Deadline(0.5))

    assert time.monotonic() - began < SOON_S


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_store_that_speaks_tls(certificates: Certificates) -> None:
    storage = Storage(Trust(ca_file=certificates.authority))
    with faulty_store(CONTENT, certificates) as store:
        for _ in range(3):
            assert read(storage, store, 5, 3000) == CONTENT[5:3005]
        assert len(store.connections) == 1
        store.faults = [cut_after(BLOCK + 1), trickle(0.05, chunked=False)]
        blocks: list[bytes] = []

        with pytest.raises(Unreachable):
            read(storage, store, blocks=blocks)
        assert b"".join(blocks) == CONTENT[:BLOCK]
        with pytest.raises(DeadlineExceeded):
            read(storage, store, 0, BLOCK, timeout_s=0.5)
    storage.close()


def test_chunked_answer_is_read(storage: Storage, store: FaultyStore) -> None:
    store.faults = [trickle(0, chunked=True)]

    assert read(storage, store, 0, 300) == CONTENT[:300]


def wrong_total(handler: Handler) -> None:
    handler.answer(206, CONTENT[:BLOCK], {"Content-Range": f"bytes 0-{BLOCK - 1}/5"})


def wrong_place(handler: Handler) -> None:
    headers = {"Content-Range": f"bytes 1-{BLOCK}/{len(CONTENT)}"}
    handler.answer(206, CONTENT[1 : BLOCK + 1], headers)


def no_content_range(handler: Handler) -> None:
    handler.answer(206, CONTENT[:BLOCK])


def other_size(handler: Handler) -> None:
    handler.answer(200, CONTENT + b"more")


def compressed(handler: Handler) -> None:
    headers = {"Content-Encoding": "gzip", "Content-Range": f"bytes 0-999/{len(CONTENT)}"}
    handler.answer(206, CONTENT[:BLOCK], headers)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (wrong_total, Garbled),
        (wrong_place, Garbled),
        (no_content_range, Garbled),
        (other_size, Garbled),
        (compressed, Garbled),
        (cut_after(10), Unreachable),
        (refuse(403, "AccessDenied"), StorageRefused),
        (refuse(403, "RequestTimeTooSkewed"), StorageRefused),
        (refuse(400, "ExpiredToken"), StorageRefused),
        (refuse(404, "NoSuchKey"), NotStored),
        (refuse(410, "Gone"), NotStored),
        (lambda handler: handler.answer(404, b"<html>not here"), NotTheServer),
        (refuse(416, "InvalidRange"), IntegrityError),
        (refuse(500, "InternalError"), Busy),
        (refuse(503, "SlowDown"), Busy),
        (refuse(302, "Moved", {"Location": "http://u:secret@127.0.0.1:1/#secret"}), NotTheServer),
    ],
)
def test_wrong_answer_is_an_error_without_the_signature(
    storage: Storage, store: FaultyStore, fault: Fault, error: type[DserverfsError]
) -> None:
    store.faults = [fault]

    with pytest.raises(error) as refusal:
        read(storage, store, 0, BLOCK)

    assert type(refusal.value) is error
    assert "secret" not in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert read(storage, store, 0, BLOCK) == CONTENT[:BLOCK]


def test_blocks_before_a_cut_are_good(storage: Storage, store: FaultyStore) -> None:
    store.faults = [cut_after(2 * BLOCK + 500)]
    blocks: list[bytes] = []

    with pytest.raises(Unreachable):
        read(storage, store, blocks=blocks)

    assert b"".join(blocks) == CONTENT[: 2 * BLOCK]


def test_another_object_is_noticed_by_its_etag(storage: Storage, store: FaultyStore) -> None:
    assert read(storage, store, 0, 10, etag='"one"') == CONTENT[:10]
    store.etag = '"two"'

    with pytest.raises(IntegrityError):
        read(storage, store, 0, 10, etag='"one"')


def test_stalled_store_is_given_up(storage: Storage, store: FaultyStore) -> None:
    store.faults = [stall_fault]

    with pytest.raises(Stalled):
        storage.read_object(store.url, Deadline(20, stall_s=0.2))


def test_store_that_is_not_there_is_unreachable(storage: Storage) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1") as refusal:
        storage.read_object("http://127.0.0.1:1/b/k?X-Amz-Signature=secret", Deadline(LATE_S))
    assert type(refusal.value) is NotConnected


def test_small_object_is_read_whole(storage: Storage, store: FaultyStore) -> None:
    assert storage.read_object(store.url, Deadline(LATE_S)) == CONTENT


def test_truncated_object_is_an_error(storage: Storage, store: FaultyStore) -> None:
    store.faults = [lambda handler: handler.answer(200, b"half", promised=8)]

    with pytest.raises(Unreachable):
        storage.read_object(store.url, Deadline(LATE_S))
