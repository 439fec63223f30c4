"""Edits of tags, annotations, overlays and names, and servers that cannot or may not take them."""

from __future__ import annotations

import json
import threading

import pytest

from dserverfs.base.errors import (
    CannotHold,
    Frozen,
    NotFound,
    PermissionDenied,
    ProtocolError,
    UsageError,
)
from tests.support.editing import README, WAIT_S, Bench, away, wait_until
from tests.support.quirky_changes import become

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]


# Tags, annotations, overlays, the name


def test_tags_are_put_and_taken(bench: Bench) -> None:
    bench.edits.put_tag(bench.dataset, ".dtool/tags/new")
    assert bench.names(".dtool/tags") == ["a", "b", "new"]

    bench.remove(".dtool/tags/a")

    assert bench.has("tags") == ["b", "new"]
    assert bench.names(".dtool/tags") == ["b", "new"]
    with pytest.raises(NotFound):
        bench.remove(".dtool/tags/a")


def test_tag_is_renamed_and_has_no_content(bench: Bench) -> None:
    bench.rename(".dtool/tags/a", ".dtool/tags/c")
    assert bench.has("tags") == ["b", "c"]

    bench.make(".scratch", b"x")
    with pytest.raises(CannotHold):
        bench.rename(".scratch", ".dtool/tags/d")
    with pytest.raises(Frozen):
        bench.rename(".dtool/tags/b", ".scratch")


@pytest.mark.parametrize("path", [".dtool/tags/a b", ".dtool/annotations/a.b.json"])
def test_name_that_dtool_refuses_is_refused_before_anything_is_written(
    bench: Bench, path: str
) -> None:
    with pytest.raises(UsageError):
        bench.edits.require(bench.dataset, path)


def test_annotation_is_made_changed_and_removed(bench: Bench) -> None:
    bench.make(".dtool/annotations/new.json", b'{"x": [1]}')
    assert bench.has("annotations") == {"n": 5, "new": {"x": [1]}}

    bench.write(".dtool/annotations/n.json", b"6")
    bench.remove(".dtool/annotations/new.json")

    assert bench.has("annotations") == {"n": 6}
    assert bench.names(".dtool/annotations") == ["n.json"]


@pytest.mark.expects_log("is not JSON.*kept in")
def test_annotation_that_is_not_json_is_kept_until_it_is_or_is_discarded(bench: Bench) -> None:
    path = ".dtool/annotations/new.json"
    bench.make(path, b"{")
    assert bench.shows(path) == b"{"
    (unsent,) = bench.edits.unsent()
    assert "not JSON" in str(unsent.note.reason)
    assert unsent.local.read_bytes() == b"{"

    bench.write(path, b"{}")
    assert bench.has("annotations") == {"n": 5, "new": {}}
    assert bench.edits.unsent() == []


@pytest.mark.expects_log("is not JSON.*kept in")
def test_discard_shows_what_the_server_has(bench: Bench) -> None:
    path = ".dtool/annotations/n.json"
    bench.write(path, b"{")

    bench.edits.discard(bench.dataset, path)

    assert bench.shows(path) == b"5"
    assert bench.edits.unsent() == []
    assert bench.local_files() == []
    with pytest.raises(UsageError, match="nothing unsent"):
        bench.edits.discard(bench.dataset, path)


def test_annotation_removed_while_it_is_sent_is_removed(bench: Bench) -> None:
    path = ".dtool/annotations/new.json"
    bench.writes.may_go_on.clear()
    handle = bench.create(path)
    bench.edits.write(handle, b"1", 0)
    bench.edits.release(handle)
    assert bench.writes.reached.wait(WAIT_S)

    removing = threading.Thread(target=bench.remove, args=(path,))
    removing.start()
    bench.writes.may_go_on.set()
    removing.join(WAIT_S)

    assert bench.has("annotations") == {"n": 5}
    assert bench.names(".dtool/annotations") == ["n.json"]


@pytest.mark.parametrize("by", ["making", "renaming"])
@pytest.mark.parametrize("kind", ["annotation", "overlay"])
def test_what_a_colleague_removed_can_be_made_anew(bench: Bench, kind: str, by: str) -> None:
    directory = f".dtool/{kind}s"
    path = f"{directory}/new.json"
    bench.make(path, b"{}")
    getattr(bench.writes, f"delete_{kind}")(bench.dataset, "new")
    bench.ahead_s = 3600.0
    assert "new.json" not in bench.names(directory)

    if by == "making":
        bench.make(path, b"{}")
    else:
        bench.make(f"{path}.tmp", b"{}")
        bench.rename(f"{path}.tmp", path)

    assert bench.has(f"{kind}s")["new"] == {}
    assert bench.local_files() == []


