"""Python programs that read by fsspec, without a mount: `scripts/bench programs`.

The same program for all, `program_reads`, on the same store: dserverfs by the dataset's URL, s3fs
(the Python package) with the keys of the store by relpath, and fsspec over http by a signed URL,
where one file is read. Each reads twice in one process: *cold* with an empty cache, while the
kernel holds all files of the server, and *again*. What it read has to be what the files have. The
requests of each to the server and to the store are counted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import numpy
import pyarrow
import pyarrow.parquet
import zarr

import dserverfs
from benchmark import machine, program_reads
from benchmark.lab import Lab, Sizes, open_lab
from benchmark.measuring import LIMIT_S, Measurement, Requests, WrongAnswer
from benchmark.peers import OURS
from benchmark.plan import Keeper, Plan
from benchmark.report import Results
from dserverfs.base.model import DserverURI
from dserverfs.settings import CACHE_DIR, STAGING_DIR, TOKEN_FILE

S3FS, HTTP = "s3fs (Python)", "http"
COLUMNS = (OURS, S3FS, HTTP)
RANGES, CHUNKS = 10_000, 1000
_MIB = 1024 * 1024
# What the peers need. In an environment of their own: s3fs wants an older botocore than ours.
_PEERS = ("fsspec", "s3fs", "aiohttp", "pyarrow", "zarr", "numpy")


class Job(NamedTuple):
    """What a program reads."""

    row: str
    title: str
    reads: str  # a name of program_reads.READS
    relpaths: Sequence[str]

    @property
    def rows(self) -> tuple[str, str]:
        return f"{self.row}-cold", f"{self.row}-again"


def jobs_of(sizes: Sizes) -> tuple[Job, ...]:
    """Return what is read."""
    small = [f"small/{number:05}.bin" for number in range(sizes.small_items)]
    return (
        Job("ranges", f"{RANGES:,} random 4 KiB", "ranges", ["large.bin"]),
        Job("column", "one of eight columns of Parquet", "column", ["table.parquet"]),
        Job("mean", f"mean of {CHUNKS:,} chunks of zarr", "mean", ["array.zarr"]),
        Job("files", f"{sizes.small_items:,} x 4 KiB", "files", small),
    )


ROWS = tuple(f"{name}-{when}" for name in program_reads.READS for when in ("cold", "again"))


class Peer(NamedTuple):
    """A way to the files."""

    name: str
    python: str
    protocol: str
    options: Mapping[str, Any]
    paths: Mapping[str, str]  # by relpath; empty: what is there below `top`
    top: str = ""

    def path(self, relpath: str) -> str | None:
        return self.paths.get(relpath) if self.paths else f"{self.top}/{relpath}"


def run(plan: Plan, work: Path, keeper: Keeper) -> None:
    """Measure the rows of the plan with a server below `work`; the keeper has what comes."""
    about: dict[str, Any] = {"machine": machine.describe(), "sizes": vars(plan.sizes)}
    titles = {
        row: f"{job.title}, {when}"
        for job in jobs_of(plan.sizes)
        for row, when in zip(job.rows, ("cold", "again"), strict=True)
        if row in plan.rows
    }
    results = Results(titles, OURS, [S3FS, HTTP], [])
    jobs = [job for job in jobs_of(plan.sizes) if titles.keys() & {*job.rows}]
    with open_lab(work, plan.sizes) as lab:
        files = work / "files"
        _make(files, {job.reads for job in jobs}, plan.sizes)
        local = {job.row: _digest(files, job, plan.sizes) for job in jobs}
        peers = list(_peers(lab, work, files, plan.columns))
        about["versions"] = versions = {each.name: _version(each) for each in peers}
        for note in versions.values():
            results.note(note)
        for job in jobs:
            for repeat in range(plan.repeats):
                for peer in peers:
                    print(f"{job.row} {repeat + 1}: {peer.name}", file=sys.stderr, flush=True)
                    _once(lab, work, peer, job, local[job.row], results)
                about["machine"]["load_after"] = machine.load()
                keeper.keep(results, about)
    keeper.keep_all(results, about)


def _once(lab: Lab, work: Path, peer: Peer, job: Job, digest: str, results: Results) -> None:
    paths = [peer.path(relpath) for relpath in job.relpaths]
    if None in paths:
        return
    try:
        for measured in _read(lab, work, peer, job, paths, digest):
            if measured.row in results.titles:
                results.add(peer.name, measured)
    except (OSError, RuntimeError, WrongAnswer, subprocess.SubprocessError) as error:
        rows = [row for row in job.rows if row in results.titles]
        results.fail(peer.name, rows, f"{type(error).__name__}: {error}")


def _read(
    lab: Lab, work: Path, peer: Peer, job: Job, paths: Sequence[str | None], digest: str
) -> list[Measurement]:
    """Return the first and the second reading."""
    shutil.rmtree(work / "cache", ignore_errors=True)
    environment = {**os.environ, TOKEN_FILE: str(lab.token_file), CACHE_DIR: str(work / "cache")}
    os.sync()
    lab.warm_store()
    done = subprocess.run(
        [peer.python, program_reads.__file__],
        input=_order(peer, job, paths, lab.sizes),
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    said = json.loads(done.stdout)
    if said["digest"] != digest:
        raise WrongAnswer(f"{job.row}: not what the files have")
    return [
        Measurement(row, seconds, requests=_requests(lab, counts))
        for row, seconds, counts in zip(job.rows, said["seconds"], said["requests"], strict=True)
    ]


def _requests(lab: Lab, counts: Mapping[str, int]) -> Requests:
    """Return the counts by port as those of the server and the store."""
    server = DserverURI.parse(lab.base_uri).server.rpartition(":")[2]
    store = lab.storage.endpoint.rpartition(":")[2]
    return Requests(counts.get(server, 0), counts.get(store, 0))


def _order(peer: Peer, job: Job, paths: Sequence[str | None], sizes: Sizes) -> str:
    return json.dumps(
        {
            "protocol": peer.protocol,
            "options": peer.options,
            "reads": job.reads,
            "paths": paths,
            "size": sizes.large_bytes,
            "count": RANGES,
        }
    )


def _digest(files: Path, job: Job, sizes: Sizes) -> str:
    """Return the digest of what is to be read, from the local files."""
    local = Peer("local", sys.executable, "file", {}, {}, str(files))
    paths = [local.path(relpath) for relpath in job.relpaths]
    done = subprocess.run(
        [sys.executable, program_reads.__file__],
        input=_order(local, job, paths, sizes),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    digest: str = json.loads(done.stdout)["digest"]
    return digest


def _make(files: Path, reads: Collection[str], sizes: Sizes) -> None:
    """Write the files that are read in these ways; the same in every run."""
    files.mkdir()
    chance = numpy.random.default_rng(1)
    if "ranges" in reads:
        with (files / "large.bin").open("wb") as file:
            for start in range(0, sizes.large_bytes, _MIB):
                file.write(chance.bytes(min(_MIB, sizes.large_bytes - start)))
    if "column" in reads:
        table = pyarrow.table({name: chance.random(2_000_000) for name in "abcdefgh"})
        pyarrow.parquet.write_table(table, files / "table.parquet", row_group_size=100_000)
    if "mean" in reads:
        array = chance.random((CHUNKS, 128, 100))
        zarr.create_array(files / "array.zarr", data=array, chunks=(1, 128, 100))
    if "files" in reads:
        (files / "small").mkdir()
        for number in range(sizes.small_items):
            (files / "small" / f"{number:05}.bin").write_bytes(chance.bytes(4096))


def _peers(lab: Lab, work: Path, files: Path, names: Collection[str]) -> Iterator[Peer]:
    """Yield the ways of these names, with the files published for each; ours first."""
    print("publishing the files", file=sys.stderr)
    os.environ |= {
        TOKEN_FILE: str(lab.token_file),
        CACHE_DIR: str(work / "cache of publishing"),  # which gets what was published
        STAGING_DIR: str(work / "staging"),
    }
    storage = lab.storage
    client = boto3.client(
        "s3",
        endpoint_url=storage.endpoint,
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key,
        region_name=storage.region,
    )
    relpaths = [str(path.relative_to(files)) for path in files.rglob("*") if path.is_file()]
    with dserverfs.create(lab.base_uri, "programs") as new:
        for relpath in relpaths:
            new.put(relpath, files / relpath)
    if OURS in names:
        yield Peer(OURS, sys.executable, "dserver", {}, {}, f"{lab.base_uri}/programs/data")
    if not {S3FS, HTTP} & {*names}:
        return
    for relpath in relpaths:
        client.upload_file(str(files / relpath), storage.bucket, f"programs/{relpath}")
    python = _environment_of_peers(work)
    keys = {
        "key": storage.access_key,
        "secret": storage.secret_key,
        "client_kwargs": {"endpoint_url": storage.endpoint},
    }
    if S3FS in names:
        yield Peer(S3FS, python, "s3", keys, {}, f"{storage.bucket}/programs")
    if HTTP not in names:
        return
    signed = {
        relpath: client.generate_presigned_url(
            "get_object", {"Bucket": storage.bucket, "Key": f"programs/{relpath}"}
        )
        for relpath in relpaths
    }
    yield Peer(HTTP, python, "http", {}, signed)


def _environment_of_peers(work: Path) -> str:
    """Return a Python that has the peers; made by uv."""
    uv = str(Path(sys.executable).with_name("uv"))
    directory = work / "peers"
    subprocess.run([uv, "venv", "--quiet", str(directory)], timeout=LIMIT_S, check=True)
    python = str(directory / "bin" / "python")
    command = [uv, "pip", "install", "--quiet", "--python", python, *_PEERS]
    subprocess.run(command, timeout=LIMIT_S, check=True)
    return python


def _version(peer: Peer) -> str:
    if peer.name == OURS:
        return f"dserverfs {dserverfs.__version__}"
    package = "s3fs" if peer.name == S3FS else "aiohttp"
    code = f"import {package}; print('{package}', {package}.__version__)"
    done = subprocess.run(
        [peer.python, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()
