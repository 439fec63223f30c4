"""Whether promises were kept, by readers that have nothing in common with dserverfs.

What is frozen is read by boto3, and asked of the server; what is staged by any
program, in the mount.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping

from tests.support.crash_world import World
from tests.support.promises import NEW, Notes, Promised
from tests.support.server_store import StoredItems, storage_of
from tests.support.servers import ServerHandle, encoded
from tests.support.steady_writer import README, contents_of, freeze, write

TAGS = ".dtool/tags/"


class Bucket:
    """The bucket as boto3 has it, and what the server says of it."""

    def __init__(self, server: ServerHandle) -> None:
        self._server = server
        self._storage = storage_of(server)
        self._client = StoredItems.of(server, "none").client

    def get(self, key: str) -> bytes:
        answer = self._client.get_object(Bucket=self._storage.bucket, Key=key)
        content: bytes = answer["Body"].read()
        return content

    def keys(self, prefix: str) -> Iterator[str]:
        pages = self._client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=self._storage.bucket, Prefix=prefix):
            yield from (entry["Key"] for entry in page.get("Contents", []))

    def place(self, one: str) -> str:
        """Return where a dataset is, as dtool-s3 finds it: its registration key names a prefix.

        An upload that was begun before a power cut may have gone on below another.
        """
        prefix = self.get(f"dtool-{one}").decode()
        return f"{prefix}{one}"

    def frozen(self, known: Mapping[str, str]) -> dict[str, str]:
        """Return the uuid of each dataset that is frozen in it, by its name.

        Those that are known are only looked for.
        """
        uuids = {key.removeprefix("dtool-") for key in self.keys("dtool-")}
        lost = set(known.values()) - uuids
        assert not lost, f"frozen, and lost: {[name for name in known if known[name] in lost]}"
        found = dict(known)
        for one in uuids - set(known.values()):
            try:
                admin = json.loads(self.get(f"{self.place(one)}/dtool"))
            except self._client.exceptions.NoSuchKey:
                continue  # an upload that has begun
            assert admin["type"] == "dataset"
            assert admin["name"] not in found, f"{admin['name']} is frozen twice"
            found[admin["name"]] = one
        return found

    def manifest(self, one: str) -> dict[str, tuple[str, str]]:
        """Return relpath and MD5 of each item, as the manifest has it, by its identifier."""
        items = json.loads(self.get(f"{self.place(one)}/manifest.json"))["items"]
        return {key: (item["relpath"], item["hash"]) for key, item in items.items()}

    def require_frozen(self, promised: Promised, one: str) -> None:
        """Require that all of a dataset is registered, and nothing else; its bytes aside."""
        manifest = self.manifest(one)
        promised.require_all(dict(manifest.values()))
        stored = {key.rpartition("/")[2] for key in self.keys(f"{self.place(one)}/data/")}
        assert stored == manifest.keys(), f"{promised.name}: its objects are not its items"
        self._require_texts(promised, one)

    def _require_texts(self, promised: Promised, one: str) -> None:
        uri = encoded(f"s3://{self._storage.bucket}/{one}")
        place = self.place(one)
        if README in promised.tried:
            readme = self.get(f"{place}/{README}").decode()
            promised.require_text(README, readme or None)
            answer = self._server.get(f"/readmes/{uri}").json()
            assert answer["readme"] == readme, "the database differs from the bucket"
        tags = {key.rpartition("/")[2] for key in self.keys(f"{place}/tags/")}
        known = {key for key in promised.tried if key.startswith(TAGS)}
        assert {TAGS + tag for tag in tags} <= known
        for key in known:
            promised.require_text(key, "" if key.removeprefix(TAGS) in tags else None)
        assert set(self._server.get(f"/tags/{uri}").json()["tags"]) == tags

    def require_bytes(self, promised: Promised, one: str) -> int:
        """Require each byte of a dataset; return how many items it has."""
        manifest, place = self.manifest(one), self.place(one)
        for key, (relpath, _) in manifest.items():
            md5 = hashlib.md5(self.get(f"{place}/data/{key}")).hexdigest()
            assert md5 == promised.plan[relpath], f"{promised.name}: {relpath} has other bytes"
        promised.require_all(dict(manifest.values()))
        return len(manifest)


def judge(world: World, notes: Notes) -> int:
    """Require all promises; then make what is left open complete, and freeze it.

    Call when `world` is settled. Returns how many datasets were left open.
    """
    bucket = Bucket(world.server)
    staged = world.staged()
    frozen = bucket.frozen(world.settled)
    left_open = []
    for name, promised in world.promises.datasets.items():
        if name in world.settled:
            continue
        if name in frozen:
            assert name not in staged, f"{name} is frozen, and staged as {staged[name]}"
            continue
        assert not promised.frozen, f"{name}: was frozen, and is not"
        if name in staged:
            promised.require_closed_files(world.seen(promised))
            left_open.append(promised)
        else:
            assert not promised.closed, f"{name}: is neither staged nor frozen"
    _finish(world, left_open, notes)
    frozen = bucket.frozen(world.settled)
    for name in frozen.keys() - world.settled.keys():
        bucket.require_frozen(world.promises.datasets[name], frozen[name])
    left = {one.name for one in left_open} - frozen.keys()
    assert not left, f"cannot be frozen: {left}"
    world.settled.update(frozen)
    return len(left_open)


def _finish(world: World, left_open: list[Promised], notes: Notes) -> None:
    brokers = [one.name for one in left_open if one.facts.get("broker")]
    if brokers:
        with world.broker("finish", *brokers) as broker:
            assert broker.wait(300) == 0, world.log.read_text()
    for promised in left_open:
        if promised.name not in brokers:
            directory = world.mount.path / promised.name
            for half in directory.glob(f"*/*{NEW}"):
                half.unlink()
            contents = contents_of(promised.name, len(promised.plan) - 1)
            write(directory, contents, notes, besides=promised.closed)
            assert freeze(directory, notes), f"{promised.name}: cannot be frozen"
