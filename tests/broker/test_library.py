"""dtoolcore's own Python API on dserver:// URIs, as scripts and pipelines use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dtoolcore
import pytest

from tests.support.dtool_commands import Dtool, dtool_of
from tests.support.servers import ServerHandle

CREATE = """
import dtoolcore, json, pathlib, sys
base = sys.argv[1]
pathlib.Path("numbers.csv").write_text("1,2\\n")
with dtoolcore.DataSetCreator("raw", base, readme_content="---\\nkind: raw\\n") as creator:
    creator.put_item("numbers.csv", "table/ünïcödé numbers.csv")
    creator.add_item_metadata("table/ünïcödé numbers.csv", "rows", 1)
    with open(creator.prepare_staging_abspath_promise("promised.txt"), "w") as file:
        file.write("kept")
    creator.add_item_metadata("promised.txt", "rows", 0)
    creator.put_tag("fresh")
    creator.put_annotation("run", {"number": 7})
print(json.dumps(creator.uri))
"""

DERIVE = """
import dtoolcore, json, sys
base, uri = sys.argv[1:]
source = dtoolcore.DataSet.from_uri(uri)
with dtoolcore.DerivedDataSetCreator("derived", base, source) as creator:
    with open(creator.prepare_staging_abspath_promise("sum.txt"), "w") as file:
        file.write("3")
derived = dtoolcore.DataSet.from_uri(creator.uri)
print(json.dumps([creator.uri, derived.get_annotation("source_dataset_uri")]))
"""

READ = """
import dtoolcore, json, sys
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
print(json.dumps({
    "items": {
        dataset.item_properties(i)["relpath"]: open(dataset.item_content_abspath(i)).read()
        for i in dataset.identifiers
    },
    "rows": dataset.get_overlay("rows") if "rows" in dataset.list_overlay_names() else None,
    "tags": dataset.list_tags(),
    "run": dataset.get_annotation("run") if "run" in dataset.list_annotation_names() else None,
    "readme": dataset.get_readme_content(),
}))
"""

ANSWERS = """
import dtoolcore, json, pathlib, sys
base, local = sys.argv[1:]

def failing(act, *arguments):
    try:
        act(*arguments)
    except Exception as error:
        return type(error).__name__
    return None

said = {}
pathlib.Path("one.txt").write_text("Hello\\n")
proto = dtoolcore.create_proto_dataset("first-name", base)
proto.update_name("second-name")
proto.put_item("one.txt", "dir/one.txt")
proto.put_item("one.txt", "another one")
proto.add_item_metadata("dir/one.txt", "key", {"sub": "value"})
proto.add_item_metadata("another one", "key", 7)
broker = proto._storage_broker
said["metadata"] = broker.get_item_metadata("dir/one.txt")
said["handles"] = sorted(broker.iter_item_handles())
manifest = proto.generate_manifest()
said["manifest"] = [manifest["hash_function"], sorted(
    (item["relpath"], item["size_in_bytes"], item["hash"]) for item in manifest["items"].values()
)]
said["no annotation"] = failing(proto.get_annotation, "stars")
proto.put_annotation("stars", 1)
proto.put_annotation("colour", "red")
if hasattr(proto, "delete_annotation"):  # from dtoolcore 3.19 on
    proto.delete_annotation("stars")
proto.put_tag("kept")
proto.put_tag("gone")
proto.delete_tag("gone")
said["proto is no dataset"] = failing(dtoolcore.DataSet.from_uri, proto.uri)
proto.freeze()
said["dataset is no proto"] = failing(dtoolcore.ProtoDataSet.from_uri, proto.uri)
dataset = dtoolcore.DataSet.from_uri(proto.uri)
said["name"] = dataset.name
said["annotations"] = {n: dataset.get_annotation(n) for n in dataset.list_annotation_names()}
said["tags"] = dataset.list_tags()
said["overlays"] = dataset.list_overlay_names()
for name in ("with space", "with,comma", "with/slash", "x" * 81):
    said[f"annotation {name}"] = failing(dataset.put_annotation, name, "bad")
    said[f"overlay {name}"] = failing(dataset.put_overlay, name, {})
    said[f"tag {name}"] = failing(dataset.put_tag, name)
    said[f"name {name}"] = failing(dataset.update_name, name)
