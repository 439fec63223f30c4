"""`.find`: searches are directories of links that lead to datasets in the mount."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from dserverfs.base.errors import (
    Frozen,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unreachable,
    UsageError,
)
from dserverfs.base.model import UUID, DserverURI
from dserverfs.catalogue.catalogue import FRESH_S
from dserverfs.catalogue.refreshed import loaded
from dserverfs.tree import searches
from dserverfs.tree.attributes import LINK_MODE, Changes
from dserverfs.tree.filesystem import FileSystem
from dserverfs.tree.mount_tree import ROOT, Inode, Tree
from dserverfs.tree.refusals import Invalid
from tests.support.editing import Bench
from tests.support.file_system_calls import (
    ENTRIES_AT_A_TIME,
    THREAD,
    FileSystemCalls,
    finish,
)
from tests.support.quirky_server import BASE_URI, CONTENTS, QuirkyServer, says
from tests.support.servers import new_uuid

pytest_plugins = ["tests.support.resolver_fixtures", "tests.support.edit_fixtures"]

OTHER = "s3://other/deep"
# Until a name that is missing is asked for again, also of a server that takes a while.
RENEWED_S = FRESH_S / 2


class Mount:
    """The file system of a mount, as a kernel asks it."""

    def __init__(self, bench: Bench, base_uri: str | None = BASE_URI) -> None:
        self.tree = Tree(DserverURI("server", base_uri), bench.catalogue, 7)
        freezer: Any = None  # nothing is made here
        self.fs = FileSystem(self.tree, freezer, lambda size: False)
        self.told: list[Inode] = []

    def inode(self, path: str) -> Inode:
        inode = ROOT
        for name in filter(None, path.split("/")):
            inode = Inode(loaded(partial(self.fs.lookup, inode, name.encode(), THREAD)).number)
            self.told.append(inode)
        return inode

    def list(self, path: str) -> list[str]:
        inode = self.inode(path)
        directory = loaded(lambda: self.fs.opendir(inode))
        found = []
        for entry in loaded(lambda: list(directory.behind(0))):
            self.told.append(Inode(entry.attributes.number))
            found.append(entry.name)
        return found

    def leads_to(self, path: str) -> Inode:
        """Follow a link as a kernel does; return what it leads to."""
        target = self.fs.readlink(self.inode(path)).decode()
        return self.inode(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))

    def forget(self) -> None:
        """Forget all that was looked up."""
        for inode in self.told:
            self.fs.forget(inode, 1)
        self.told = []


@pytest.fixture
def mount(bench: Bench) -> Mount:
    return Mount(bench)


@pytest.fixture
def whole(bench: Bench, quirky: QuirkyServer) -> Mount:
    quirky.permissions.append(OTHER)
    return Mount(bench, None)


def add(quirky: QuirkyServer, name: str, *, base_uri: str = BASE_URI, **others: Any) -> str:
    """Make a dataset; return its uuid."""
    uuid = others.pop("uuid", None) or new_uuid()
    others.setdefault("frozen_at", 1_700_000_001.0 + len(quirky.entries))
    if base_uri == BASE_URI:
        quirky.add(uuid, CONTENTS, name=name, **others)
        return str(uuid)
    uri = f"{BASE_URI}/{uuid}"
    before = quirky.described.get(uri)
    quirky.add(uuid, CONTENTS, name=name, **others)
    elsewhere = f"{base_uri}/{uuid}"
    quirky.entries[-1].update(uri=elsewhere, base_uri=base_uri)
    quirky.described[elsewhere] = quirky.described.pop(uri)
    if before is not None:
        quirky.described[uri] = before
    return str(uuid)


SEARCHES: dict[str, tuple[str, dict[str, Any]]] = {
    "a tag": (".find/tag/blue", {"tags": ["blue", "other"]}),
    "a tag with a slash": (".find/tag/a%2Fb", {"tags": ["a/b"]}),
    "a tag that does not print": (".find/tag/a\x1b[1m", {"tags": ["a\x1b[1m"]}),
    "a tag with a percent sign": (".find/tag/5%25", {"tags": ["5%"]}),
    "a tag longer than a name": (f".find/tag/{'x' * 300}", {"tags": ["x" * 300]}),
    "a creator": (".find/creator/Dr%2E ü", {"creator_username": "Dr. ü"}),
    "words": (".find/text/nothing zebrafish", {"readme": b"on zebrafish"}),
    "a phrase": ('.find/text/"light sheet"', {"readme": b"a light sheet"}),
}


@pytest.mark.parametrize("has_search", [True, False])
@pytest.mark.parametrize("what", SEARCHES)
def test_search_is_a_directory_of_links_that_lead_to_datasets(
    mount: Mount, quirky: QuirkyServer, what: str, has_search: bool
) -> None:
    if has_search:
        quirky.versions["dserver_search_plugin_mongo"] = None
    path, others = SEARCHES[what]
    add(quirky, "unlike")
    for name in ("first", "second"):
        add(quirky, name, **others)

    assert mount.list(path) == ["first", "second"]
    assert mount.list(path.rpartition("/")[0]) == []
    for name in ("first", "second"):
        attributes = mount.fs.getattr(mount.inode(f"{path}/{name}"))
        assert attributes.permissions == LINK_MODE
        assert attributes.size_in_bytes == len(mount.fs.readlink(Inode(attributes.number)))
        assert mount.leads_to(f"{path}/{name}") == mount.inode(name)


def test_uuid_is_a_link(mount: Mount, quirky: QuirkyServer) -> None:
    uuid = add(quirky, "by-uuid")

    assert mount.leads_to(f".find/uuid/{uuid}") == mount.inode("by-uuid")
    for name in (new_uuid(), uuid.upper(), "by-uuid"):
        with pytest.raises(NotFound):
            mount.inode(f".find/uuid/{name}")


def test_top_lists_the_kinds_and_no_listing_shows_it(mount: Mount, whole: Mount) -> None:
    for each in (mount, whole):
        assert each.list(".find") == list(searches.KINDS)
        assert ".find" not in each.list("")
        for path in (".find/nothing", ".find/tag/%00", ".find/tag/%FF"):
            with pytest.raises(NotFound):
                each.inode(path)
        for path in (".find", ".find/uuid", ".find/tag/tag"):
            attributes = each.fs.getattr(each.inode(path))
            assert (attributes.is_directory, attributes.permissions) == (True, 0o555)
        assert each.inode(".find/tag/tag") != each.inode(".find/tag")
    with pytest.raises(NotFound):
        whole.inode("s3/bucket/.find")


def test_many_links_are_listed_some_at_a_time(mount: Mount, quirky: QuirkyServer) -> None:
    names = [f"many-{number}" for number in range(3 * ENTRIES_AT_A_TIME + 1)]
    for name in names:
        add(quirky, name, tags=["t"])

    assert FileSystemCalls(mount.fs, ROOT).listdir("/.find/tag/t") == names


def test_nothing_found_is_an_empty_directory(mount: Mount) -> None:
    assert mount.list(".find/tag/nobodys") == []
    with pytest.raises(NotFound):
        mount.inode(".find/tag/nobodys/one")


@pytest.mark.parametrize("name", [".find", ".dserverfs"])
def test_dataset_that_is_called_so_is_shown_under_another_name(
    mount: Mount, quirky: QuirkyServer, name: str
) -> None:
    uuid = add(quirky, name, tags=["so"])

    assert mount.list(".find/tag/so") == [f"{name}~{uuid[:8]}"]
    assert mount.leads_to(f".find/tag/so/{name}~{uuid[:8]}") == mount.inode(f"{name}~{uuid[:8]}")


# Names


def test_links_to_datasets_of_one_name_have_names_of_their_own_that_stay(
    whole: Mount, quirky: QuirkyServer, bench: Bench
) -> None:
    uuid = add(quirky, "one", tags=["t"], frozen_at=1.0)
    add(quirky, "one", base_uri=OTHER, uuid=uuid, tags=["t", "other"], frozen_at=2.0)
    third = add(quirky, "one", base_uri=OTHER, tags=["t", "other"], frozen_at=3.0)
    add(quirky, "x" * 255, tags=["t"], frozen_at=4.0)
    longest = add(quirky, "x" * 255, base_uri=OTHER, tags=["t"], frozen_at=5.0)
    shown = {
        "one": "s3/bucket/one",
        f"one~{uuid[:8]}": "s3/other/deep/one",
        f"one~{third[:8]}": f"s3/other/deep/one~{third[:8]}",
        "x" * 255: f"s3/bucket/{'x' * 255}",
        f"{longest}~2": f"s3/other/deep/{'x' * 255}",
    }

    assert whole.list(".find/tag/t") == list(shown)
    for name, path in shown.items():
        assert whole.leads_to(f".find/tag/t/{name}") == whole.inode(path)
    assert whole.list(".find/tag/other") == [f"one~{uuid[:8]}", f"one~{third[:8]}"]
    with pytest.raises(UsageError, match="s3/bucket/one, s3/other/deep/one"):
        whole.inode(f".find/uuid/{uuid}")


def test_search_of_a_mount_finds_what_the_mount_shows(
    mount: Mount, whole: Mount, quirky: QuirkyServer
) -> None:
    add(quirky, "elsewhere", base_uri=OTHER, tags=["t"])

    assert mount.list(".find/tag/t") == []
    assert whole.list(".find/tag/t") == ["elsewhere"]


# Freshness


def test_what_is_found_is_renewed_and_a_new_name_asked_for_at_once(
    mount: Mount, quirky: QuirkyServer, bench: Bench
) -> None:
    assert mount.list(".find/creator/grumpy") == ["a-dataset"]
    add(quirky, "later")

    assert mount.list(".find/creator/grumpy") == ["a-dataset"]
    bench.ahead_s += RENEWED_S
    assert mount.leads_to(".find/creator/grumpy/later") == mount.inode("later")
    add(quirky, "last")
    bench.ahead_s += 5 * FRESH_S
    assert mount.list(".find/creator/grumpy") == ["a-dataset", "later", "last"]


def test_uuid_that_was_not_there_is_asked_for_again(
    mount: Mount, quirky: QuirkyServer, bench: Bench
) -> None:
    uuid = new_uuid()
    for _ in range(3):
        with pytest.raises(NotFound):
            mount.inode(f".find/uuid/{uuid}")
    assert quirky.asked("GET /uuids/") == 2 + 1  # in both spellings; and for the bench
    add(quirky, "new", uuid=uuid)
    bench.ahead_s += RENEWED_S

    assert mount.leads_to(f".find/uuid/{uuid}") == mount.inode("new")


@pytest.mark.parametrize("change", ["made", "changed"])
def test_own_dataset_and_own_change_are_found_at_once(
    mount: Mount, quirky: QuirkyServer, bench: Bench, change: str
) -> None:
    mount.list("")
    assert mount.list(".find/tag/t") == []
    if change == "made":
        uuid = add(quirky, "own", tags=["t"])
        made = DserverURI("server", BASE_URI, UUID(uuid))
        bench.catalogue.learn(bench.catalogue.dataset(made), UUID(uuid))
    else:
        quirky.described[bench.dataset.uri]["tags"] = ["t"]
        bench.catalogue.forget(bench.dataset)

    assert mount.list(".find/tag/t") == ["own" if change == "made" else "a-dataset"]


@pytest.mark.parametrize("was_listed", [True, False])
def test_what_a_search_finds_and_no_listing_has_is_left_out(
    mount: Mount, quirky: QuirkyServer, bench: Bench, was_listed: bool
) -> None:
    quirky.versions["dserver_search_plugin_mongo"] = None
    add(quirky, "ghost", tags=["t"])
    add(quirky, "there", tags=["t"])
    found = quirky.entries[-2:]
    if was_listed:
        mount.list("")
    del quirky.entries[-2]
    bench.ahead_s += 5 * FRESH_S
    mount.list("")
    mount.list(".find/tag/nobodys")
    before = quirky.asked("POST /uris")
    quirky.faults = [None, says(200, found, X_Pagination='{"total": 2}')]

    assert mount.list(".find/tag/t") == ["there"]
    assert mount.list(".find/tag/t") == ["there"]
    assert quirky.asked("POST /uris") == before + 2  # the listing was fetched once

    add(quirky, "fresh", tags=["t"], frozen_at=1_800_000_000.0)
    found.append(quirky.entries[-1])
    quirky.faults = [None, says(200, found, X_Pagination='{"total": 3}')]
    bench.ahead_s += RENEWED_S
    assert mount.leads_to(".find/tag/t/fresh") == mount.inode("fresh")
    assert mount.list(".find/tag/t") == ["there", "fresh"]


@pytest.mark.parametrize(
    "fault", [says(503), says(404), says(200, {}), says(401, {"msg": "Token has expired"})]
)
@pytest.mark.parametrize("route", ["POST /uris", "GET /me"])
def test_trouble_is_an_error_and_no_empty_directory(
    no_waits: None, mount: Mount, quirky: QuirkyServer, bench: Bench, route: str, fault: Any
) -> None:
    uuid = add(quirky, "kept", tags=["t"])
    assert mount.list(".find/tag/t") == ["kept"]
    quirky.broken[route] = fault

    for path in (".find/tag/other", ".find/text/word", ".find/creator/grumpy"):
        with pytest.raises((Unreachable, ProtocolError, PermissionDenied)):
            mount.list(path)
        with pytest.raises((Unreachable, ProtocolError, PermissionDenied)):
            mount.inode(f"{path}/kept")
    if route == "GET /me":
        with pytest.raises((Unreachable, ProtocolError, PermissionDenied)):
            mount.inode(f".find/uuid/{uuid}")
    bench.ahead_s += 5 * FRESH_S
    assert mount.list(".find/tag/t") == ["kept"]  # as it was, while it cannot be renewed


# What is kept, and numbers


def test_number_stays_while_the_kernel_knows_it_and_is_not_given_again(
    mount: Mount, quirky: QuirkyServer
) -> None:
    add(quirky, "one", tags=["t"])
    paths = (".find", ".find/tag", ".find/tag/t", ".find/tag/t/one")
    known = [mount.inode(path) for path in paths]
    assert len({*known, ROOT}) == 5
    assert [mount.inode(path) for path in paths] == known

    mount.forget()

    for inode in known:
        mount.fs.forget(inode, 1)  # once too often
        with pytest.raises(NotFound):
            mount.fs.getattr(inode)
    assert not {mount.inode(path) for path in paths} & {*known}
    assert mount.list(".find/tag/t") == ["one"]


class Kept:
    """Tells which searches a mount has kept: those for which it does not ask."""

    def __init__(self, mount: Mount, quirky: QuirkyServer) -> None:
        quirky.versions["dserver_search_plugin_mongo"] = None
        self._mount = mount
        self._quirky = quirky

    def look(self, *tags: str) -> list[str]:
        """Search for tags; return those that were not kept."""
        asked = []
        for tag in tags:
            before = self._quirky.asked("POST /uris")
            self._mount.list(f".find/tag/{tag}")
            self._mount.forget()
            if self._quirky.asked("POST /uris") > before:
                asked.append(tag)
        return asked


def test_of_many_searches_the_last_used_ones_are_kept(
    mount: Mount, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MAX_SEARCHES", 5)
    kept, tags = Kept(mount, quirky), [str(number) for number in range(20)]

    assert kept.look(*tags) == tags
    assert kept.look(*tags[15:]) == []
    assert kept.look("15", "new", "15", "17") == ["new"]
    assert kept.look("16") == ["16"]


def test_of_many_links_those_of_the_last_used_searches_are_kept(
    mount: Mount, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MAX_LINKS", 9)
    for number in range(4):
        add(quirky, f"large-{number}", tags=["p", "q", "r"])
    kept = Kept(mount, quirky)
    mount.list("")

    assert kept.look("p", "q", "r") == ["p", "q", "r"]
    assert kept.look("q", "r") == []
    assert kept.look("p") == ["p"]
    monkeypatch.setattr(searches, "MAX_LINKS", 3)
    assert kept.look("q", "q", "q", "p") == ["q", "p"]


def test_searches_that_fail_are_not_kept_for_ever(
    mount: Mount, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searches, "MAX_SEARCHES", 5)
    mount.inode(".find/tag")
    quirky.broken["GET /me"] = says(404)
    for number in range(20):
        with pytest.raises(ProtocolError):
            mount.list(f".find/tag/{number}")

    assert len(mount.tree._searches._searches) == 5


def test_nothing_is_kept_of_what_the_kernel_does_not_know(mount: Mount) -> None:
    directory = mount.inode(".find/tag")
    for number in range(20):
        mount.tree.lookup(directory, f"untold-{number}")
        mount.list(f".find/tag/{number}")

    mount.forget()

    assert mount.tree._searches._nodes == {}
    assert mount.tree._searches._by_path == {}


def test_large_results_are_kept_for_the_last_search_alone(
    mount: Mount, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    quirky.versions["dserver_search_plugin_mongo"] = None
    monkeypatch.setattr(searches, "MAX_LINKS", 6)
    for number in range(4):
        add(quirky, f"large-{number}", tags=["p", "q"])
    for tag in ("p", "q", "q"):
        assert len(mount.list(f".find/tag/{tag}")) == 4
    before = quirky.asked("POST /uris")

    mount.list(".find/tag/q")
    assert quirky.asked("POST /uris") == before
    mount.list(".find/tag/p")
    assert quirky.asked("POST /uris") == before + 1


# Nothing can be changed

CHANGES: dict[str, Callable[[FileSystem, Inode, Inode], Any]] = {
    "mkdir": lambda fs, directory, link: fs.mkdir(directory, b"new", 0o755, THREAD),
    "create": lambda fs, directory, link: fs.create(directory, b"new", 0o644, os.O_RDWR, THREAD),
    "mknod": lambda fs, directory, link: fs.mknod(directory, b"new", 0o100644, THREAD),
    "symlink": lambda fs, directory, link: fs.symlink(directory, b"new", b"target", THREAD),
    "link": lambda fs, directory, link: fs.link(link, directory, b"new", THREAD),
    "unlink": lambda fs, directory, link: fs.unlink(directory, b"one", THREAD),
    "rmdir": lambda fs, directory, link: fs.rmdir(directory, b"one", THREAD),
    "rename": lambda fs, directory, link: fs.rename(directory, b"one", directory, b"n", 0, THREAD),
    "chmod": lambda fs, directory, link: fs.setattr(directory, Changes(mode=0), None, THREAD),
    "touch": lambda fs, directory, link: fs.setattr(link, Changes(mtime_ns=0), None, THREAD),
    "rmdir of the top": lambda fs, directory, link: fs.rmdir(ROOT, b".find", THREAD),
    "rename of the top": lambda fs, directory, link: fs.rename(
        ROOT, b".find", ROOT, b"new", 0, THREAD
    ),
}


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("directory", [".find", ".find/tag", ".find/tag/t"])
def test_nothing_can_be_changed(
    mount: Mount, quirky: QuirkyServer, directory: str, what: str
) -> None:
    add(quirky, "one", tags=["t"])
    link = mount.inode(".find/tag/t/one")

    with pytest.raises(Frozen):
        finish(CHANGES[what](mount.fs, mount.inode(directory), link))
    assert mount.list(".find/tag/t") == ["one"]


def test_only_links_are_read_as_links(mount: Mount) -> None:
    for path in (".find", ".find/tag", ".find/tag/t", ""):
        with pytest.raises(Invalid):
            mount.fs.readlink(mount.inode(path))
