"""A dataset is what its whole URI names: its uuid alone is that of every copy as well.

Two base URIs of one server and one of another have datasets of one uuid with different
content; whatever is done to one of them is done to that one.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dserverfs
from dserverfs.base.errors import UsageError
from dserverfs.base.model import DserverURI, identifier_of
from dserverfs.broker.session import Session
from dserverfs.settings import Settings
from dserverfs.writing.staging.area import Staging
from tests.support.accounts import Account
from tests.support.dtool_commands import Dtool, dtool_of
from tests.support.mounts import mounted
from tests.support.patience import LATE_S
from tests.support.rewritten_files import wait_for
from tests.support.servers import ServerHandle, running_server
from tests.support.staged_datasets import freeze, status
from tests.support.twin_datasets import MTIME_S, NAME, SIZES, UUID, Twin, make_twins

# Within one base URI, and what is asked for by uuid alone.
BY_UUID = {
    "names.py": ["dict[UUID, str]"],
    "session.py": ["dict[UUID, str]"],
}

READ = """
import dtoolcore, json, pathlib, sys
def read(uri):
    dataset = dtoolcore.DataSet.from_uri(uri)
    return {
        "items": {
            dataset.item_properties(i)["relpath"]: dataset.item_content_abspath(i)
            for i in dataset.identifiers
        },
        "readme": dataset.get_readme_content(),
        "tags": sorted(dataset.list_tags()),
        "name": dataset.name,
    }
uris = sys.argv[1:]
for uri in [*reversed(uris), *uris]:
    found = read(uri)
    print(json.dumps([uri, found]))
for number, uri in enumerate(uris):
    dataset = dtoolcore.DataSet.from_uri(uri)
    dataset.put_readme(f"by dtool: {number}")
    dataset.put_tag(f"by-dtool-{number}")
for uri in uris:
    dataset = dtoolcore.DataSet.from_uri(uri)
    print(json.dumps([uri, {"readme": dataset.get_readme_content(), "tags": dataset.list_tags()}]))
"""


@pytest.fixture(scope="module")
def stoppable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server of this module's own; the last test stops it."""
    with running_server(tmp_path_factory.mktemp("served") / "data") as handle:
        yield handle


@pytest.fixture(scope="module")
def twins(
    server: ServerHandle, stoppable: ServerHandle, tmp_path_factory: pytest.TempPathFactory
) -> list[Twin]:
    """Two on the server of this module, one on the other."""
    places = {
        stoppable.base_uri: stoppable,
        new_base(stoppable): stoppable,
        new_base(server): server,
    }
    return make_twins(tmp_path_factory.mktemp("twins"), places)


@pytest.fixture(scope="module")
def cache(current_user: Account) -> Path:
    return current_user.home / "twins-cache"


@pytest.fixture(scope="module")
def mounts(
    fuse: None, current_user: Account, server: ServerHandle, twins: list[Twin], cache: Path
) -> Iterator[dict[str, Path]]:
    """Mounts of both servers whole, with one cache, by the servers' URLs."""
    options = ("--cache-dir", str(cache), "-o", "xattr", "--freeze-delay", "manual")
    first, last = twins[0].server, twins[-1].server
    with (
        mounted(current_user, whole(first), first.token, *options) as one,
        mounted(current_user, whole(last), last.token, *options) as other,
    ):
        yield {first.url: one, last.url: other}


def whole(server: ServerHandle) -> str:
    return "/".join(server.base_uri.split("/")[:3])


def new_base(server: ServerHandle) -> str:
    backend = server.add_base_uri(search=[server.username], register=[server.username])
    return f"{server.base_uri.rpartition('/')[0]}/{backend.partition('://')[2]}"


def contents_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


# In a mount


