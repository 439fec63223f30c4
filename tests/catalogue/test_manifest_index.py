"""Manifests as trees: right rows, hostile relpaths, damaged files."""

from __future__ import annotations

import functools
import gc
import json
import os
import resource
import subprocess
import tracemalloc
from pathlib import Path

import pytest

from dserverfs.base import item_stream, limits
from dserverfs.base.errors import NotFound, ProtocolError
from dserverfs.base.model import identifier_of
from dserverfs.catalogue import manifest_indexing
from dserverfs.catalogue.manifest_index import ManifestIndex, Row
from dserverfs.remote import manifest_parsing

ENTRY = {"size_in_bytes": 1, "hash": "00", "utc_timestamp": 0}


def indexed(tmp_path: Path, relpaths: list[str]) -> ManifestIndex:
    items = {
        identifier_of(relpath): {
            "relpath": relpath,
            "size_in_bytes": position,
            "hash": f"{position:032x}",
            "utc_timestamp": 1.5,
        }
        for position, relpath in enumerate(relpaths)
    }
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"items": items, "hash_function": "md5sum_hexdigest"}))
    build_apart(manifest, tmp_path / "index")
    return ManifestIndex(tmp_path / "index").open()


def build_apart(manifest: Path, index_path: Path) -> None:
    with manifest_indexing.Indexing(index_path) as indexing:
        for piece in manifest_indexing.pieces_of(manifest):
            indexing.write(piece)
        indexing.finish()


def walk(index: ManifestIndex, row: Row, path: str = "") -> dict[str, Row]:
    found: dict[str, Row] = {}
    for child in index.children(row, 0, 100_000):
        below = f"{path}{child.name}"
        if child.identifier is None:
            found |= walk(index, child, f"{below}/")
        else:
            found[below] = child
    return found


def test_tree_holds_every_item_where_its_relpath_says(tmp_path: Path) -> None:
    relpaths = ["top", "a/1", "a/2", "a/b/c/deep", "z/ü", "a/b/3", "ü/\n x"]

    index = indexed(tmp_path, relpaths)

    found = walk(index, index.row(0))
    assert set(found) == set(relpaths)
    for position, relpath in enumerate(relpaths):
        row = found[relpath]
        assert row.identifier == identifier_of(relpath)
        assert row.size_in_bytes == position
        assert row.mtime_ns == 1_500_000_000
        assert index.row(row.row) == row
        assert index.child(row.parent, row.name) == row
    assert index.number_of_items == len(relpaths)


def test_children_are_consecutive_and_sorted(tmp_path: Path) -> None:
    index = indexed(tmp_path, [f"d{n % 7}/f{n:03}" for n in range(100)])

    for directory in index.children(index.row(0), 0, 100):
        children = index.children(directory, 0, 1000)
        rows = [child.row for child in children]
        assert rows == list(range(directory.first_child, directory.first_child + len(rows)))
        assert [child.name for child in children] == sorted(child.name for child in children)
        assert index.children(directory, rows[3], 2) == children[3:5]


def test_file_and_directory_at_once_keeps_the_file_and_refuses_the_other(tmp_path: Path) -> None:
    index = indexed(tmp_path, ["a", "a/b", "c"])

    found = walk(index, index.row(0))

    assert set(found) == {"a", "c", f".refused-{identifier_of('a/b')}"}


def test_missing_name_is_not_found_and_a_missing_row_is_damage(tmp_path: Path) -> None:
    index = indexed(tmp_path, ["a"])

    with pytest.raises(NotFound):
        index.child(0, "b")
    with pytest.raises(NotFound):
        index.child(0, "")
    with pytest.raises(ProtocolError, match="damaged"):
        index.row(99)


def test_empty_manifest_is_an_empty_directory(tmp_path: Path) -> None:
    index = indexed(tmp_path, [])

    assert index.children(index.row(0), 0, 10) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"items": 5}', "nope"])
