"""What must be so: the promises made to the programs, and the truth that readers are shown.

The whole reference of the simulation. A program tells it what it did and what it was told;
the server tells it what was registered and changed. Everything that contradicts a promise
raises Violation at once, and the rest at the end.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tests.simulation.dserver import Dserver, Registered
from tests.support.staged_states import TORN


class Violation(AssertionError):
    """A promise that was not kept."""


def content_of(label: str, size: int) -> bytes:
    """Return bytes that say what they are, and are the same for the same label."""
    head = f"{label}\n".encode()
    return (head + random.Random(label).randbytes(max(0, size - len(head))))[: max(size, 0)]


@dataclass
class Job:
    """A dataset that a program writes into a mount, or makes with the broker."""

    name: str
    base_uri: str
    # By relpath: what a close confirmed; None: uncertain, as after an error.
    files: dict[str, bytes | None] = field(default_factory=dict)
    synced: dict[str, bytes] = field(default_factory=dict)  # what fsync confirmed, too
    removed: set[str] = field(default_factory=set)  # by removal and renaming
    is_made: bool = False  # mkdir was confirmed
    is_going_on: bool = True  # its program runs
    is_asked_for: bool = False  # a person said that it is complete
    is_given_up: bool = False  # its program failed: to be kept, and frozen by nobody
    is_discarded: bool = False
    uri: str | None = None  # once it is registered

    def uncertain(self, relpath: str) -> None:
        """Note that a change of a file failed, or may have: any of it may be there."""
        self.files[relpath] = None
        self.synced.pop(relpath, None)

    def has_uncertain(self) -> bool:
        return None in self.files.values()

    def forget(self, relpath: str) -> None:
        self.files.pop(relpath, None)
        self.synced.pop(relpath, None)
        self.removed.add(relpath)

    def power_cut(self) -> None:
        """Keep the promises of what was synced alone."""
        if self.uri is None:
            self.files = {relpath: self.synced.get(relpath) for relpath in self.files}
            for relpath in self.removed:  # it may be there again
                self.files.setdefault(relpath, None)


@dataclass
class Text:
    """A README on the server: a log to which everybody adds lines."""

    lines: list[str] = field(default_factory=list)
    changed_ns: int = 0
    authors: dict[str, str] = field(default_factory=dict)  # which process sent a line first
    may_be_unfinished: bool = False  # in a mount, since the server's was cut off there
    excused: set[str] = field(default_factory=set)  # lines that may be gone


class Model:
    """The promises of one run."""

    def __init__(self, dserver: Dserver, now_ns: Callable[[], int]) -> None:
        self._dserver = dserver
        self._now_ns = now_ns
        self.jobs: dict[tuple[str, str], Job] = {}  # by base URI and name
        self.truth: dict[str, dict[str, bytes]] = {}  # items by URI, of all ever registered
        self.names: dict[tuple[str, str], str] = {}  # URI by base URI and name
        self.unsteady: set[str] = set()  # URIs that were deleted or renamed
        self.texts: dict[str, Text] = {}  # by URI
        self.compared_ns: dict[tuple[str, str], int] = {}  # by process and URI: last README read
        self.checks = 0

    # What the server tells

    def changed_on_server(self, dataset: Registered, what: str, who: str) -> None:
        if what == "registered":
            self._registered(dataset)
        elif what in ("deleted", "name"):
            self.unsteady.add(dataset.uri)
            if what == "name":
                self.names[dataset.base_uri, dataset.admin["name"]] = dataset.uri
        elif what == "README.yml":
            self._readme_changed(dataset, who)

    def _registered(self, dataset: Registered) -> None:
        uri, name = dataset.uri, dataset.admin["name"]
        place = uri.partition("://")[2]
        items = {}
        for identifier, entry in dataset.manifest["items"].items():
            content = self._dserver.objects[f"{place}/data/{identifier}"]
            if hashlib.md5(content).hexdigest() != entry["hash"]:
                raise Violation(f"{uri}: {entry['relpath']} is registered with another hash")
            items[entry["relpath"]] = content
        if uri in self.truth and self.truth[uri] != items:
            raise Violation(f"{uri}: registered twice, with other items")
        self.truth[uri] = items
        self.names[dataset.base_uri, name] = uri
        lines = dataset.readme.splitlines()
        self.texts[uri] = Text(lines, self._now_ns())
        job = self.jobs.get((dataset.base_uri, name))
        if job is not None:
            self._require_frozen_right(job, uri, items)

    def _require_frozen_right(self, job: Job, uri: str, items: Mapping[str, bytes]) -> None:
        if job.uri is not None:
            raise Violation(f"{job.name}: is frozen twice, as {job.uri} and {uri}")
        if job.is_going_on and not job.is_asked_for:
            raise Violation(f"{job.name}: is frozen while its program runs")
        if job.is_given_up and not job.is_asked_for:
            raise Violation(f"{job.name}: is frozen though its program failed")
        self.require_files(job, items, f"frozen as {uri}", is_exact=True)
        job.uri = uri

    def require_files(
        self, job: Job, found: Mapping[str, bytes], where: str, *, is_exact: bool
    ) -> None:
        """Raise Violation unless all is there that a close confirmed, and nothing else."""
        self.checks += 1
        for relpath, content in job.files.items():
            if content is not None and found.get(relpath) != content:
                there = "not there" if relpath not in found else f"{found[relpath][:60]!r}"
                raise Violation(
                    f"{job.name}/{relpath} ({where}): closed with {content[:60]!r}"
                    f" ({len(content)} bytes), is {there}"
                )
        more = found.keys() - job.files.keys()
        if is_exact and more:
            raise Violation(f"{job.name} ({where}): has {sorted(more)}, which nobody wrote")

    def _readme_changed(self, dataset: Registered, who: str) -> None:
        """Note a README; what others wrote may be lost only if it could not be seen."""
        text = self.texts[dataset.uri]
        lines = dataset.readme.splitlines()
        lost = [
            line
            for line in text.lines
            if line not in lines and line not in text.excused and text.authors.get(line) != who
        ]
        if (
            lost
            and not text.may_be_unfinished
            and self.compared_ns.get((who, dataset.uri), 0) > text.changed_ns
        ):
            raise Violation(
                f"{dataset.uri}: {who} writes over {lost} though it could see them: {lines}"
            )
        text.excused.update(line for line in text.lines if line not in lines)
        for line in lines:
            text.authors.setdefault(line, who)
        text.lines, text.changed_ns = lines, self._now_ns()

    # What readers are shown

    def uri_shown_as(self, base_uri: str, shown: str) -> str | None:
        """Return the dataset that has a name in a listing; None if the model cannot tell."""
        name, _, beginning = shown.partition("~")
        if not beginning:
            return self.names.get((base_uri, name))
        found = [uri for uri in self.truth if uri.startswith(f"{base_uri}/{beginning}")]
        return found[0] if len(found) == 1 else None

    def require_item(self, uri: str, relpath: str, offset: int, data: bytes) -> None:
        """Raise Violation unless these are an item's bytes."""
        self.checks += 1
        expected = self.truth[uri].get(relpath)
        if expected is None:
            raise Violation(f"{uri}: {relpath} was read, and there is no such item")
        wanted = expected[offset : offset + len(data)]
        if data != wanted:
            raise Violation(
                f"{uri}: {relpath} at {offset}: {data[:60]!r} in place of {wanted[:60]!r}"
            )

    def require_listing(self, uri: str, directory: str, names: list[str]) -> None:
        """Raise Violation unless these are the names in a directory of items."""
        self.checks += 1
        prefix = f"{directory}/" if directory else ""
        expected = {
            relpath[len(prefix) :].split("/")[0]
            for relpath in self.truth[uri]
            if relpath.startswith(prefix)
        }
        if set(names) != expected or len(names) != len(expected):
            raise Violation(f"{uri}/{directory}: lists {sorted(names)}, has {sorted(expected)}")

    # At the end

    def require_kept(
        self, staged: Mapping[tuple[str, str], Mapping[str, bytes]], states: Mapping[str, str]
    ) -> None:
        """Raise Violation unless every job is frozen, or staged with all that was confirmed.

        `staged` are the files in the staging area by base URI and name, `states` what is
        said of each by name.
        """
        for key, job in self.jobs.items():
            if not job.is_made or job.is_discarded:
                continue
            if job.uri is not None:
                if job.uri not in self._dserver.datasets and job.uri not in self.unsteady:
                    raise Violation(f"{job.name}: was frozen as {job.uri}, which is gone")
                continue
            if key not in staged:
                raise Violation(f"{job.name}: is neither frozen nor staged")
            if not job.is_given_up and not states[job.name].startswith(TORN):
                raise Violation(f"{job.name}: is not frozen: {states.get(job.name)}")
            self.require_files(job, staged[key], "staged", is_exact=False)
