"""The programs of the simulation: writers, readers, editors; and who else is in a run.

Each is a loop in a process of its own, for as long as the run is not calm. It tells the
model what it did and was told, and checks at once what can be checked at once.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.simulation import colleagues, script, threads
from tests.simulation.daemon import Died, Failed, Files
from tests.simulation.model import Job, Violation, content_of

if TYPE_CHECKING:
    from tests.simulation.world import Run

Program = Callable[[int], None]

_SIZES = (0, 1, 700, 5_000, 16_384, 16_385, 40_000, 40_001, 70_000)
_DIRECTORIES = ("", "", "a", "a/b")


def cast(run: Run) -> list[tuple[str, Program]]:
    """Return the programs of a run, with their names."""
    return [
        *(("writer", Writer(run, number).run) for number in range(2)),
        *(("reader", Reader(run).run) for _ in range(2)),
        *(("editor", Editor(run, number).run) for number in range(2)),
        ("script", script.Script(run).run),
        ("colleague", colleagues.Colleague(run).run),
        ("administrator", colleagues.Administrator(run).run),
    ]


def top_of(base_uri: str) -> str:
    """Return the directory of a base URI in a mount."""
    return base_uri.replace("://", "/")


class Writer:
    """Writes datasets into a mount, as cp and scripts do, and lets them freeze by themselves."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._rng = run.rng
        self._number = number
        self._versions = itertools.count()

    def run(self, pid: int) -> None:
        for count in itertools.count():
            if self._run.is_calm:
                return
            self._run.pause(4.0)
            self._write_one(pid, f"w{self._number}-{count}")

    def _write_one(self, pid: int, name: str) -> None:
        base_uri = self._rng.choice(("s3://one", "s3://two"))
        job = Job(name, base_uri)
        pid = self._run.begin_program("cp")
        files = self._run.files(pid)
        if files is None:
            self._run.end_program(pid)
            return
        top = f"{top_of(base_uri)}/{name}"
        try:
            files.mkdir(top)
        except Failed:  # perhaps it was made all the same: an empty one is frozen by nobody
            self._run.counts["mkdir refused"] += 1
            self._run.end_program(pid)
            return
        job.is_made = True
        self._run.model.jobs[base_uri, name] = job
        self._fill(job, files, top)
        if job.has_uncertain() and not self._mend(job, pid, top):
            job.is_given_up = True
        job.is_going_on = False
        self._run.end_program(pid)
        if not job.is_given_up:
            self._let_freeze(job, top)

    def _fill(self, job: Job, files: Files, top: str) -> None:
        """Write files, until something fails."""
        made: set[str] = set()
        for number in range(self._rng.randint(1, 6)):
            directory = self._rng.choice(_DIRECTORIES)
            relpath = f"{directory}/f{number}" if directory else f"f{number}"
            try:
                self._make_directories(files, top, directory, made)
                self._write_file(job, files, top, relpath)
                if self._rng.random() < 0.1:
                    self._change_names(job, files, top, relpath)
            except Failed:
                self._run.counts["writes that failed"] += 1
                return
            self._run.pause(0.3)

    def _make_directories(self, files: Files, top: str, directory: str, made: set[str]) -> None:
        path = ""
        for part in directory.split("/") if directory else ():
            path = f"{path}/{part}" if path else part
            if path not in made:
                made.add(path)
                files.mkdir(f"{top}/{path}")

    def _write_file(self, job: Job, files: Files, top: str, relpath: str) -> None:
        version = next(self._versions)
        size = self._rng.choice(_SIZES)
        content = content_of(f"{job.base_uri} {job.name} {relpath} {version}", size)
        job.uncertain(relpath)
        file = files.open(f"{top}/{relpath}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        try:
            is_in_order = self._rng.random() < 0.7
            step = self._rng.choice((4_096, 16_384, 131_072))
            places = list(range(0, size, step))
            if not is_in_order:
                self._rng.shuffle(places)
            for place in places:
                file.write(content[place : place + step], place)
            is_synced = self._rng.random() < 0.3
            if is_synced:
                file.fsync()
        finally:
            file.close()
        job.files[relpath] = content
        if is_synced:
            job.synced[relpath] = content
        self._run.counts["files closed"] += 1

    def _change_names(self, job: Job, files: Files, top: str, relpath: str) -> None:
        content, synced = job.files[relpath], job.synced.get(relpath)
        job.uncertain(relpath)
        if self._rng.random() < 0.5:
            files.unlink(f"{top}/{relpath}")
            job.forget(relpath)
            return
        new = f"renamed-{next(self._versions)}"
        job.uncertain(new)
        files.rename(f"{top}/{relpath}", f"{top}/{new}")
        job.forget(relpath)
        job.files[new] = content
        if synced is not None:
            job.uncertain(relpath)  # after a power cut it may be under either name
            job.files[new] = content

    def _mend(self, job: Job, pid: int, top: str) -> bool:
        """Write again what is uncertain, in another mount; return whether that went well."""
        for _ in range(20):
            self._run.pause(20.0)
            files = self._run.files(pid)
            if files is None:
                continue
            try:
                for relpath in [path for path, content in job.files.items() if content is None]:
                    made: set[str] = set()
                    self._require_directories(files, top, relpath.rpartition("/")[0], made)
                    self._write_file(job, files, top, relpath)
                job.is_asked_for = True
                return True
            except Failed:
                self._run.counts["mending that failed"] += 1
        return False

    def _require_directories(self, files: Files, top: str, path: str, made: set[str]) -> None:
        """Make those that are missing: a power cut may have taken the lower ones alone."""
        while True:
            try:
                self._make_directories(files, top, path, made)
                return
            except Failed as error:
                if error.errno != errno.EEXIST:
                    raise

    def _let_freeze(self, job: Job, top: str) -> None:
        """Wait for it to be frozen by itself; after a while say by command that it is complete."""
        self._run.pause(60.0)
        while job.uri is None:
            pid = self._run.begin_program("dserverfs freeze")
            is_whole = not job.has_uncertain() or self._mend(job, pid, top)
            files = self._run.files(pid)
            if is_whole and files is not None and job.uri is None:
                job.is_asked_for = True
                try:
                    files.freeze(top)
                    if job.uri is None:
                        raise Violation(f"{job.name}: freeze says it is done, and it is not")
                except Failed as error:
                    self._run.counts["freezes that failed"] += 1
                    self._run.last_failure = str(error)
            self._run.end_program(pid)
            threads.sleep(30.0)


class Reader:
    """Lists and reads what it finds, in any order."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rng = run.rng

    def run(self, pid: int) -> None:
        while not self._run.is_calm:
            self._run.pause(2.0)
            files = self._run.files(pid)
            if files is None:
                continue
            try:
                self._read_some(files)
            except Died:
                self._run.counts["reads in a dying mount"] += 1

    def _read_some(self, files: Files) -> None:
        run, model = self._run, self._run.model
        base_uri = self._rng.choice(("s3://one", "s3://two"))
        try:
            names = files.listdir(top_of(base_uri))
        except Died:
            raise
        except Failed:
            run.counts["listings refused"] += 1
            return
        run.counts["listings"] += 1
        frozen = [name for name in names if model.uri_shown_as(base_uri, name) in model.truth]
        if not frozen:
            return
        name = self._rng.choice(sorted(frozen))
        uri = model.uri_shown_as(base_uri, name)
        assert uri is not None
        top = f"{top_of(base_uri)}/{name}"
        for _ in range(self._rng.randint(1, 4)):
            self._read_in(files, uri, f"{top}/data")

    def _read_in(self, files: Files, uri: str, top: str) -> None:
        run, model = self._run, self._run.model
        items = sorted(model.truth[uri])
        try:
            if self._rng.random() < 0.4 or not items:
                directory = self._rng.choice(["", *{p.rpartition("/")[0] for p in items}])
                path = f"{top}/{directory}" if directory else top
                model.require_listing(uri, directory, files.listdir(path))
                run.counts["item listings"] += 1
                return
            relpath = self._rng.choice(items)
            if self._rng.random() < 0.5:
                model.require_item(uri, relpath, 0, files.read(f"{top}/{relpath}"))
                whole = model.truth[uri][relpath]
                run.counts["items read"] += 1
                run.counts["bytes read"] += len(whole)
                return
            self._read_parts(files, uri, top, relpath)
        except Died:
            raise
        except Failed as error:
            run.counts[f"reads refused ({error.errno})"] += 1
            if error.errno == 2 and not run.may_be_missing(uri):
                raise Violation(f"{uri}: ENOENT below {top}, which is there: {error}") from error

    def _read_parts(self, files: Files, uri: str, top: str, relpath: str) -> None:
        run, model = self._run, self._run.model
        size = len(model.truth[uri][relpath])
        file = files.open(f"{top}/{relpath}")
        try:
            for _ in range(self._rng.randint(1, 4)):
                offset = self._rng.randint(0, size)
                data = file.read(offset, self._rng.choice((1, 4096, 20_000)))
                if run.may_be_unverified(uri, relpath):
                    continue
                model.require_item(uri, relpath, offset, data)
                run.counts["parts read"] += 1
        finally:
            file.close()


class Editor:
    """Adds lines to READMEs and tags to datasets, in a mount."""

    def __init__(self, run: Run, number: int) -> None:
        self._run = run
        self._rng = run.rng
        self._number = number
        self._lines = itertools.count()

    def run(self, pid: int) -> None:
        while not self._run.is_calm:
            self._run.pause(6.0)
            files = self._run.files(pid)
            uris = sorted(self._run.dserver.datasets)
            if files is None or not uris:
                continue
            uri = self._rng.choice(uris)
            base_uri = uri.rpartition("/")[0]
            dataset = self._run.dserver.datasets[uri]
            top = f"{top_of(base_uri)}/.uuid/{dataset.admin['uuid']}"
            if uri in self._run.edited:
                continue  # two programs that write one file at once overwrite each other
            self._run.edited.add(uri)
            try:
                if self._rng.random() < 0.6:
                    self._edit_readme(files, uri, top)
                else:
                    self._tag(files, uri, top)
            except Died:
                self._run.counts["edits in a dying mount"] += 1
            except Failed as error:
                self._run.counts[f"edits refused ({error.errno})"] += 1
            finally:
                self._run.edited.discard(uri)

    def _edit_readme(self, files: Files, uri: str, top: str) -> None:
        run = self._run
        before = files.read(f"{top}/README.yml")
        line = f"line {self._number}-{next(self._lines)}"
        after = before + f"{line}\n".encode()
        is_synced = False
        was_unfinished = run.model.texts[uri].may_be_unfinished
        # One whose daemon dies now is shown as it is then by the next, as on a local disk.
        run.model.texts[uri].may_be_unfinished = True
        file = files.open(f"{top}/README.yml", os.O_WRONLY | os.O_TRUNC)
        try:
            file.write(after, 0)
            if self._rng.random() < 0.5:
                file.fsync()
                is_synced = True
        finally:
            file.close()
        run.model.texts[uri].may_be_unfinished = was_unfinished
        if is_synced:
            run.counts["edits synced"] += 1
            text = run.model.texts[uri]
            if line not in text.lines and line not in text.excused and uri in run.dserver.datasets:
                raise Violation(f"{uri}: fsync confirmed {line!r}, the server has {text.lines}")
        else:
            run.counts["edits closed"] += 1
        shown = files.read(f"{top}/README.yml").decode().splitlines()
        text = run.model.texts[uri]
        if line not in shown and line not in text.excused and shown != text.lines:
            raise Violation(f"{uri}: {line!r} was written, the mount shows {shown}")

    def _tag(self, files: Files, uri: str, top: str) -> None:
        run = self._run
        tag = f"tag-{self._number}"
        dataset = run.dserver.datasets[uri]
        if tag in files.listdir(f"{top}/.dtool/tags"):
            files.unlink(f"{top}/.dtool/tags/{tag}")
            is_there = False
        else:
            files.open(f"{top}/.dtool/tags/{tag}", os.O_CREAT | os.O_WRONLY).close()
            is_there = True
        run.counts["tags changed"] += 1
        if (tag in dataset.tags) != is_there and uri in run.dserver.datasets:
            raise Violation(f"{uri}: {tag} was {'set' if is_there else 'removed'}, and is not so")
        names = files.listdir(f"{top}/.dtool/tags")
        if (tag in names) != is_there:
            raise Violation(f"{uri}: {tag} was {'set' if is_there else 'removed'}: {names}")
