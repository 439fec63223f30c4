"""Which names datasets are shown under, and datasets no upload would let in."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from dserverfs.base.model import UUID, BackendURI, Dataset, identifier_of
from dserverfs.catalogue.names import DatasetNames
from tests.support.accounts import Account
from tests.support.dtool_datasets import make_dataset
from tests.support.hostile_datasets import entry, register
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle, encoded


def dataset(number: int, name: str = "name", frozen_at: float = 0.0) -> Dataset:
    uuid = UUID(f"{number:08d}-2222-3333-4444-555555555555")
    uri = BackendURI(f"s3://b/{uuid}")
    return Dataset(uuid, uri, "s3://b", name, "c", frozen_at, frozen_at, 1, 1)


def test_oldest_of_a_name_keeps_it_and_the_others_have_their_uuid_added() -> None:
    young, old = dataset(1, frozen_at=2.0), dataset(2, frozen_at=1.0)

    assert DatasetNames(frozenset()).bind([young, old]) == {"name": old, "name~00000001": young}


def test_equally_old_ones_are_ordered_by_uuid() -> None:
    first, second = dataset(1), dataset(2)

    assert DatasetNames(frozenset()).bind([second, first]) == {
        "name": first,
        "name~00000002": second,
    }


def test_bound_name_stays_bound_when_older_ones_come_and_others_go() -> None:
    names = DatasetNames(frozenset())
    young, old = dataset(1, frozen_at=2.0), dataset(2, frozen_at=1.0)
    names.bind([young])

    assert names.bind([young, old]) == {"name": young, "name~00000002": old}
    assert names.bind([old]) == {"name~00000002": old}
    assert names.bind([old, young]) == {"name": young, "name~00000002": old}


def test_names_of_directories_are_left_to_them() -> None:
    one = dataset(1, "prefix")

    assert DatasetNames(frozenset({"prefix"})).bind([one]) == {"prefix~00000001": one}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 256])
@pytest.mark.expects_log("cannot be shown")
def test_dataset_whose_name_cannot_be_shown_is_named_by_its_uuid(name: str) -> None:
    one = dataset(1, name)

    assert DatasetNames(frozenset()).bind([one]) == {one.uuid: one}


def test_even_a_name_made_up_to_collide_leaves_every_dataset_visible() -> None:
    datasets = [dataset(1, "n"), dataset(2, "n~00000003"), dataset(3, "n")]

    shown = DatasetNames(frozenset()).bind(datasets)

    assert len(shown) == 3


def test_datasets_of_one_name_are_all_shown(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    directories = []
    for number in range(3):
        parent = tmp_path / str(number)
        parent.mkdir()
        directories.append(make_dataset(parent, "same-name", {"number": b"%d" % number}))
    uris = publish(server.base_uri, token, tmp_path / "cache", *directories)
    uuids = [uri.rpartition("/")[2] for uri in uris]

    with mounted(current_user, server.base_uri, token) as path:
        shown = {name for name in os.listdir(path) if name.startswith("same-name")}

        assert shown == {"same-name", *(f"same-name~{uuid[:8]}" for uuid in uuids[1:])}
        assert (path / "same-name/data/number").read_bytes() == b"0"
        assert (path / f"same-name~{uuids[2][:8]}/data/number").read_bytes() == b"2"


def test_dataset_that_vanishes_is_an_error_and_the_rest_stays(
    fuse: None, current_user: Account, server: ServerHandle, token: str, tmp_path: Path
) -> None:
    register(server, "vanishing", {identifier_of("a"): entry("a")})
    local = make_dataset(tmp_path, "staying", {"hello": b"hello"})
    publish(server.base_uri, token, tmp_path / "cache", local)
    found = json.loads(server.post("/uris?page_size=100", {"free_text": "vanishing"}).text)

    with mounted(current_user, server.base_uri, token) as path:
        assert {"vanishing", "staying"} <= set(os.listdir(path))
        server.request("DELETE", f"/uris/{encoded(found[0]['uri'])}", None).raise_for_status()

        with pytest.raises(FileNotFoundError):
            os.listdir(path / "vanishing/data")
        assert "vanishing" not in os.listdir(path)
        assert (path / "staying/data/hello").read_bytes() == b"hello"
