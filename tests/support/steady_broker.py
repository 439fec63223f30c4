"""Makes and copies dataset after dataset with dtool's library, and notes what is safe.

A program: `python -m tests.support.steady_broker make BASE_URI PROMISES SCRATCH PREFIX`.
`... finish BASE_URI PROMISES SCRATCH NAME...` carries on with proto datasets that one
left that was killed, as a user does who runs the same commands again.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import random
from pathlib import Path
from typing import Any

import dtoolcore

from tests.support.promises import Notes, PromiseList
from tests.support.steady_writer import contents_of, md5_of

CREATOR = "tester"
ITEMS = 12


def _contents(name: str, count: int) -> dict[str, bytes]:
    return contents_of(name, count - 1)  # and the one that is kept open in a mount


def _source(scratch: Path, name: str, relpath: str, content: bytes) -> str:
    path = scratch / f"{name}-{relpath.replace('/', '-')}"
    path.write_bytes(content)
    return str(path)


def _fill(proto: Any, scratch: Path, name: str, notes: Notes | None, besides: set[str]) -> None:
    for relpath, content in _contents(name, ITEMS).items():
        if relpath not in besides:
            source = _source(scratch, name, relpath, content)
            proto.put_item(source, relpath)
            if notes is not None:
                notes.note(name, closed=relpath)
            Path(source).unlink()


def _make(base: str, name: str, scratch: Path, notes: Notes) -> None:
    proto = dtoolcore.create_proto_dataset(name, base, f"name: {name}\n", CREATOR)
    _fill(proto, scratch, name, notes, set())
    proto.freeze()
    notes.note(name, frozen=True)


def _local(scratch: Path, name: str) -> str:
    """Make a dataset on the disk, to be copied; return its URI."""
    proto = dtoolcore.create_proto_dataset(name, f"file://{scratch}", f"name: {name}\n", CREATOR)
    _fill(proto, scratch, name, None, set())
    proto.freeze()
    uri: str = proto.uri
    return uri


def make(base: str, notes: Notes, scratch: Path, prefix: str) -> None:
    dice = random.Random(prefix)
    for number in itertools.count():
        name = f"{prefix}-{number:03}"
        source = _local(scratch, name) if dice.random() < 0.5 else None
        plan = md5_of(_contents(name, ITEMS))
        notes.note(name, plan=plan, broker=True, source=source)
        if source is None:
            _make(base, name, scratch, notes)
        else:
            dtoolcore.copy(source, base)
            notes.note(name, frozen=True)


def finish(base: str, known: PromiseList, notes: Notes, scratch: Path, names: list[str]) -> None:
    known.read()
    uris = {one.name: one.uri for one in _protos(base)}
    for name in names:
        promised = known.datasets[name]
        if name not in uris and promised.facts["source"] is None:
            _make(base, name, scratch, notes)
        elif name not in uris:
            dtoolcore.copy(promised.facts["source"], base)
            notes.note(name, frozen=True)
        elif promised.facts["source"] is not None:
            dtoolcore.copy_resume(promised.facts["source"], base)
            notes.note(name, frozen=True)
        else:
            proto = dtoolcore.ProtoDataSet.from_uri(uris[name])
            _fill(proto, scratch, name, notes, promised.closed)
            proto.freeze()
            notes.note(name, frozen=True)


def _protos(base: str) -> list[Any]:
    return list(dtoolcore.iter_proto_datasets_in_base_uri(base))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["make", "finish"])
    parser.add_argument("base")
    parser.add_argument("promises", type=Path)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--record", type=Path, help="of the disk that all of it is on")
    options = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    notes = Notes(options.promises, options.record)
    if options.what == "make":
        make(options.base, notes, options.scratch, options.names[0])
    else:
        known = PromiseList(options.promises)
        finish(options.base, known, notes, options.scratch, options.names)


if __name__ == "__main__":
    main()
