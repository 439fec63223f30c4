"""The embedded store's bucket, by its own credentials and past the dserver."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import boto3

from tests.serving import ServerHandle


@dataclass(frozen=True)
class Bucket:
    name: str
    endpoint: str
    access_key: str
    secret_key: str

    @classmethod
    def of(cls, server: ServerHandle) -> Bucket:
        store = server.token_file.parent / "store"
        ports = json.loads((store / "ports.json").read_text())
        identity = json.loads((store / "s3.json").read_text())["identities"][0]["credentials"][0]
        return cls(
            server.base_uri.rpartition("/")[2],
            f"http://127.0.0.1:{ports['s3.port']}",
            identity["accessKey"],
            identity["secretKey"],
        )

    def client(self) -> Any:
        """Return a boto3 client of the store."""
        return boto3.session.Session(
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name="us-east-1",
        ).client("s3", endpoint_url=self.endpoint)

    def dtool_environment(self) -> dict[str, str]:
        """Return what makes dtool-s3 read this bucket."""
        return {
            f"DTOOL_S3_ENDPOINT_{self.name}": self.endpoint,
            f"DTOOL_S3_ACCESS_KEY_ID_{self.name}": self.access_key,
            f"DTOOL_S3_SECRET_ACCESS_KEY_{self.name}": self.secret_key,
        }
