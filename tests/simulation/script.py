"""A script that uses dserverfs as dtool's broker does: makes datasets, and reads whole items.

A process of its own beside the mounts, with the same cache and staging area. When it is
killed, another one is begun and freezes what the first has left.
"""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

from dserverfs.base.errors import DserverfsError
from dserverfs.broker import proto
from dserverfs.catalogue.refreshed import COMMAND
from dserverfs.client import Client
from dserverfs.reading.open_item import OpenItem
from tests.simulation import threads
from tests.simulation.daemon import SERVER, settings_for
from tests.simulation.model import Job, Violation, content_of
from tests.simulation.scheduler import Process

if TYPE_CHECKING:
    from tests.simulation.world import Run


class Script:
    """The program that begins script after script."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rng = run.rng
        self._count = itertools.count()

    def run(self, pid: int) -> None:
        run = self._run
        while not run.is_calm:
            run.pause(20.0)
            if self._rng.random() < 0.5:
                self._in_process("script-read", self._read_items)
            else:
                self._make()

    def _in_process(self, name: str, work: object) -> bool:
        """Run in a process of its own; return whether it came to its end."""
        run = self._run
        process = run.new_process(name)
        done: list[bool] = []

        def begin() -> None:
            done.append(self._with_client(process, work))

        task = run.scheduler.spawn("main", process, begin)
        if self._rng.random() < 0.2:
            run.scheduler.join(task, self._rng.uniform(0.0, 1.0))
            if not task.is_done:
                run.counts["scripts killed"] += 1
                run.kill(process, "killed")
        run.scheduler.join(task)
        run.kill(process, "ended")
        if task.error is not None:
            raise task.error
        return bool(done) and done[0]

    def _with_client(self, process: Process, work: object) -> bool:
        run = self._run
        client = Client(
            SERVER,
            settings_for(run.token),
            cache_directory=run.machine / "cache",
            cache_size=-1,
            staging_directory=run.machine / "staging",
            staleness=COMMAND,
        )
        try:
            with client:
                work(client)  # type: ignore[operator]
        except (DserverfsError, OSError) as error:
            run.counts["scripts that failed"] += 1
            run.last_failure = f"script: {error}"
            return False
        return True

    def _make(self) -> None:
        """Make a dataset, and freeze it, however often that has to be tried."""
        run = self._run
        name = f"s-{next(self._count)}"
        base_uri = self._rng.choice(("s3://one", "s3://two"))
        job = Job(name, base_uri, is_asked_for=True)
        uuid = run.new_uuid()
        contents = {
            f"d{number % 2}/i{number}": content_of(f"{base_uri} {name} {number}", size)
            for number, size in enumerate(
                self._rng.choice((0, 3_000, 16_384, 50_000)) for _ in range(3)
            )
        }

        def make(client: Client) -> None:
            staging = client.staging.open()
            admin = {"name": name, "creator_username": "alice"}
            staged = proto.create(staging, base_uri, uuid, admin)
            run.model.jobs[base_uri, name] = job
            job.is_made = True
            self._freeze(client, proto.ProtoDataset(staged, client), job, contents)

        def again(client: Client) -> None:
            staging = client.staging.open()
            for staged in staging.datasets(base_uri):
                if staged.id == uuid:
                    staged.own()
                    self._freeze(client, proto.ProtoDataset(staged, client), job, contents)

        is_done = self._in_process("script-make", make)
        while not is_done and job.is_made and job.uri is None:
            run.pause(60.0)
            is_done = self._in_process("script-again", again)
        job.is_going_on = False
        if is_done and job.uri is None:
            raise Violation(f"{name}: dtool freeze says it is done, and it is not")

    def _freeze(
        self, client: Client, dataset: proto.ProtoDataset, job: Job, contents: dict[str, bytes]
    ) -> None:
        run = self._run
        try:
            for relpath, content in contents.items():
                if job.files.get(relpath) is None:
                    source = run.machine / f"source-{run.new_uuid()}"
                    job.uncertain(relpath)
                    source.write_bytes(content)
                    dataset.put_item(source, relpath)
                    job.files[relpath] = content
                    os.unlink(source)
            dataset.finish(lambda job, progress: None)
            run.counts["datasets made by scripts"] += 1
        finally:
            dataset.close()

    def _read_items(self, client: Client) -> None:
        run, model = self._run, self._run.model
        uris = sorted(run.dserver.datasets)
        if not uris:
            return
        for uri in [self._rng.choice(uris) for _ in range(3)]:
            base_uri, _, uuid = uri.rpartition("/")
            from dserverfs.base.model import UUID, DserverURI

            dataset = client.catalogue.dataset(DserverURI(SERVER, base_uri, UUID(uuid)))
            found = dict(client.catalogue.contents(dataset))
            if set(found) != set(model.truth[uri]):
                raise Violation(f"{uri}: a script sees the items {sorted(found)}")
            relpath = self._rng.choice(sorted(found)) if found else None
            if relpath is None:
                continue
            item = OpenItem(client.reader, found[relpath])
            try:
                model.require_item(uri, relpath, 0, item.read(0, 1 << 20))
                whole = model.truth[uri][relpath]
                if found[relpath].size_in_bytes != len(whole):
                    raise Violation(f"{uri}: {relpath} has the size {found[relpath].size_in_bytes}")
                run.counts["items read by scripts"] += 1
            finally:
                item.close()
            threads.sleep(0.1)
