"""Datasets that have nothing in common but their uuid, name, dates, relpaths and sizes."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import dtoolcore

from dserverfs.base.items import BLOCK_SIZE
from dserverfs.base.model import DserverURI
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import publish
from tests.support.servers import ServerHandle, encoded

NAME = "twin"
UUID = "7c1f3a52-9d4e-4b7a-8f00-5b0e6a6d2c11"
SIZES = {"same.bin": 5000, "deep/large.bin": 2 * BLOCK_SIZE + 77, "empty": 0}
MTIME_S = 1_600_000_000


@dataclass(frozen=True)
class Twin:
    """One of them, as it is on its server and as it was made."""

    server: ServerHandle
    uri: str
    contents: dict[str, bytes]
    readme: str
    tag: str

    @property
    def backend(self) -> str:
        """The base URI, as its backend names it."""
        base_uri = DserverURI.parse(self.uri).base_uri
        assert base_uri is not None
        return base_uri

    @property
    def path(self) -> str:
        """Where a mount of its server shows it."""
        return f"{self.backend.replace('://', '/')}/{NAME}"

    def asked(self, route: str) -> object:
        """Return what its server says of it now."""
        answer = self.server.get(f"/{route}/{encoded(f'{self.backend}/{UUID}')}")
        answer.raise_for_status()
        return answer.json()


def make_twins(scratch: Path, places: dict[str, ServerHandle]) -> list[Twin]:
    """Publish one to each base URI, `dserver://...`, of a server."""
    twins = []
    for number, (base, server) in enumerate(places.items()):
        contents = {name: content_of(f"{name} {number}", size) for name, size in SIZES.items()}
        contents[f"only/{number}"] = b"%d" % number
        readme, tag = f"---\ntwin: {number}\n", f"tag-{number}"
        parent = scratch / str(number)
        parent.mkdir()
        local = make_dataset(parent, NAME, contents, uuid=UUID)
        _give_one_date(local)
        dataset = dtoolcore.DataSet.from_uri(str(local))
        dataset.put_readme(readme)
        dataset.put_tag(tag)
        (uri,) = publish(base, server.token, scratch / "publishing", local)
        twins.append(Twin(server, uri, contents, readme, tag))
    return twins


def _give_one_date(local: Path) -> None:
    for path in (local / "data").rglob("*"):
        os.utime(path, (MTIME_S, MTIME_S))
    manifest = json.loads((local / ".dtool/manifest.json").read_text())
    for item in manifest["items"].values():
        item["utc_timestamp"] = float(MTIME_S)
    (local / ".dtool/manifest.json").write_text(json.dumps(manifest))
    admin = json.loads((local / ".dtool/dtool").read_text())
    admin |= {"frozen_at": MTIME_S + 1.0, "created_at": MTIME_S + 0.5}
    (local / ".dtool/dtool").write_text(json.dumps(admin))
