"""How messages call an item, and errors that others have as well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dserverfs.base.errors import DserverfsError, ItemChanged, ProtocolError, Unreachable
from dserverfs.base.items import ItemContent
from dserverfs.base.model import Identifier
from tests.support.reading_world import DATASET

ITEM = ItemContent(
    key="key",
    dataset=DATASET,
    identifier=Identifier("i" * 40),
    size_in_bytes=1,
    hash_function="md5sum_hexdigest",
    hash="0" * 32,
    neighbours=lambda limit: [],
    relpath_of=lambda: "more/data.bin",
)


def test_label_has_what_users_and_stores_know_of_an_item() -> None:
    assert ITEM.label == f"s3://b/u (n): more/data.bin (item {'i' * 40})"


def test_label_does_without_a_path_that_cannot_be_had() -> None:
    def closed() -> str:
        raise ProtocolError("used after it was closed")

    assert replace(ITEM, relpath_of=closed).label == f"s3://b/u (n): an item (item {'i' * 40})"


@pytest.mark.parametrize(
    "error",
    [
        Unreachable("the store does not answer", status=503),
        ProtocolError("what is that", uri="x"),
        ItemChanged("changed", relpath="x"),
    ],
)
def test_error_names_the_item_and_stays_what_it_is(error: DserverfsError) -> None:
    said = str(error)

    named = ITEM.named_in(error)

    assert type(named) is type(error)
    assert str(named) == f"{ITEM.label}: {said}"
    assert (named.status, named.uri) == (error.status, error.uri)
    assert str(error) == said, "others have it as well"
    assert ITEM.named_in(named) is named