said["no overlay"] = failing(dataset.get_overlay, "nothing")
said["overlay of others' items"] = failing(dataset.put_overlay, "other", {"nothing": 1})
said["tag that is no text"] = failing(dataset.put_tag, 7)
said["delete what is not there"] = [
    failing(dataset.delete_tag, "never-there"),
    failing(dataset.delete_tag, "never there"),
    failing(lambda: dataset.delete_annotation("never-there")),
    failing(lambda: dataset.delete_annotation("never there")),
]
copied = dtoolcore.DataSet.from_uri(dtoolcore.copy(dataset.uri, local))
said["copy"] = [copied.uuid == dataset.uuid, copied.list_tags(), copied.get_annotation("colour")]
said["resumed frozen"] = failing(dtoolcore.copy_resume, copied.uri, base)
print(json.dumps(said))
"""

FAIL = """
import dtoolcore, sys
try:
    with dtoolcore.DataSetCreator("broken", sys.argv[1]) as creator:
        raise RuntimeError("the script failed")
except RuntimeError:
    print("null")
"""

LIST = """
import dtoolcore, json, sys
print(json.dumps(sorted(
    [dataset.name, type(dataset).__name__]
    for dataset in dtoolcore.iter_datasets_in_base_uri(sys.argv[1])
)))
"""

LIST_PROTO = """
import dtoolcore, json, sys
print(json.dumps(sorted(
    dataset.name for dataset in dtoolcore.iter_proto_datasets_in_base_uri(sys.argv[1])
)))
"""


# What a listing says of each, and whether its version was asked for; then all of it.
LIST_ADMIN = """
import dtoolcore, json, sys
asked = []
from dserverfs.broker.frozen import FrozenDataset
find = FrozenDataset._dtoolcore_version
FrozenDataset._dtoolcore_version = lambda self: asked.append(1) or find(self)
datasets = list(dtoolcore.iter_datasets_in_base_uri(sys.argv[1]))
cheap = [(dataset.name, dataset.uuid) for dataset in datasets], len(asked)
whole = [json.loads(json.dumps(dataset._admin_metadata)) for dataset in datasets]
print(json.dumps([cheap, whole, len(asked)]))
"""

# A second proto dataset of one uuid: what is raised, as whom.
CREATE_TWICE = """
import dtoolcore, json, sys
from dtoolcore.storagebroker import StorageBrokerOSError
admin = dtoolcore.generate_admin_metadata("twice", creator_username="tester")
first = dtoolcore.generate_proto_dataset(admin, sys.argv[1])
first.create()
try:
    dtoolcore.generate_proto_dataset(dict(admin), sys.argv[1]).create()
except StorageBrokerOSError as error:
    print(json.dumps([first.uri, str(error)]))
"""


# A README that another process replaces after this one has read it.
READ_AND_REPLACE = """
import dtoolcore, json, subprocess, sys
dataset = dtoolcore.DataSet.from_uri(sys.argv[1])
said = [dataset.get_readme_content()]
write = "import dtoolcore, sys; dtoolcore.DataSet.from_uri(sys.argv[1]).put_readme('theirs: 1')"
subprocess.run([sys.executable, "-c", write, sys.argv[1]], check=True)
try:
    dataset.put_readme("ours: 1")
except Exception as error:
    said.append(str(error))
said.append(dataset.get_readme_content())
for text in ("merged: 1", "merged: 2"):
    dataset.put_readme(text)
