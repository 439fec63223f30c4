"""An item as a file: whatever is done with it, it answers as the same bytes in memory would."""

from __future__ import annotations

import io
import os
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dserverfs
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.python import sessions
from dserverfs.python.item_file import ItemFile
from tests.support.programs import Programs
from tests.support.server_store import StoredItems
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.program_fixtures"]

_CHANCE = random.Random(4)
LINES = b"".join(
    b"x" * _CHANCE.choice([0, 1, 50, 8191, 8192, 8193, 20_000]) + b"\n" for _ in range(60)
)
CONTENT = LINES + _CHANCE.randbytes(5 * BLOCK_SIZE + 11 - len(LINES))
PLACES = st.one_of(
    st.integers(0, len(CONTENT) + 3),
    st.sampled_from([n * BLOCK_SIZE + more for n in range(6) for more in (-1, 0, 1)][1:]),
)
SIZES = st.one_of(st.none(), st.just(-1), st.integers(0, 9), st.integers(0, 2 * BLOCK_SIZE))
OPERATIONS = st.one_of(
    st.tuples(st.just("seek"), PLACES),
    st.tuples(st.just("back"), st.integers(0, len(CONTENT))),
    st.tuples(st.just("read"), SIZES),
    st.tuples(st.just("readinto"), st.integers(0, BLOCK_SIZE + 5)),
    st.tuples(st.just("readline"), SIZES),
    st.tuples(st.just("pickle"), st.none()),
)


@pytest.fixture(scope="module")
def dataset(programs: Programs) -> dserverfs.Dataset:
    with dserverfs.create(programs.base, "item-file") as new:
        new.put("item", CONTENT)
        new.put("text", "eins\r\nzwei\n\u00e4\n")
        new.put("empty", b"")
    return dserverfs.open(f"{programs.base}/item-file")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations=st.lists(OPERATIONS, max_size=8))
def test_it_is_a_file_like_any(dataset: dserverfs.Dataset, operations: list[Any]) -> None:
    model = io.BytesIO(CONTENT)
    with dataset["item"].open() as opened:
        file = opened
        for what, value in operations:
            if what == "pickle":
                file = pickled(file)
                continue
            found = [_done(each, what, value) for each in (file, model)]
            assert found[0] == found[1], (what, value)
            assert file.tell() == model.tell()
        assert not file.closed
        file.close()


def pickled(file: ItemFile) -> ItemFile:
    copy: ItemFile = pickle.loads(pickle.dumps(file))  # noqa: S301 - our own
    return copy


def _done(file: Any, what: str, value: Any) -> object:
    if what == "seek":
        return file.seek(value)
    if what == "back":
        return file.seek(-value, io.SEEK_END)
    if what == "readinto":
        buffer = bytearray(value)
        return file.readinto(buffer), bytes(buffer)
    return getattr(file, what)(value)


def test_wrong_uses_are_told(dataset: dserverfs.Dataset) -> None:
    file = dataset["item"].open()

    for offset, whence in ((-1, 0), (-1, 1), (-len(CONTENT) - 1, 2), (0, 7)):
        with pytest.raises(ValueError):  # noqa: PT011 - of io's own
            file.seek(offset, whence)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    with pytest.raises(dserverfs.UsageError, match="mode 'w'"):
        dataset["item"].open("w")  # type: ignore[call-overload]
    file.close()
    for use in (file.read, file.tell, file.readline, lambda: file.seek(0)):
        with pytest.raises(ValueError, match="closed"):
            use()
    assert pickled(file).closed


def test_file_that_was_not_opened_is_closed_without_a_word(dataset: dserverfs.Dataset) -> None:
    begun = []

    class Begun(ItemFile):
        def __init__(self, *arguments: Any) -> None:
            begun.append(self)
            super().__init__(*arguments)

    with dataset["item"].open() as file:
        access, found, *_ = file.__reduce__()[1][0]
    with pytest.raises(FileNotFoundError):
        Begun(access, found, "nope", "nope")

    begun[0].close()  # as Python 3.13 does at its end, which says what went wrong there
    assert begun[0].closed


def test_text_has_lines_as_any_file(dataset: dserverfs.Dataset) -> None:
    with dataset["text"].open("r") as file:
        assert list(file) == ["eins\n", "zwei\n", "\u00e4\n"]
    with dataset["text"].open("rt", encoding="latin-1", newline="") as file:
        assert file.readline() == "eins\r\n"
    assert dataset["text"].read_text() == "eins\r\nzwei\n\u00e4\n"
    assert dataset["empty"].read_bytes() == b""


def test_open_file_goes_on_in_a_forked_process(dataset: dserverfs.Dataset) -> None:
    """Its parent's threads and connections are not there."""
    with dataset["item"].open() as file:
        assert file.read(10) == CONTENT[:10]
        sessions.session_of(dataset._access).client.reader.flush()
        child = os.fork()
        if not child:
            status = 1
            try:
                is_right = file.read(BLOCK_SIZE) == CONTENT[10 : BLOCK_SIZE + 10]
                status = 0 if is_right and dataset["text"].read_text().startswith("eins") else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.read(10) == CONTENT[10:20]


def test_threads_read_one_file_at_many_places(dataset: dserverfs.Dataset) -> None:
    chance = random.Random(9)
    wanted = [(chance.randrange(len(CONTENT)), chance.randrange(1, 200_000)) for _ in range(60)]

    with dataset["item"].open() as file, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda each: file.read_at(*each), wanted))

    assert found == [CONTENT[offset : offset + size] for offset, size in wanted]


def test_session_that_was_closed_meanwhile_is_made_anew(dataset: dserverfs.Dataset) -> None:
    sessions.close_all()

    assert dataset["item"].read_bytes() == CONTENT


@pytest.mark.expects_log("cannot be used as a directory.*; cached in .* by this process alone")
def test_worker_without_a_place_for_the_cache_has_one_of_its_own(
    dataset: dserverfs.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DSERVER_CACHE_DIR", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    sessions.close_all()

    assert dataset["item"].read_bytes() == CONTENT
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir() if path.is_dir()] == [
        "dserverfs"
    ]

    sessions.close_all()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.expects_log("block 1 does not have its hash; fetched once more")
def test_wrong_bytes_are_an_error_for_their_block_and_no_other(
    programs: Programs, server: ServerHandle
) -> None:
    with dserverfs.create(programs.base, "item-file-wrong") as new:
        new.put("item", CONTENT)
    wrong = bytearray(CONTENT)
    wrong[BLOCK_SIZE + 5] ^= 1
    dataset = dserverfs.open(f"{programs.base}/item-file-wrong", cache_dir=str(programs.directory))
    StoredItems.of(server, dataset.uri).put("item", bytes(wrong))

    with dataset["item"].open() as file:
        with pytest.raises(OSError, match="block 1 does not have its hash") as failure:
            file.read()
        file.seek(2 * BLOCK_SIZE)
        assert file.read() == CONTENT[2 * BLOCK_SIZE :]

    assert str(failure.value.filename).endswith("item")
    assert isinstance(failure.value.__cause__, dserverfs.DserverfsError)
