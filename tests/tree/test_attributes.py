"""The order of a file's attributes, on which a listing and the mount's replies rely."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path
from types import SimpleNamespace

from dserverfs.base.model import DserverURI
from dserverfs.catalogue.refreshed import loaded
from dserverfs.mount import replies
from dserverfs.tree.attributes import Attributes
from dserverfs.tree.mount_tree import ROOT, Inode, Tree
from tests.support.kernel_questions import client_for
from tests.support.quirky_server import BASE_URI, TOKEN, quirky_server


def test_each_attribute_is_told_as_what_it_is() -> None:
    attributes = Attributes(
        number=1,
        is_directory=False,
        permissions=0o765,
        size_in_bytes=3,
        mtime_ns=4,
        believed_s=5.0,
        number_of_links=6,
        blocks=7,
        atime_ns=8,
        ctime_ns=9,
    )
    told = SimpleNamespace()

    replies.fill(told, attributes, umask=0o022)

    assert vars(told) == {
        "st_ino": 1,
        "st_mode": stat.S_IFREG | 0o745,
        "st_size": 3,
        "st_mtime_ns": 4,
        "entry_timeout": 5.0,
        "attr_timeout": 5.0,
        "st_nlink": 6,
        "st_blocks": 7,
        "st_atime_ns": 8,
        "st_ctime_ns": 9,
    }


def test_listing_gives_the_attributes_of_a_lookup(tmp_path: Path) -> None:
    contents = {"file": b"content", "empty": b"", "directory/file": b"more"}
    with quirky_server() as server:
        server.add(str(uuid.uuid4()), contents, b"readme: 1\n", name="one")
        uri = DserverURI(server.url.removeprefix("http://"), BASE_URI)
        with client_for(uri, TOKEN, tmp_path) as client:
            tree = Tree(uri, client.catalogue, 0)
            dataset = Inode(loaded(lambda: tree.lookup(ROOT, "one")).number)
            data = Inode(loaded(lambda: tree.lookup(dataset, "data")).number)

            listed = {entry.name: entry.attributes for entry in tree.children(data, 0)}

            assert listed == {name: tree.lookup(data, name) for name in listed}
    assert sorted(listed) == ["directory", "empty", "file"]