@pytest.mark.parametrize("place", [NAME, f".uuid/{UUID}"])
def test_mounts_show_each_as_what_it_is(
    mounts: dict[str, Path], twins: list[Twin], place: str
) -> None:
    directories = {twin.uri: (mounts[twin.server.url] / twin.path).parent / place for twin in twins}
    # What is known of one must not be shown of another, whichever is known first.
    for twin in [*reversed(twins), *twins]:
        directory = directories[twin.uri]
        assert sorted(os.listdir(directory / "data/only")) == [name_of_own(twin)]
        assert contents_below(directory / "data") == twin.contents
        assert (directory / "README.yml").read_text() == twin.readme
        assert sorted(os.listdir(directory / ".dtool/tags")) == [twin.tag, "testing"]
        manifest = json.loads((directory / ".dtool/manifest.json").read_text())
        assert f"only/{name_of_own(twin)}" in {
            item["relpath"] for item in manifest["items"].values()
        }
        assert os.getxattr(directory, "user.dtool.uri").decode() == twin.uri
    here = [directories[twin.uri] for twin in twins if twin.server == twins[0].server]
    assert len({directory.stat().st_ino for directory in here}) == len(here) == 2


def name_of_own(twin: Twin) -> str:
    return next(name.partition("/")[2] for name in twin.contents if name.startswith("only/"))


def test_status_of_a_path_is_of_the_dataset_it_is_in(
    mounts: dict[str, Path], twins: list[Twin], current_user: Account
) -> None:
    for twin in twins:
        item = status(current_user, mounts[twin.server.url] / twin.path / "data/same.bin")

        assert item["uri"] == twin.uri
        assert item["hash"] == hash_of(twin, "same.bin")


def hash_of(twin: Twin, relpath: str) -> Any:
    manifest: Any = twin.asked("manifests")
    return manifest["items"][identifier_of(relpath)]["hash"]


def test_edits_in_a_mount_go_to_the_dataset_they_are_made_in(
    mounts: dict[str, Path], twins: list[Twin]
) -> None:
    for number, twin in enumerate(twins):
        directory = mounts[twin.server.url] / twin.path
        (directory / "README.yml").write_text(f"edited: {number}\n")
        (directory / f".dtool/tags/edited-{number}").touch()
        (directory / ".dtool/annotations/edited.json").write_text(json.dumps(number))
        os.unlink(directory / ".dtool/tags/testing")

    for number, twin in enumerate(twins):
        directory = mounts[twin.server.url] / twin.path
        text, tags = f"edited: {number}\n", sorted([twin.tag, f"edited-{number}"])
        wait_for(partial(seen, twin), Seen(text, tags, number))
        assert (directory / "README.yml").read_text() == text
        assert sorted(os.listdir(directory / ".dtool/tags")) == tags
        assert json.loads((directory / ".dtool/annotations/edited.json").read_text()) == number
    for number, twin in enumerate(twins):  # as the other tests expect them
        directory = mounts[twin.server.url] / twin.path
        (directory / "README.yml").write_text(twin.readme)
        (directory / ".dtool/tags/testing").touch()
        os.unlink(directory / f".dtool/tags/edited-{number}")
        wait_for(partial(seen, twin), Seen(twin.readme, sorted([twin.tag, "testing"]), number))


class Seen(NamedTuple):
    """What a server says of a dataset that can change."""

    readme: str
    tags: list[str]
    edited: int | None  # an annotation


def seen(twin: Twin) -> Seen:
    readme: Any = twin.asked("readmes")
    annotations: Any = twin.asked("annotations")
    return Seen(readme["readme"], tags_of(twin), annotations["annotations"].get("edited"))


def tags_of(twin: Twin) -> list[str]:
    answer: Any = twin.asked("tags")
    return sorted(answer["tags"])


# By URI


def test_warm_and_verify_take_the_dataset_that_the_uri_names(
    current_user: Account, twins: list[Twin], tmp_path: Path
) -> None:
    mine = tmp_path / "warmed"

    for twin in twins:
        env = {"DSERVER_TOKEN": twin.server.token}
        for command in (("warm", "--cache-dir", str(mine)), ("verify",)):
            done = current_user.dserverfs(*command, twin.uri, env=env)
            assert (done.returncode, done.stderr) == (0, ""), done
            assert done.stdout.splitlines()[-1].startswith(f"{len(SIZES) + 1} items, ")
    facts = json.loads(
        current_user.dserverfs("cache", "info", "--json", "--cache-dir", str(mine)).stdout
    )
    # Of none is anything taken for another's: each has all its blocks, compared.
    assert facts["verified_items"] == len(twins) * len(SIZES)
    assert facts["blocks"] == len(twins) * 5