def test_what_is_no_manifest_is_a_protocol_error_and_leaves_nothing(
    tmp_path: Path, text: str
) -> None:
    manifest = tmp_path / "manifest.json"
    manifest.write_text(text)

    with pytest.raises(ProtocolError):
        manifest_indexing.build(manifest_indexing.pieces_of(manifest), tmp_path / "index")

    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_damaged_index_is_an_error_not_an_empty_directory(tmp_path: Path) -> None:
    indexed(tmp_path, [f"f{n}" for n in range(1000)]).close()
    path = tmp_path / "index"
    path.write_bytes(b"\0" * path.stat().st_size)

    with pytest.raises(ProtocolError):
        ManifestIndex(path).open()


def test_large_manifest_is_indexed_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_indexing, "IN_PROCESS_BYTES", 0)
    monkeypatch.setattr(manifest_indexing, "build", None)

    index = indexed(tmp_path, ["a", "b/c"])

    assert set(walk(index, index.row(0))) == {"a", "b/c"}


def test_fault_of_the_indexing_process_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_indexing, "IN_PROCESS_BYTES", 0)
    manifest = tmp_path / "manifest.json"
    manifest.write_text("no JSON")

    with pytest.raises(ProtocolError, match="cannot be read") as refusal:
        build_apart(manifest, tmp_path / "index")
    assert "\n" not in str(refusal.value)


def test_index_does_not_depend_on_where_the_manifest_is_cut(tmp_path: Path) -> None:
    relpaths = [f"d{n % 13}/e{n % 5}/f{n}" for n in range(500)] + ["ü", 'a "},', "d1", "d1/x"]
    indexed(tmp_path, relpaths).close()
    content = (tmp_path / "manifest.json").read_bytes()

    for size in (1, 7, 1000, 10_000):
        pieces = [content[start : start + size] for start in range(0, len(content), size)]
        again = tmp_path / f"{size}" / "index"  # a seal is bound to the name
        again.parent.mkdir()
        manifest_indexing.build(pieces, again)
        assert again.read_bytes() == (tmp_path / "index").read_bytes()


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("keys", [("items", "hash_function"), ("hash_function", "items")])
def test_parts_of_a_manifest_are_the_whole(
    monkeypatch: pytest.MonkeyPatch, indent: int | None, keys: tuple[str, str]
) -> None:
    monkeypatch.setattr(item_stream, "PART_BYTES", 300)
    tricky = {"0" * 40: {"relpath": "x"}, "1" * 40: {"relpath": "y"}}
    items = {
        identifier_of(str(number)): {
            "relpath": f'}}, "{"0" * 40}": {{ {number}',
            "utc_timestamp": 0,
            "extra": tricky,
        }
        for number in range(100)
    }
    manifest = {"items": items, "hash_function": 'the "items": {'}
    content = json.dumps({key: manifest[key] for key in keys}, indent=indent).encode()
    stream = manifest_parsing.ManifestStream()

    found: dict[str, object] = {}
    batches = 0
    for start in range(0, len(content), 100):
        batch = stream.feed(content[start : start + 100])
        assert not batch.keys() & found.keys()
        found.update(batch)
        batches += bool(batch)
    found.update(stream.close())

    assert found == items
    assert stream.hash_function == manifest["hash_function"]
    assert batches > 10


@pytest.mark.parametrize("moment", ["2020-01-02T03:04:05Z", 1577934245, "1577934245.0"])
def test_dates_are_taken_in_every_form_that_servers_send(tmp_path: Path, moment: object) -> None:
    entry = {"relpath": "a", "size_in_bytes": 1, "hash": "AB", "utc_timestamp": moment}
    content = json.dumps({"items": {identifier_of("a"): entry}}).encode()

    manifest_indexing.build([content], tmp_path / "index")

    row = ManifestIndex(tmp_path / "index").open().child(0, "a")
    assert (row.mtime_ns, row.hash) == (1577934245_000_000_000, "ab")


