"""dtool's commands on a dserver beside the same commands with dtool-s3 and the store's credentials.

`scripts/bench-dtool` prints how many requests commands send, with an empty cache,
and how long copies and listings take from the command to its end; for the
copies, what arrived is compared with `dtool diff --full`. "requests" are those
to the dserver and to the store together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from benchmark import machine, report
from benchmark.content import make_dataset
from benchmark.lab import Lab, Sizes, open_lab
from benchmark.measuring import LIMIT_S, Measurement
from benchmark.report import Results
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI
from dserverfs.client import Client
from dserverfs.settings import TOKEN_FILE, Settings

OURS, PEER = "dserverfs", "dtool-s3"
COUNTED = ("ls BASE", "summary", "readme show", "tag ls", "item fetch")
# A line of urllib3, which requests and botocore both are built on.
_REQUEST = re.compile(r'urllib3\.connectionpool - DEBUG - \S+ "[A-Z]+ \S+ HTTP')


class Side(NamedTuple):
    """One of the two ways to the same bucket."""

    name: str
    base_uri: str
    environment: dict[str, str]


class Bench:
    """What the rows work with."""

    def __init__(self, lab: Lab, work: Path, large_bytes: int, datasets: int) -> None:
        self._lab = lab
        self._work = work
        self._large_bytes = large_bytes
        self._datasets = datasets
        common = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LOGNAME": "benchmark"}
        store = lab.storage
        self.sides = (
            Side(
                OURS,
                lab.base_uri,
                {**common, "DSERVER_TOKEN_FILE": str(lab.token_file)},
            ),
            Side(
                PEER,
                f"s3://{store.bucket}",
                {
                    **common,
                    f"DTOOL_S3_ENDPOINT_{store.bucket}": store.endpoint,
                    f"DTOOL_S3_ACCESS_KEY_ID_{store.bucket}": store.access_key,
                    f"DTOOL_S3_SECRET_ACCESS_KEY_{store.bucket}": store.secret_key,
                },
            ),
        )
        self._sources: dict[str, Path] = {}

    def source(self, name: str) -> Path:
        """Return a local dataset: `large`, `small` or `tiny`."""
        if name not in self._sources:
            sizes = {
                "large": {"large.bin": self._large_bytes},
                "small": {f"item-{n:06}.bin": 4096 for n in range(2000)},
                "tiny": {"item.bin": 4096},
            }[name]
            make_dataset(self._work / "sources", name, sizes)
            self._sources[name] = self._work / "sources" / name
        return self._sources[name]

    def fresh(self, source: Path) -> str:
        """Give a local dataset another uuid, so that it can be copied once more; return that."""
        path = source / ".dtool" / "dtool"
        admin = json.loads(path.read_text())
        admin["uuid"] = str(uuid.uuid4())
        path.write_text(json.dumps(admin))
        return str(admin["uuid"])

    def dtool(self, side: Side, *arguments: object) -> tuple[float, str]:
        """Run a command with an empty home; return how long it took, and its stderr."""
        home = Path(tempfile.mkdtemp(dir=self._work))
        try:
            start_s = time.perf_counter()
            done = subprocess.run(
                [str(Path(sys.executable).with_name("dtool")), *map(str, arguments)],
                env={**side.environment, "HOME": str(home)},
                capture_output=True,
                text=True,
                timeout=LIMIT_S,
            )
            seconds = time.perf_counter() - start_s
        finally:
            shutil.rmtree(home)
        if done.returncode != 0:
            raise RuntimeError(f"dtool {arguments[0]}: {done.stderr.strip()[-300:]}")
        return seconds, done.stderr

    def requests(self, side: Side, command: str) -> int:
        """Return how many requests a command sends."""
        source = self.source("tiny")
        identity = self.fresh(source)
        self.dtool(side, "cp", source, side.base_uri)
        uri = f"{side.base_uri}/{identity}"
        words: Sequence[object] = {
            "ls BASE": ["ls", side.base_uri],
            "item fetch": ["item", "fetch", uri, _only_identifier(source)],
        }.get(command, [*command.split(), uri])
        _, log = self.dtool(side, "--debug", *words)
        return sum(1 for line in log.splitlines() if _REQUEST.search(line))

    def up(self, side: Side, name: str) -> float:
        source = self.source(name)
        identity = self.fresh(source)
        seconds, _ = self.dtool(side, "cp", source, side.base_uri)
        if side.name == OURS:  # of the peer it would take minutes
            self.dtool(side, "diff", "--full", f"{side.base_uri}/{identity}", source)
        return seconds

    def down(self, side: Side, name: str) -> float:
        source = self.source(name)
        identity = self.fresh(source)
        # By ours in both cases: so that the dserver knows it, and the objects are the same.
        self.dtool(self.sides[0], "cp", source, self.sides[0].base_uri)
        target = Path(tempfile.mkdtemp(dir=self._work))
        try:
            seconds, _ = self.dtool(side, "cp", f"{side.base_uri}/{identity}", target)
            self.dtool(side, "diff", "--full", target / source.name, source)
        finally:
            shutil.rmtree(target)
        return seconds

    def fill(self) -> None:
        """Put as many datasets into the bucket as are to be listed."""
        uri = DserverURI.parse(self._lab.base_uri)
        assert uri.base_uri is not None
        settings = Settings({TOKEN_FILE: str(self._lab.token_file)}, {})
        source = self.source("tiny")
        with Client(uri.server, settings, cache_directory=self._work / "upload-cache") as client:
            for _ in range(self._datasets):
                self.fresh(source)
                client.uploader.upload(LocalDataset.read(source), uri.base_uri)

    def listing(self, side: Side) -> float:
        return self.dtool(side, "ls", side.base_uri)[0]


def _only_identifier(source: Path) -> str:
    manifest = json.loads((source / ".dtool" / "manifest.json").read_text())
    (identifier,) = manifest["items"]
    return str(identifier)


def main(argv: Sequence[str]) -> int:
    """Print the tables; return 1 if dserverfs failed in a row."""
    parser = argparse.ArgumentParser(prog="scripts/bench-dtool", description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--size-mib", type=int, default=512, help="of the large item")
    parser.add_argument("--datasets", type=int, default=200, help="to list; default: 200")
    arguments = parser.parse_args(argv)
    work = Path(tempfile.mkdtemp(prefix="dserverfs-bench-"))
    try:
        with open_lab(work, Sizes(*[0] * len(fields(Sizes)))) as lab:
            bench = Bench(lab, work, arguments.size_mib * 1024 * 1024, arguments.datasets)
            results = _measured(bench, arguments.repeat, arguments.size_mib, arguments.datasets)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(report.as_text(results), end="")
    return 1 if any(column == OURS for _, column in results.failed) else 0


def _measured(bench: Bench, repeat: int, size_mib: int, datasets: int) -> Results:
    rows: dict[str, tuple[str, Callable[[Side], float]]] = {
        "ls": (f"ls of {datasets} datasets", bench.listing),
        "small-up": ("cp 2,000 x 4 KiB, up", lambda side: bench.up(side, "small")),
        "small-down": ("cp 2,000 x 4 KiB, down", lambda side: bench.down(side, "small")),
        "large-up": (f"cp {size_mib} MiB, up", lambda side: bench.up(side, "large")),
        "large-down": (f"cp {size_mib} MiB, down", lambda side: bench.down(side, "large")),
    }
    results = Results({row: title for row, (title, _) in rows.items()}, OURS, [PEER], [])
    # Before the bucket is full: dtool-s3 sends several requests for each dataset of a listing.
    for command in COUNTED:
        counts = ", ".join(f"{side.name} {bench.requests(side, command)}" for side in bench.sides)
        results.notes.append(f"requests of dtool {command}: {counts}")
    bench.fill()
    for row, (_, work) in rows.items():
        for number in range(repeat):
            for side in bench.sides:  # in turn, so that a slow moment hits both
                print(f"{row} {number + 1}: {side.name}", file=sys.stderr, flush=True)
                try:
                    results.add(side.name, Measurement(row, work(side)))
                except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                    results.fail(side.name, [row], str(error))
    results.notes.append(machine.in_words(machine.describe() | {"load_after": machine.load()}))
    return results


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