def test_annotation_is_renamed(bench: Bench) -> None:
    bench.rename(".dtool/annotations/n.json", ".dtool/annotations/m.json")

    assert bench.has("annotations") == {"m": 5}


def test_overlay_is_written(bench: Bench) -> None:
    values = {identifier: 7 for identifier in bench.has("overlays")["o"]}

    bench.write(".dtool/overlays/o.json", json.dumps(values).encode())

    assert bench.has("overlays")["o"] == values


def test_dataset_is_renamed_as_dtool_does(bench: Bench) -> None:
    admin = json.loads(bench.shows(".dtool/dtool"))

    bench.write(".dtool/dtool", json.dumps({**admin, "name": "another"}).encode())

    assert bench.quirky.entries[-1]["name"] == "another"


@pytest.mark.expects_log("only the name can be changed")
def test_nothing_else_of_the_administrative_metadata_changes(bench: Bench) -> None:
    admin = json.loads(bench.shows(".dtool/dtool"))

    bench.write(".dtool/dtool", json.dumps({**admin, "uuid": "another"}).encode())

    assert bench.puts("names") == 0
    assert len(bench.edits.unsent()) == 1


# Servers that cannot, may not, are away


def test_without_routes_everything_is_frozen(bench: Bench) -> None:
    become(bench.quirky, "none")

    for path in (README, ".README.yml.swp", ".dtool/tags/x", ".dtool/dtool"):
        with pytest.raises(Frozen, match="no route to change"):
            bench.edits.require(bench.dataset, path)


def test_development_server_changes_neither_overlays_nor_names(bench: Bench) -> None:
    become(bench.quirky, "master")

    bench.write(README, b"new: 1\n")
    for path in (".dtool/overlays/o.json", ".dtool/dtool"):
        with pytest.raises(Frozen, match="no route to change"):
            bench.edits.require(bench.dataset, path)

    assert bench.shows(README) == b"new: 1\n"


def test_without_the_right_to_register_nothing_can_be_changed(bench: Bench) -> None:
    bench.quirky.register = []

    for path in (README, ".README.yml.swp", ".dtool/tags/x"):
        with pytest.raises(PermissionDenied, match="may not register"):
            bench.edits.require(bench.dataset, path)


@pytest.mark.expects_log("could not be sent.*away.*sent when the server takes it")
def test_what_could_not_be_sent_is_shown_and_sent_when_the_server_is_back(
    bench: Bench,
) -> None:
    bench.edits.close()
    bench.mount(retry_s=(0.01, 0.05))
    bench.writes.error = away()
    bench.write(README, b"new: 1\n")
    assert bench.shows(README) == b"new: 1\n"
    (unsent,) = bench.edits.unsent()
    assert (unsent.note.path, unsent.note.reason) == (README, "the server is away")

    bench.writes.error = None

    wait_until(lambda: not bench.edits.unsent())
    assert bench.has("readme") == "new: 1\n"
    assert bench.local_files() == []


@pytest.mark.expects_log("could not be sent")
def test_what_the_server_refused_is_not_sent_again_by_itself(
    bench: Bench,
) -> None:
    bench.edits.close()
    bench.mount(retry_s=(0.01, 0.05))
    bench.writes.error = ProtocolError("no", status=404)

    bench.write(README, b"new: 1\n")

    (file,) = [entry for entry in bench.edits.unsent() if entry.note.path == README]
    assert file.note.reason == "no"
    assert bench.writes.reached.is_set()
    bench.writes.reached.clear()
    assert not bench.writes.reached.wait(0.2)


@pytest.mark.expects_log("could not be sent")
def test_later_change_is_what_is_sent_in_the_end(bench: Bench) -> None:
    bench.writes.error = away()
    bench.write(README, b"first: 1\n")
    bench.writes.error = None

    bench.write(README, b"second: 1\n")

    assert bench.has("readme") == "second: 1\n"
    assert bench.edits.unsent() == []


def test_nothing_half_written_is_sent_while_it_is_written_again(bench: Bench) -> None:
    bench.writes.may_go_on.clear()
    handle = bench.open(README)
    bench.edits.write(handle, b"first: 1\n", 0)
    bench.edits.release(handle)
    assert bench.writes.reached.wait(WAIT_S)
    handle = bench.open(README)
    bench.edits.write(handle, b"sec", 0)
    bench.writes.may_go_on.set()
    wait_until(lambda: bench.has("readme") == "first: 1\n")

    bench.edits.flush(0.1)
    assert bench.shows(README) == b"sec"
    assert bench.has("readme") == "first: 1\n"
    bench.edits.write(handle, b"ond: 1\n", 3)
    bench.edits.release(handle)
    bench.edits.flush(WAIT_S)

    assert bench.has("readme") == "second: 1\n"