said.append(dataset.get_readme_content())
print(json.dumps(said))
"""


@pytest.fixture
def dtool(tmp_path: Path, token: str) -> Dtool:
    return dtool_of(tmp_path, token)


@pytest.fixture
def base(server: ServerHandle) -> str:
    """A base URI with nothing in it yet."""
    base_uri = server.add_base_uri(search=[server.username], register=[server.username])
    return f"{server.base_uri.rpartition('/')[0]}/{base_uri.partition('://')[2]}"


def script(dtool: Dtool, code: str, *arguments: str) -> Any:
    """Run a Python program as the user; return what it printed as JSON."""
    return json.loads(dtool.program(code, *arguments))


def test_a_creator_makes_a_frozen_dataset_with_everything_it_was_given(
    dtool: Dtool, base: str
) -> None:
    uri = script(dtool, CREATE, base)

    found = script(dtool, READ, uri)

    assert found["items"] == {"table/ünïcödé numbers.csv": "1,2\n", "promised.txt": "kept"}
    assert sorted(found["rows"].values()) == [0, 1]
    assert found["tags"] == ["fresh"]
    assert found["run"] == {"number": 7}
    assert "kind: raw" in found["readme"]


def test_a_derived_dataset_says_what_it_comes_from(dtool: Dtool, base: str) -> None:
    source = script(dtool, CREATE, base)

    uri, says = script(dtool, DERIVE, base, source)

    assert says == source
    assert script(dtool, READ, uri)["items"] == {"sum.txt": "3"}


def test_datasets_of_a_base_uri_are_iterated_and_broken_ones_stay_proto(
    dtool: Dtool, base: str
) -> None:
    script(dtool, CREATE, base)
    script(dtool, FAIL, base)

    assert script(dtool, LIST, base) == [["raw", "DataSet"]]
    assert script(dtool, LIST_PROTO, base) == ["broken"]


def test_admin_metadata_of_iterated_datasets_is_whole_and_costs_nothing_unseen(
    dtool: Dtool, base: str
) -> None:
    uri = script(dtool, CREATE, base)
    script(dtool, CREATE, base)

    (named, asked_then), all_of_it, asked_at_the_end = script(dtool, LIST_ADMIN, base)

    assert asked_then == 0
    assert asked_at_the_end == len(all_of_it) == len(named) == 2
    admin = next(each for each in all_of_it if each["uuid"] == uri.rpartition("/")[2])
    assert admin["dtoolcore_version"] == dtoolcore.__version__
    assert admin.keys() == {
        *("uuid", "name", "type", "creator_username", "created_at", "frozen_at"),
        "dtoolcore_version",
    }


def test_dtoolcore_gets_the_answers_that_a_dataset_on_a_disk_gives(
    dtool: Dtool, base: str, tmp_path: Path
) -> None:
    for directory in ("disk", "copies of disk", "copies of server"):
        (tmp_path / directory).mkdir()

    on_disk = script(dtool, ANSWERS, f"{tmp_path}/disk", f"{tmp_path}/copies of disk")
    on_server = script(dtool, ANSWERS, base, f"{tmp_path}/copies of server")

    assert on_server == on_disk
    assert on_disk["manifest"][0] == "md5sum_hexdigest"
    assert on_disk["annotation x" + "x" * 80] == "DtoolCoreInvalidNameError"


def test_dataset_that_is_there_cannot_be_made_as_dtoolcore_says_it(dtool: Dtool, base: str) -> None:
    uri, said = script(dtool, CREATE_TWICE, base)

    assert said == f"{uri}: exists already"


def test_readme_that_somebody_else_replaced_since_it_was_read_is_not_overwritten(
    dtool: Dtool, base: str
) -> None:
    before, refused, now, after = script(dtool, READ_AND_REPLACE, script(dtool, CREATE, base))

    assert "kind: raw" in before
    assert "was changed by somebody else since it was read here" in refused
    assert (now, after) == ("theirs: 1", "merged: 2")
