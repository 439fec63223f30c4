"""What is kept of items and datasets is kept under names that no two of them share."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dserverfs.base.items import content_key, item_key
from dserverfs.base.limits import MAX_COMPONENT_BYTES
from dserverfs.base.model import UUID, DserverURI, Identifier
from dserverfs.reading.item_files import directory_of

UUIDS = [UUID(f"0000000{n}-2222-3333-4444-555555555555") for n in range(2)]
# Whatever could be taken for a part of something else.
parts = st.lists(st.sampled_from(["a", "b", "=", "%3D", "%", ":", "0", *UUIDS]), min_size=1).map(
    "".join
)
base_uris = st.lists(parts, min_size=2, max_size=4).map(lambda p: f"s3://{'/'.join(p)}")
datasets = st.builds(
    DserverURI, st.sampled_from(["h", "h:1", "h2"]), base_uris, st.sampled_from(UUIDS)
)
texts = st.text(st.sampled_from("ab/=%:\0 é\ud800"), max_size=8)
items = st.tuples(datasets, texts.map(Identifier), texts)


@given(items, items)
def test_items_of_equal_keys_are_equal(
    one: tuple[DserverURI, Identifier, str], other: tuple[DserverURI, Identifier, str]
) -> None:
    assert (item_key(*one) == item_key(*other)) == (one == other)


@given(items)
def test_key_of_an_item_is_none_of_a_content(item: tuple[DserverURI, Identifier, str]) -> None:
    assert not item_key(*item).startswith(content_key("", "", 0)[0])


@given(datasets, datasets)
def test_datasets_of_equal_directories_are_equal(one: DserverURI, other: DserverURI) -> None:
    cache = Path("/cache")

    assert (directory_of(cache, one) == directory_of(cache, other)) == (one == other)
    # Right below: never a directory of another name, nor what an earlier version had there.
    assert directory_of(cache, one).parent == cache / "dserver"
    assert directory_of(cache, one).name not in (*UUIDS, "..", ".")


@pytest.mark.parametrize("prefix", ["p" * 100, "p" * 300, "ü" * 100])
def test_directory_of_a_long_base_uri_can_be_made(tmp_path: Path, prefix: str) -> None:
    directory = directory_of(tmp_path, DserverURI("h", f"s3://b/{prefix}/{prefix}", UUIDS[0]))

    directory.mkdir(parents=True)

    assert len(directory.name.encode()) <= MAX_COMPONENT_BYTES
