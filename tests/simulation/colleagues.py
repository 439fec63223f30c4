"""What others do to the server meanwhile: colleagues with own datasets, an administrator."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING

from tests.simulation import threads
from tests.simulation.dserver import Upload
from tests.simulation.model import content_of

if TYPE_CHECKING:
    from tests.simulation.world import Run


class Colleague:
    """Registers, copies, renames and deletes datasets, and changes READMEs, at the server."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rng = run.rng
        self._count = itertools.count()

    def run(self, pid: int) -> None:
        while not self._run.is_calm:
            self._run.pause(15.0)
            if self._run.is_calm:
                return
            what = self._rng.choice((self._register, self._register, self._twin, self._write))
            if self._rng.random() < 0.1:
                what = self._rng.choice((self._delete, self._rename))
            what()

    def _register(self, uuid: str | None = None, base_uri: str | None = None) -> None:
        run = self._run
        name = f"c-{next(self._count)}"
        base_uri = base_uri or self._rng.choice(("s3://one", "s3://two"))
        uuid = uuid or run.new_uuid()
        contents = {}
        for number in range(self._rng.randint(1, 8)):
            relpath = f"{self._rng.choice(('', 'sub/', 'sub/deep/'))}x{number}"
            size = self._rng.choice((0, 10, 4_000, 16_384, 33_000, 100_000))
            contents[relpath] = content_of(f"{base_uri} {name} {relpath}", size)
        items = {}
        now_s = run.scheduler.wall_ns() / 1e9
        for relpath, content in contents.items():
            identifier = hashlib.sha1(relpath.encode()).hexdigest()
            items[identifier] = {
                "relpath": relpath,
                "size_in_bytes": len(content),
                "hash": hashlib.md5(content).hexdigest(),
                "utc_timestamp": now_s,
            }
            place = f"{base_uri.partition('://')[2]}/{uuid}"
            run.dserver.objects[f"{place}/data/{identifier}"] = content
        body = {"uuid": uuid, "name": name, "creator_username": "bob", "frozen_at": now_s}
        upload = Upload(f"{base_uri}/{uuid}", base_uri, "bob", now_s, body, items)
        run.dserver.register(upload)
        run.counts["datasets of colleagues"] += 1

    def _twin(self) -> None:
        """Register a dataset with the uuid of one in another base URI, and other content."""
        datasets = sorted(self._run.dserver.datasets)
        if not datasets:
            return
        base_uri, _, uuid = self._rng.choice(datasets).rpartition("/")
        other = "s3://two" if base_uri == "s3://one" else "s3://one"
        uri = f"{other}/{uuid}"
        if uri not in self._run.model.truth and uri not in self._run.dserver.uploads:
            self._register(uuid, other)

    def _write(self) -> None:
        """Add a line to a README."""
        run = self._run
        uris = sorted(run.dserver.datasets)
        if uris:
            dataset = run.dserver.datasets[self._rng.choice(uris)]
            line = f"line of bob {next(self._count)}"
            dataset.readme += f"{line}\n"
            place = dataset.uri.partition("://")[2]
            run.dserver.objects[f"{place}/README.yml"] = dataset.readme.encode()
            run.dserver.changed(dataset, "README.yml", "bob")

    def _delete(self) -> None:
        uris = [uri for uri in sorted(self._run.dserver.datasets) if self._is_bobs(uri)]
        if uris:
            self._run.dserver.delete(self._rng.choice(uris))
            self._run.counts["datasets deleted"] += 1

    def _rename(self) -> None:
        uris = [uri for uri in sorted(self._run.dserver.datasets) if self._is_bobs(uri)]
        if uris:
            dataset = self._run.dserver.datasets[self._rng.choice(uris)]
            dataset.admin["name"] = f"r-{next(self._count)}"
            self._run.dserver.changed(dataset, "name", "bob")

    def _is_bobs(self, uri: str) -> bool:
        creator: str = self._run.dserver.datasets[uri].admin["creator_username"]
        return creator == "bob"


class Administrator:
    """Takes rights away and gives them back, and lets tokens expire."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rng = run.rng

    def run(self, pid: int) -> None:
        run = self._run
        while not run.is_calm:
            run.pause(240.0)
            if run.is_calm:
                return
            base_uri = self._rng.choice(("s3://one", "s3://two"))
            rights = self._rng.choice(("search", "register", "token"))
            run.counts["rights taken away"] += 1
            run.take_right(base_uri, rights)
            threads.sleep(self._rng.uniform(1.0, 120.0))
            run.give_rights()
