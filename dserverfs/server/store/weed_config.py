"""The files `weed` is started with: S3 credentials, and keys that shut its other doors.

    s3.json            one identity with all rights on S3; made once
    config/            where `weed` looks for its configuration first
      security.toml    tokens without which its HTTP side does nothing, certificates for gRPC
      filer.toml       LevelDB; without it a configuration of the machine's could take its place
    tls/               a certificate authority of its own, and the one certificate for all parts

On loopback every user of the machine can reach `weed`. Its filer and volume
servers ask for no credentials by default, and would hand out any object without
a signature. The answers to another user of the machine now, each tried:

    S3            AccessDenied without a signature; /status and /healthz are empty
    volume        401 without a token that is good for one file and a minute, to read, write
                  or delete. Its /status needs none and has no switch: it tells the path of the
                  data directory, free space, and the names and sizes of buckets
    filer         404: switched off
    master        no answer: it wants our certificate
    gRPC of all   no answer: they want our certificate, on their ports and in their sockets

All but s3.json is written anew at each start, with new keys: they are between
the parts of one process, and a directory of an earlier version is shut as well.
Main thread only.
"""

from __future__ import annotations

import datetime
import json
import secrets
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dserverfs.base.durable_files import write_durably

# Each shuts a way to write or to read: of the volume server, and of the filer.
_TOKENS = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
_FILER = '[leveldb2]\nenabled = true\ndir = "../data/filer"\n'
_PARTS = ("master", "volume", "filer", "s3", "client")
_VALID_FROM = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
_VALID_TO = datetime.datetime(2120, 1, 1, tzinfo=datetime.timezone.utc)


class Credentials(NamedTuple):
    access_key: str
    secret_key: str


class WeedConfig:
    """The configuration in one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def s3_file(self) -> Path:
        return self._directory / "s3.json"

    @property
    def directory(self) -> Path:
        return self._directory / "config"

    def prepare(self) -> None:
        """Write the files; only while no `weed` runs on this directory."""
        for directory in ("config", "tls"):
            (self._directory / directory).mkdir(mode=0o700, exist_ok=True)
        if not self.s3_file.exists():
            write_durably(self.s3_file, _new_identity().encode())
        for name, text in _new_certificates().items():
            write_durably(self._directory / "tls" / name, text.encode())
        write_durably(self.directory / "security.toml", _new_security().encode())
        write_durably(self.directory / "filer.toml", _FILER.encode())

    def credentials(self) -> Credentials:
        """Return the S3 credentials; raises FileNotFoundError before `prepare`."""
        identity = json.loads(self.s3_file.read_text())["identities"][0]["credentials"][0]
        return Credentials(identity["accessKey"], identity["secretKey"])


def _new_security() -> str:
    """Return security.toml; its paths are relative to where weed runs, so the data can be moved."""
    ours = 'cert = "../tls/cert.pem"\nkey = "../tls/key.pem"\n'
    return "\n".join(
        [
            *(f'[{name}]\nkey = "{secrets.token_urlsafe(30)}"\n' for name in _TOKENS),
            "[access]\nui = false\n",
            "[filer.expose_directory_metadata]\nenabled = false\n",
            f'[https.master]\n{ours}ca = "../tls/ca.pem"\n',
            '[grpc]\nca = "../tls/ca.pem"\n',
            *(f"[grpc.{part}]\n{ours}" for part in _PARTS),
        ]
    )


def _new_identity() -> str:
    credentials = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps(
        {"identities": [{"name": "dserverfs", "credentials": [credentials], "actions": actions}]}
    )


def _new_certificates() -> dict[str, str]:
    """Return {file name: PEM}: an authority whose key is not kept, and its certificate."""
    authority_key = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    authority = _certificate("dserverfs store", authority_key, authority_key, authority=True)
    certificate = _certificate("weed", key, authority_key, authority=False)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "ca.pem": authority.public_bytes(serialization.Encoding.PEM).decode(),
        "cert.pem": certificate.public_bytes(serialization.Encoding.PEM).decode(),
        "key.pem": private.decode(),
    }


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    authority: bool,
) -> x509.Certificate:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dserverfs store")]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(_VALID_FROM)
        .not_valid_after(_VALID_TO)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )
