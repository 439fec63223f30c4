"""Manifests and indexes that were damaged on the disk: what is shown is right all the same."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.damage import DAMAGES
from dserverfs.base.model import UUID, Dataset
from dserverfs.base.sealed_files import Sealing, write_seal_beside
from dserverfs.catalogue.manifests import Manifests
from dserverfs.catalogue.offline import KeptAnswers
from dserverfs.catalogue.refreshed import loaded
from dserverfs.remote.api import Resolver
from tests.support.quirky_server import BASE_URI, CONTENTS, OTHERS, QuirkyServer
from tests.support.servers import new_uuid

pytest_plugins = ["tests.support.resolver_fixtures"]


def opened(resolver: Resolver, tmp_path: Path) -> Manifests:
    """Return what a process has on the directory."""
    answers = KeptAnswers(resolver, tmp_path / "kept")
    return Manifests(answers, "server", tmp_path / "kept", explain=lambda dataset, error: error)


@pytest.fixture
def manifests(resolver: Resolver, tmp_path: Path) -> Iterator[Manifests]:
    first = opened(resolver, tmp_path)
    yield first
    first.close()


def content_of_file(manifests: Manifests, dataset: Dataset) -> Any:
    kept = loaded(lambda: manifests.file(dataset))
    return json.loads(kept if isinstance(kept, bytes) else kept.read_bytes())


def damaged(path: Path) -> None:
    """Flip a bit in the middle of a letter or digit, so that JSON stays JSON."""
    content = bytearray(path.read_bytes())
    place = content.index(b"hello.txt")
    content[place] ^= 1
    path.write_bytes(content)


@pytest.fixture
def again(resolver: Resolver, tmp_path: Path) -> Iterator[Manifests]:
    """What the next process on the same directory has."""
    later = opened(resolver, tmp_path)
    yield later
    later.close()


def kept(tmp_path: Path, suffix: str) -> Path:
    (path,) = (tmp_path / "kept").glob(f"*.{suffix}")
    return path


@pytest.mark.expects_log("made anew.*does not have its seal")
def test_flipped_bit_in_an_index_is_found_by_the_next_process(
    quirky: QuirkyServer,
    manifests: Manifests,
    again: Manifests,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    loaded(lambda: manifests.index(dataset))
    damaged(kept(tmp_path, "index"))

    index = loaded(lambda: again.index(dataset))

    assert index.child(0, "hello.txt").size_in_bytes == len(CONTENTS["hello.txt"])
    assert quirky.asked("/manifests/") == 1, "it is made of the manifest that was kept"


def test_answer_that_was_kept_as_a_manifest_and_is_none_is_fetched_anew(
    manifests: Manifests, again: Manifests, dataset: Dataset, tmp_path: Path
) -> None:
    loaded(lambda: manifests.file(dataset))
    path, answer = kept(tmp_path, "json"), b'{"msg": "not now"}'
    sealing = Sealing(path)
    sealing.add(answer)
    write_seal_beside(path, sealing)
    path.write_bytes(answer)

    index = loaded(lambda: again.index(dataset))

    assert index.number_of_items == len(CONTENTS)


@pytest.mark.expects_log("made anew.*does not have its seal")
def test_index_that_is_written_to_while_it_is_open_is_made_anew(
    quirky: QuirkyServer,
    manifests: Manifests,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dserverfs.catalogue.manifests.LOOK_S", 0.0)
    loaded(lambda: manifests.index(dataset))
    damaged(kept(tmp_path, "index"))

    index = loaded(lambda: manifests.index(dataset))

    assert index.child(0, "hello.txt").size_in_bytes == len(CONTENTS["hello.txt"])
    assert quirky.asked("/manifests/") == 1


@pytest.mark.parametrize("suffix", ["json", "json.seal"])
def test_flipped_bit_in_a_manifest_has_it_fetched_anew(
    quirky: QuirkyServer,
    manifests: Manifests,
    again: Manifests,
    dataset: Dataset,
    tmp_path: Path,
    suffix: str,
) -> None:
    sent = content_of_file(manifests, dataset)
    if suffix == "json":
        damaged(kept(tmp_path, suffix))
    else:
        kept(tmp_path, suffix).write_bytes(b"of something else")

    assert content_of_file(again, dataset) == sent
    assert loaded(lambda: again.index(dataset)).child(0, "hello.txt")
    assert quirky.asked("/manifests/") == 2


def test_index_is_not_made_of_a_damaged_manifest(
    quirky: QuirkyServer,
    manifests: Manifests,
    again: Manifests,
    dataset: Dataset,
    tmp_path: Path,
) -> None:
    content_of_file(manifests, dataset)
    damaged(kept(tmp_path, "json"))

    index = loaded(lambda: again.index(dataset))

    assert index.child(0, "hello.txt").size_in_bytes == len(CONTENTS["hello.txt"])


KINDS = ("index", "json", "json.seal")


def same_size(number: int) -> dict[str, bytes]:
    """Return items of a dataset whose files have the size of any other such dataset's."""
    return {f"hello{number}.txt": b"%d" % number, "other.txt": b"other"}


UNSEEN = ("gone", "a_directory", "a_fifo", "a_link")  # as if there were no file
CASES = [
    pytest.param(
        kind,
        name,
        marks=[pytest.mark.expects_log("made anew.*does not have its seal")]
        if kind == "index" and name not in UNSEEN
        else [],
    )
    for kind in KINDS
    for name in DAMAGES
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_any_damage_between_two_runs_changes_nothing_of_what_is_shown(
    quirky: QuirkyServer, resolver: Resolver, tmp_path: Path, kind: str, name: str
) -> None:
    datasets = []
    for number in range(2):
        uuid = new_uuid()
        quirky.add(uuid, same_size(number), b"readme: 1\n", **OTHERS)
        datasets.append(resolver.dataset_by_uuid(UUID(uuid), BASE_URI))

    def shown() -> list[Any]:
        manifests = opened(resolver, tmp_path)
        try:
            return [
                (
                    loaded(lambda: manifests.index(dataset)).rows_from(0, 10),  # noqa: B023
                    content_of_file(manifests, dataset),
                )
                for dataset in datasets
            ]
        finally:
            manifests.close()

    before = shown()
    for seed in range(3):
        files = sorted((tmp_path / "kept").glob(f"*.{kind}"))
        assert len(files) == len(datasets)
        DAMAGES[name](files[0], files[1:], random.Random(f"{kind} {name} {seed}"))

        assert shown() == before

        quirky.requests.clear()
        assert shown() == before
        assert not quirky.asked("/manifests/"), "what is right again is kept"
