"""Datasets and items as objects: what they say, how they are found, and what they refuse."""

from __future__ import annotations

import datetime
import hashlib
import os
import pickle
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

import dserverfs
from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import identifier_of
from tests.support.dtool_datasets import content_of
from tests.support.programs import Programs

pytest_plugins = ["tests.support.program_fixtures"]

CONTENTS = {
    "table.csv": b"a,b\n1,2\n",
    "sub/deep/[1] % ? #.bin": content_of("python-datasets", 2 * BLOCK_SIZE + 3),
    "sub/\u00e4 b.txt": "\u00fc".encode(),
    "empty": b"",
}


@pytest.fixture(scope="module")
def dataset(programs: Programs, tmp_path_factory: pytest.TempPathFactory) -> dserverfs.Dataset:
    source = tmp_path_factory.mktemp("source") / "file"
    source.write_bytes(CONTENTS["table.csv"])
    os.utime(source, (10**9, 10**9))
    with dserverfs.create(programs.base, "python-datasets") as new:
        new.put("table.csv", source)
        for relpath, content in CONTENTS.items():
            if relpath != "table.csv":
                new.put(relpath, content)
        new.set_readme("description: <b>made</b> by a test\n")
        new.tag("b", "a")
        new.annotate("about", {"n": [1, None]})
    return dserverfs.open(f"{programs.base}/python-datasets")


def test_dataset_says_what_was_put_into_it(dataset: dserverfs.Dataset, programs: Programs) -> None:
    assert dataset.name == "python-datasets"
    assert dataset.uri == f"{programs.base}/{dataset.uuid}"
    assert dataset.base_uri.startswith("s3://")
    assert dataset.tags == ("a", "b")
    assert dataset.annotations == {"about": {"n": [1, None]}}
    assert dataset.overlays == {}
    assert dataset.readme == "description: <b>made</b> by a test\n"
    assert dataset.number_of_items == len(CONTENTS)
    assert dataset.size == dataset.known_size == sum(map(len, CONTENTS.values()))
    now = datetime.datetime.now(datetime.timezone.utc)
    assert datetime.timedelta(0) <= now - dataset.frozen_at < datetime.timedelta(minutes=10)
    assert dataset.created_at <= dataset.frozen_at
    assert dataset.creator


def test_items_are_a_mapping_of_what_there_is(dataset: dserverfs.Dataset) -> None:
    assert {*dataset.items} == {*CONTENTS}
    assert len(dataset.items) == len(CONTENTS)
    assert dict(dataset.items.items()) == {key: dataset[key] for key in CONTENTS}
    assert {item.relpath: item.read_bytes() for item in dataset.items.values()} == CONTENTS
    assert "empty" in dataset.items
    for absent in ("sub", "nope", "", "sub/", "table.csv/x", "../table.csv", 5):
        assert absent not in dataset.items
    with pytest.raises(KeyError):
        dataset["sub"]


@pytest.mark.parametrize("relpath", CONTENTS)
def test_item_says_what_the_manifest_does(dataset: dserverfs.Dataset, relpath: str) -> None:
    item = dataset[relpath]

    assert (item.relpath, item.size) == (relpath, len(CONTENTS[relpath]))
    assert item.identifier == identifier_of(relpath)
    assert item.hash == hashlib.md5(CONTENTS[relpath]).hexdigest()
    assert item.overlays == {}
    if relpath == "table.csv":
        assert item.modified_at.timestamp() == 10**9
    assert item.path.read_bytes() == CONTENTS[relpath]
    assert item.path.suffix == Path(relpath).suffix
    assert Path(item).read_bytes() == CONTENTS[relpath]


@pytest.mark.parametrize(
    "uri_of",
    [
        lambda programs, dataset: dataset.uri,
        lambda programs, dataset: f"{programs.base}/{dataset.name}",
        lambda programs, dataset: f"{programs.base}/{dataset.uuid.upper()}/",
        lambda programs, dataset: f"dserver://{programs.host}/{dataset.uuid}",
    ],
)
def test_every_uri_of_a_dataset_opens_it(
    dataset: dserverfs.Dataset,
    programs: Programs,
    uri_of: Callable[[Programs, dserverfs.Dataset], str],
) -> None:
    assert dserverfs.open(uri_of(programs, dataset)) == dataset


def test_what_cannot_be_opened_is_told(programs: Programs) -> None:
    absent = str(uuid.uuid4())
    for uri, error, text in (
        (f"{programs.base}/{absent}", dserverfs.NotFound, "no such dataset"),
        (f"{programs.base}/nobody-has-this", dserverfs.NotFound, "no dataset named"),
        (f"dserver://{programs.host}/{absent}", dserverfs.NotFound, absent),
        (programs.base, dserverfs.UsageError, "names no dataset"),
        (f"dserver://{programs.host}", dserverfs.UsageError, "names no dataset"),
        ("s3://bucket/x", dserverfs.UsageError, "not a dserver URI"),
        (f"dserver://{programs.host}/s3/not-ours/{absent}", dserverfs.PermissionDenied, "search"),
    ):
        with pytest.raises(error, match=text) as failure:
            dserverfs.open(uri)
        assert "\n" not in str(failure.value)
    with pytest.raises(dserverfs.UsageError, match="off, complete, strict"):
        dserverfs.open(f"{programs.base}/{absent}", verify="maybe")


def test_objects_go_to_other_processes(dataset: dserverfs.Dataset) -> None:
    item = dataset["sub/deep/[1] % ? #.bin"]
    assert pickle.loads(pickle.dumps(dataset)) == dataset  # noqa: S301 - our own
    assert hash(pickle.loads(pickle.dumps(item))) == hash(item)  # noqa: S301

    with item.open() as file:
        file.seek(3)
        sent = pickle.dumps((item, file))
    code = "import pickle, sys; item, file = pickle.load(sys.stdin.buffer);"
    code += "sys.stdout.buffer.write(item.read_bytes()[:3] + file.read(2))"
    other = subprocess.run(
        [sys.executable, "-c", code], input=sent, capture_output=True, timeout=60, check=True
    )
    assert other.stdout == CONTENTS[item.relpath][:5]


def test_notebook_shows_everything_escaped(dataset: dserverfs.Dataset) -> None:
    shown = dataset._repr_html_()

    assert "&lt;b&gt;made&lt;/b&gt; by a test" in shown
    for text in ("python-datasets", dataset.uri, "a, b", "table.csv", "8 B", "2.0 MiB"):
        assert text in shown
    assert "<b>made" not in shown