# By dtool


@pytest.fixture
def dtool(twins: list[Twin], tmp_path: Path) -> Dtool:
    """A user with a token for each server."""
    user = dtool_of(tmp_path, "")
    tokens = {f"DSERVER_TOKEN_{twin.uri.split('/')[2]}": twin.server.token for twin in twins}
    kept = {name: value for name, value in user.environment.items() if name != "DSERVER_TOKEN"}
    return user._replace(environment={**kept, **tokens})


def test_brokers_of_one_process_read_and_change_each_as_what_it_is(
    dtool: Dtool, twins: list[Twin]
) -> None:
    output = dtool.program(READ, *(twin.uri for twin in twins))

    said = [json.loads(line) for line in output.splitlines()]
    by_uri = {twin.uri: twin for twin in twins}
    assert len(said) == 3 * len(twins)
    for uri, found in said[: 2 * len(twins)]:
        twin = by_uri[uri]
        assert found["readme"] == twin.readme
        assert found["tags"] == sorted([twin.tag, "testing"])
        items = {name: Path(path).read_bytes() for name, path in found["items"].items()}
        assert items == twin.contents
    for number, (uri, found) in enumerate(said[2 * len(twins) :]):
        assert found["readme"] == f"by dtool: {number}"
        assert f"by-dtool-{number}" in found["tags"]
        assert tags_of(by_uri[uri]) == sorted(found["tags"])


def test_item_files_are_never_another_dataset_s(dtool: Dtool, twins: list[Twin]) -> None:
    identifier = identifier_of("same.bin")
    # Where an earlier version kept it, for every dataset of that uuid.
    old = dtool.home / f"files/dserver/{UUID}/{identifier}.bin"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(SIZES["same.bin"]))
    os.utime(old, (MTIME_S, MTIME_S))
    old.chmod(0o444)
    ours = dtool._replace(
        environment={**dtool.environment, "DTOOL_CACHE_DIRECTORY": str(dtool.home / "files")}
    )

    for twin in twins[:2]:
        path = Path(ours.output("item", "fetch", twin.uri, identifier).strip())

        assert path.read_bytes() == twin.contents["same.bin"]
        assert path.suffix == ".bin"
        assert path.is_relative_to(dtool.home / "files/dserver")


def test_copies_are_of_what_the_uri_names(dtool: Dtool, twins: list[Twin]) -> None:
    first, second, *_ = twins
    third = new_base(first.server)
    dtool.output("cp", "-q", first.uri, dtool.home)

    copied = dtool.output("cp", "-q", second.uri, third).strip()

    assert contents_below(dtool.home / NAME / "data") == first.contents
    assert copied == f"{third}/{UUID}"
    assert dtool.output("verify", "--full", copied) == "All good :)\n"
    shutil.rmtree(dtool.home / NAME)
    dtool.output("cp", "-q", copied, dtool.home)
    assert contents_below(dtool.home / NAME / "data") == second.contents


# Which is meant


def test_uuid_that_several_base_uris_have_is_refused_naming_them(
    current_user: Account, dtool: Dtool, twins: list[Twin], tmp_path: Path
) -> None:
    uris = sorted(twin.uri for twin in twins if twin.server == twins[0].server)
    alone = f"{whole(twins[0].server)}/{UUID}"
    (tmp_path / "mnt").mkdir()

    by_mount = current_user.dserverfs(
        "mount", alone, tmp_path / "mnt", env={"DSERVER_TOKEN": twins[0].server.token}
    )
    by_dtool = dtool.refusal("name", alone)

    assert by_mount.returncode == 1
    for said in (by_mount.stderr, by_dtool):
        assert said.count("dserver://") >= 1 + len(uris)
        assert all(uri in said for uri in uris), said


def test_uuid_alone_is_not_decided_by_what_is_known_so_far(
    twins: list[Twin], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = twins[0]
    settings = Settings({"DSERVER_TOKEN": first.server.token}, {})
    monkeypatch.setenv("HOME", str(tmp_path))
    session = Session(DserverURI.parse(first.uri).server, settings)
    alone = DserverURI.parse(f"{whole(first.server)}/{UUID}")
    try:
        assert session.find(DserverURI.parse(first.uri))
        session.listing(first.backend)

        with pytest.raises(UsageError, match="several base URIs"):
            session.find(alone)
    finally:
        session.close()


def test_staged_dataset_is_not_taken_for_a_frozen_one_of_another_base_uri(
    fuse: None, current_user: Account, twins: list[Twin], tmp_path: Path
) -> None:
    first = twins[0]
    bases = [DserverURI.parse(new_base(first.server)) for _ in range(2)]
    staging = Staging(tmp_path / "staging", bases[0].server).open()
    for base in bases:
        assert base.base_uri is not None
        staged = staging.create(base.base_uri, NAME, "tester", id=UUID, unarmed="by dtool")
        (staged.tree / "draft.txt").write_text(f"staged for {base}")
    staging.close()

    with mounted(
        current_user,
        whole(first.server),
        first.server.token,
        *("--staging-dir", str(tmp_path / "staging"), "--cache-dir", str(tmp_path / "cache")),
        *("--freeze-delay", "manual"),
    ) as path:
        drafts = {base: path.joinpath(*str(base).split("/")[3:], NAME) for base in bases}
        for _ in range(2):
            for base, draft in drafts.items():
                assert (draft / "draft.txt").read_text() == f"staged for {base}"
            assert contents_below(path / first.path / "data") == first.contents
        for base, draft in drafts.items():
            assert freeze(current_user, draft) == f"{base}/{UUID}"
        for base, draft in drafts.items():
            assert contents_below(draft / "data") == {"draft.txt": f"staged for {base}".encode()}
        assert contents_below(path / first.path / "data") == first.contents


# What is kept


def test_nothing_is_kept_by_a_uuid_alone() -> None:
    found = []
    for path in sorted(Path(dserverfs.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            kept = ast.unparse(node) if isinstance(node, ast.Subscript) else ""
            is_by_uuid = re.match(r"\w*(?i:dict|mapping|set)\[\(?(tuple\[)?UUID\b", kept)
            if is_by_uuid and kept not in BY_UUID.get(path.name, []):
                found.append(f"{path.name}: {kept}")

    assert not found


def test_each_is_shown_from_what_is_kept_when_their_server_has_stopped(
    mounts: dict[str, Path],
    current_user: Account,
    stoppable: ServerHandle,
    twins: list[Twin],
    cache: Path,
) -> None:
    own = [twin for twin in twins if twin.server == stoppable]
    shown = [show(mounts[stoppable.url] / twin.path) for twin in own]
    # A new daemon: it knows what is on the disk, and nothing else.
    with (
        mounted(current_user, whole(stoppable), stoppable.token, "--cache-dir", str(cache)) as path,
        ThreadPoolExecutor(len(own)) as pool,  # each question waits for the server for a while
    ):
        stoppable.process.terminate()
        stoppable.process.wait(LATE_S)

        again = list(pool.map(show, [path / twin.path for twin in own]))

    assert again == shown
    assert [each["data"] for each in again] == [twin.contents for twin in own]
    assert shown[0]["tags"] != shown[1]["tags"]
    assert shown[0]["readme"] != shown[1]["readme"]


def show(dataset: Path) -> dict[str, Any]:
    """Return what can be seen of a dataset in a mount."""
    asks: dict[str, Callable[[], Any]] = {
        "data": lambda: contents_below(dataset / "data"),
        "readme": (dataset / "README.yml").read_text,
        "tags": lambda: sorted(os.listdir(dataset / ".dtool/tags")),
    }
    with ThreadPoolExecutor(len(asks)) as pool:
        return dict(zip(asks, pool.map(lambda ask: ask(), asks.values()), strict=True))
