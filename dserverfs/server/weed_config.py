"""The files `weed` is started with: S3 credentials, and what shuts its other doors.

    s3.json            one identity with all rights on S3
    config/            where `weed` looks for its configuration first
      security.toml    tokens without which its HTTP side does nothing, certificates for gRPC
      filer.toml       LevelDB; without it a configuration of the machine's could take its place
    tls/               a certificate authority of its own, and the one certificate for all parts

On loopback every user of the machine can reach `weed`. Its filer and volume
servers ask nobody who they are by default, and would hand out any object
without a signature. Made once, when missing. Main thread only.
"""

from __future__ import annotations

import datetime
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dserverfs.server.datadir import write_private

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

    def load(self) -> Credentials:
        """Return the S3 credentials, with all files there."""
        self._make("s3.json", _new_identity)
        self._make("config/security.toml", self._new_security)
        self._make("config/filer.toml", self._new_filer)
        identity = json.loads(self.s3_file.read_text())["identities"][0]["credentials"][0]
        return Credentials(identity["accessKey"], identity["secretKey"])

    def _make(self, name: str, create: Callable[[], str]) -> None:
        path = self._directory / name
        if not path.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_private(path, create())

    def _new_security(self) -> str:
        """Return security.toml; before it is there, the certificates it names are."""
        tls = self._directory / "tls"
        tls.mkdir(mode=0o700, exist_ok=True)
        for name, text in _new_certificates().items():
            write_private(tls / name, text)
        # Relative to the directory weed runs in, so the data can be moved.
        sections = [
            *(
                f'[{name}]\nkey = "{secrets.token_urlsafe(30)}"\n'
                for name in ("jwt.signing", "jwt.filer_signing", "jwt.filer_signing.read")
            ),
            "[access]\nui = false\n",
            "[filer.expose_directory_metadata]\nenabled = false\n",
            '[grpc]\nca = "../tls/ca.pem"\n',
            *(
                f'[grpc.{part}]\ncert = "../tls/cert.pem"\nkey = "../tls/key.pem"\n'
                for part in _PARTS
            ),
        ]
        return "\n".join(sections)

    def _new_filer(self) -> str:
        return '[leveldb2]\nenabled = true\ndir = "../data/filer"\n'


def _new_identity() -> str:
    credentials = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_urlsafe(30)}
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    return json.dumps(
        {"identities": [{"name": "dserverfs", "credentials": [credentials], "actions": actions}]}
    )


def _new_certificates() -> dict[str, str]:
    """Return {file name: PEM}: an authority whose key is not kept, and what it certified."""
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
