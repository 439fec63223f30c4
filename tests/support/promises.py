"""What programs were told is safe: a list on another disk than theirs, kept by them at once.

A program writes a line to it after a system call or a command has returned, and before
it goes on; so all that the list says was acknowledged, whoever is killed afterwards.
With the record of a disk each line has "at", where the record ended then. Each line is
one write to the end of the file, of one of these kinds, in JSON:

    {"dataset": NAME, "plan": {RELPATH: MD5}, ...}   before anything of it is made
    {"dataset": NAME, "closed": RELPATH, "size": N}  that file is closed, without an error
    {"dataset": NAME, "frozen": true}                the freeze has succeeded
    {"dataset": NAME, "tried": {KEY: TEXT}}          before a README or tag is changed
    {"dataset": NAME, "changed": {KEY: TEXT}}        the server has that change
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.002
NEW = ".new"  # what a program is to rename when it is whole


@dataclass
class Promised:
    """One dataset: what was to be written, and what of it was acknowledged."""

    name: str
    plan: Mapping[str, str]  # MD5 by relpath
    facts: Mapping[str, Any]  # what else its writer noted with the plan
    closed: set[str] = field(default_factory=set)
    frozen: bool = False
    tried: dict[str, list[str]] = field(default_factory=dict)  # all texts by key, in order
    changed: dict[str, str] = field(default_factory=dict)  # the last one that was acknowledged

    def require_closed_files(self, found: Mapping[str, str]) -> None:
        """Require that each file that was closed is there as it was written."""
        kept = {relpath: self.plan[relpath] for relpath in self.closed}
        lost = {relpath for relpath, md5 in kept.items() if found.get(relpath) != md5}
        assert not lost, f"{self.name}: {len(lost)} of {len(kept)} are lost: {sorted(lost)[:5]}"
        strange = {relpath for relpath in found if relpath.removesuffix(NEW) not in self.plan}
        assert not strange, f"{self.name}: has files that nobody wrote: {sorted(strange)[:5]}"

    def require_all(self, found: Mapping[str, str]) -> None:
        """Require all that was planned and nothing else, as of a dataset that was complete."""
        assert dict(found) == dict(self.plan), f"{self.name}: is not what was written"

    def require_text(self, key: str, found: str | None) -> None:
        """Require the text that was acknowledged last, or one that was tried after it."""
        tried = self.tried.get(key, [])
        last = self.changed.get(key)
        allowed = [None, *tried] if last is None else tried[tried.index(last) :]
        assert found in allowed, f"{self.name}: {key} is {found!r}, and was {last!r}"


class PromiseList:
    """The list, as its reader has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.datasets: dict[str, Promised] = {}
        self.positions: list[int] = []  # in a disk's record
        self.lines = 0
        self.closed_bytes = 0  # by writers in a mount
        self._offset = 0
        path.touch()

    def read(self) -> None:
        """Take in what was added to the file."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]  # a writer may be in the middle of a line
        self._offset += len(whole)
        for line in whole.splitlines():
            self._take(json.loads(line))
            self.lines += 1

    def as_of(self, position: int, path: Path) -> PromiseList:
        """Return what outlasts a power cut at a position of the disk's record; kept in `path`.

        Plans and tries are no promises and stay. What dtool has closed is not synced yet.
        """
        unsynced = {name for name, one in self.datasets.items() if one.facts.get("broker")}
        with path.open("wb") as file:
            for line in self.path.read_bytes()[: self._offset].splitlines(keepends=True):
                noted = json.loads(line)
                if noted.keys() & {"plan", "tried"} or (
                    noted["at"] <= position
                    and not ("closed" in noted and noted["dataset"] in unsynced)
                ):
                    file.write(line)
        found = PromiseList(path)
        found.read()
        return found

    def wait_for_lines(self, more: int, timeout_s: float = 60.0) -> None:
        """Return when so many have been added; fails when none comes for so long."""
        enough, seen, end_s = self.lines + more, -1, 0.0
        while self.lines < enough:
            self.read()
            if self.lines > seen:
                seen, end_s = self.lines, time.monotonic() + timeout_s
            assert time.monotonic() < end_s, f"{self.path}: nothing is promised any more"
            time.sleep(POLL_S)

    def _take(self, noted: dict[str, Any]) -> None:
        name = noted.pop("dataset")
        if "at" in noted:
            self.positions.append(noted.pop("at"))
        if "plan" in noted:
            assert name not in self.datasets, f"{name} is made twice"
            self.datasets[name] = Promised(name, noted.pop("plan"), noted)
            return
        promised = self.datasets[name]
        if "closed" in noted:
            promised.closed.add(noted["closed"])
            self.closed_bytes += noted.get("size", 0)
        for key, text in noted.get("tried", {}).items():
            promised.tried.setdefault(key, []).append(text)
        promised.changed.update(noted.get("changed", {}))
        promised.frozen |= noted.get("frozen", False)


class Notes:
    """The list, as a writer has it; what it notes outlives the writer."""

    def __init__(self, path: Path, record: Path | None = None) -> None:
        """`record` is that of the disk which the promises are about."""
        self._record = record
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(self, dataset: str, **fact: Any) -> None:
        if self._record is not None:
            fact["at"] = self._record.stat().st_size
        line = json.dumps({"dataset": dataset, **fact}).encode() + b"\n"
        assert os.write(self._fd, line) == len(line)
