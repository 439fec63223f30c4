"""What users reach: certificates of HAProxy, and gunicorn with the server.

    public/ca.pem     the authority that clients trust: DSERVER_CA_FILE
    public/site.pem   certificate and key for HAProxy, made with the directory, good for ten years
    dserver/          the server's data directory: keys, first user, its password

An institute has certificates of its authority; the rest is as in `institute.rst`.
"""

from __future__ import annotations

import datetime
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from dserverfs.base.durable_files import write_durably
from storecluster.layout import HERE, SERVER_NAME, STORE_NAME, Layout
from storecluster.running import Part

WORKERS = 2
_VALID = datetime.timedelta(days=3650)


class ServerFiles:
    """The files of the server in the directory of a cluster."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "public" / "ca.pem"
        self.certificate = directory / "public" / "site.pem"
        self.data = directory / "dserver"

    def prepare(self, layout: Layout) -> None:
        """Make the certificates unless they are there; those of clients may be read by all."""
        self.authority.parent.mkdir(mode=0o700, exist_ok=True)
        if self.certificate.exists() and self.authority.exists():
            return
        authority, site = _certificates(["localhost", SERVER_NAME, STORE_NAME], layout)
        write_durably(self.authority, authority)
        write_durably(self.certificate, site)

    def gunicorn(self, layout: Layout, bucket: str, settings: Mapping[str, str]) -> Part:
        """Return gunicorn; `settings` are of the bucket and the database."""
        return Part(
            "gunicorn",
            [
                *(sys.executable, "-m", "gunicorn"),
                *("--config", "python:dserverfs.server.gunicorn_conf"),
                *("--workers", str(WORKERS)),
                *("--bind", f"{HERE}:{layout.ports['gunicorn']['port']}"),
            ],
            {
                "HOME": str(self.data),  # no settings of whoever starts this
                "DSERVER_DATA": str(self.data),
                "DSERVER_BUCKET": bucket,
                "DSERVER_PUBLIC_URL": layout.server_url,
                "DSERVER_TRUSTED_PROXIES": HERE,
                "AWS_CA_BUNDLE": str(self.authority),  # of the store, which HAProxy stands for
                **settings,
            },
        )


def _certificates(names: list[str], layout: Layout) -> tuple[bytes, bytes]:
    """Return an authority whose key is not kept, and a certificate of it with its key."""
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    addresses = {HERE, *layout.hosts.values()}
    alternatives = x509.SubjectAlternativeName(
        [
            *(x509.DNSName(name) for name in names),
            *(x509.IPAddress(ipaddress.ip_address(each)) for each in sorted(addresses)),
        ]
    )
    issuer, key = keys
    by_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key())
    authority = (
        _builder("Example CA", issuer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(is_authority=True), critical=True)
        .sign(issuer, hashes.SHA256())
    )
    site = (
        _builder(SERVER_NAME, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(is_authority=False), critical=True)
        .add_extension(by_issuer, critical=False)
        .add_extension(alternatives, critical=False)
        .sign(issuer, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    pem = serialization.Encoding.PEM
    return authority.public_bytes(pem), site.public_bytes(pem) + private


def _builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    begins = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("Example CA"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + _VALID)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
