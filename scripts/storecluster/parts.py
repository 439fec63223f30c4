"""The parts of SeaweedFS: the command line of each.

    master1..3      which volume server has which data; one of them leads (Raft)
    volume1..3      the data, each object on two of them (replication 001)
    filer1, filer2  S3, and the names of objects, which they have in PostgreSQL

`-ip` is the address by which the others reach this one. On a host of its own each port may be
the program's default.
"""

from __future__ import annotations

from pathlib import Path

from storecluster.layout import FILERS, MASTERS, VOLUMES, Layout
from storecluster.running import Part


def weed_parts(weed: str, directory: Path, layout: Layout) -> list[Part]:
    """Return masters, volume servers and filers, in the order in which they are started."""
    return [
        *(_master(weed, directory, layout, name) for name in MASTERS),
        *(_volume(weed, directory, layout, name) for name in VOLUMES),
        *(_filer(weed, directory, layout, name) for name in FILERS),
    ]


def _master(weed: str, directory: Path, layout: Layout, name: str) -> Part:
    return _part(
        name,
        layout,
        *(weed, "-logtostderr", "-v=-1", "master"),
        f"-peers={masters(layout)}",
        f"-mdir={directory / name}",
        "-defaultReplication=001",  # each object on one more server of the same rack
        # When the leader dies another one is elected; until then nobody gets a place to write.
        # The default is 10 s.
        "-electionTimeout=2s",
        # Volumes grow as they are filled. Small ones are vacuumed and copied in less time;
        # a petabyte wants the default, 30 GB.
        "-volumeSizeLimitMB=1024",
        "-telemetry=false",
        "-disableHttp",
    )


def _volume(weed: str, directory: Path, layout: Layout, name: str) -> Part:
    return _part(
        name,
        layout,
        *(weed, "-logtostderr", "-v=-1", "volume"),
        f"-master={masters(layout)}",
        f"-dir={directory / name}",  # one directory a disk, with commas between them
        "-max=10000",  # volumes; 0 divides the free space by the size of one
        "-minFreeSpace=2",  # percent; then it takes no more, and the others go on
        # It tells the masters that it goes, and then answers for so long: 10 s is right where
        # it is restarted on purpose, with other clients than a test's.
        "-preStopSeconds=0",
    )


def _filer(weed: str, directory: Path, layout: Layout, name: str) -> Part:
    return _part(
        name,
        layout,
        *(weed, "-logtostderr", "-v=-1", "filer"),
        f"-master={masters(layout)}",
        "-defaultReplicaPlacement=001",
        "-disableHttp",
        f"-localSocket={directory / name / 'filer.sock'}",
        "-s3",
        f"-s3.config={directory / 's3.json'}",
        f"-s3.localSocket={directory / name / 's3.sock'}",
        "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.autoCreateBucket=false",  # a bucket's name that is mistyped is an error
        "-s3.iam=false",
        # Two filers on one host cannot both have the defaults of these.
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
    )


def _part(name: str, layout: Layout, *command: str) -> Part:
    address = layout.address(name)
    ports = (f"-{port}={number}" for port, number in layout.ports[name].items())
    return Part(name, [*command, f"-ip={address}", f"-ip.bind={address}", *ports])


def masters(layout: Layout) -> str:
    return ",".join(layout.place(name) for name in MASTERS)