def test_manifest_that_breaks_off_leaves_no_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_indexing, "IN_PROCESS_BYTES", 0)
    content = b'{"items": {"0": {"relpath": "a"'

    with manifest_indexing.Indexing(tmp_path / "i") as indexing:
        indexing.write(content)

    assert list(tmp_path.iterdir()) == []


DEEP = "/".join(["d"] * (limits.MAX_RELPATH_COMPONENTS - 1))


@pytest.mark.parametrize(
    "relpaths",
    [["x/" * 40_000 + "x"], ["a" * 2_000_000], [f"{n}/{DEEP}" for n in range(20)]],
    ids=["deep", "long", "as deep as may be"],
)
def test_relpaths_take_memory_in_proportion(tmp_path: Path, relpaths: list[str]) -> None:
    content = json.dumps({"items": {identifier_of(r): {**ENTRY, "relpath": r} for r in relpaths}})
    pieces = [content.encode()]
    tracemalloc.start()

    manifest_indexing.build(pieces, tmp_path / "index")

    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 40 * 1024**2


def test_small_manifest_of_very_many_directories_is_indexed_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_indexing, "build", None)
    number = manifest_indexing.IN_PROCESS_DIRECTORIES // limits.MAX_RELPATH_COMPONENTS + 1

    index = indexed(tmp_path, [f"{n}/{DEEP}" for n in range(number)])

    assert index.number_of_items == number


def test_indexing_that_needs_too_much_memory_is_a_protocol_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_indexing, "IN_PROCESS_BYTES", 0)
    least = (80 << 20, 80 << 20)
    # The process that indexes is bound by it as it is by its own limit.
    monkeypatch.setattr(
        subprocess,
        "Popen",
        functools.partial(
            subprocess.Popen, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, least)
        ),
    )

    with pytest.raises(ProtocolError, match="bytes of memory"):
        indexed(tmp_path, [f"{n}/{DEEP}" for n in range(1000)])

    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("start", [b'{"items": {"', b'{"items": {', b"[[[", b'"'])
def test_endless_manifest_without_items_is_given_up(start: bytes) -> None:
    stream = manifest_parsing.ManifestStream()
    stream.feed(start)

    with pytest.raises(ProtocolError, match="no item in"):
        stream.feed(b"x" * (item_stream.MAX_PART_BYTES + 1))


@pytest.mark.parametrize("name", [None, 5, ["md5"], "x" * 10_000, "\ud800"])
def test_hash_function_that_is_no_name_is_a_protocol_error(tmp_path: Path, name: object) -> None:
    content = json.dumps({"items": {}, "hash_function": name}).encode()

    with pytest.raises(ProtocolError, match="hash_function"):
        manifest_indexing.build([content], tmp_path / "index")


def test_large_manifest_is_indexed_by_no_module_of_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be that of a dataset that is mounted, or /tmp: `resource.py` there is anybody's."""
    monkeypatch.setattr(manifest_indexing, "IN_PROCESS_BYTES", 0)
    for module in ("resource", "sqlite3", "dserverfs"):
        (tmp_path / f"{module}.py").write_text("open('was-here', 'w')")
    monkeypatch.chdir(tmp_path)

    with manifest_indexing.Indexing(tmp_path / "index") as indexing:
        indexing.write(b'{"items": {}, "hash_function": "x", "dtoolcore_version": "3"}')
        indexing.finish()

    assert not (tmp_path / "was-here").exists()


def test_index_that_nobody_uses_is_closed_at_once(tmp_path: Path) -> None:
    """Also if the garbage is not looked through: indexes are let go while others are opened."""

    def opened() -> int:
        links = Path("/proc/self/fd").iterdir()
        return sum(os.path.realpath(link) == str(tmp_path / "index") for link in links)

    gc.disable()
    try:
        index = indexed(tmp_path, ["a", "b/c"])
        assert index.child(index.row(0).row, "a").size_in_bytes == 0
        assert opened() == 1

        del index

        assert opened() == 0
    finally:
        gc.enable()
