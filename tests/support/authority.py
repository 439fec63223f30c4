"""A certificate authority of a test's own, with certificates of any names and dates."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Laboratory CA")])
_SIGNS_CERTIFICATES = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


class Authority:
    """Its files are in one directory; `file` is what clients trust."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.file = directory / "authority.pem"
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        authority = (
            self._builder(_SUBJECT, self._key, days=30)
            .add_extension(constraints, critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.file.write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def certify(
        self, name: str, *hosts: str, days: int = 30, begins_in_days: int = -40
    ) -> tuple[Path, Path]:
        """Return the files of a new certificate, for these names and addresses, and its key.

        `days` from now it ends; ended already if that is negative.
        """
        key = self._keys[name] = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternatives = x509.SubjectAlternativeName([_name(host) for host in hosts])
        certificate = (
            self._builder(subject, key, days=days, begins_in_days=begins_in_days)
            .add_extension(alternatives, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._directory / f"{name}.pem"
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        return path, self._write_key(name, serialization.NoEncryption())

    def _builder(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        days: int,
        begins_in_days: int = -40,
    ) -> x509.CertificateBuilder:
        """Begin a certificate with all that Python 3.13 asks of one."""
        now = datetime.datetime.now(datetime.timezone.utc)
        ours, its = self._key.public_key(), key.public_key()
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ours)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(_SUBJECT)
            .public_key(its)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=begins_in_days))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(its), critical=False)
            .add_extension(by, critical=False)
        )

    def encrypted_key(self, name: str) -> Path:
        """Replace the key of a certificate by one with a passphrase, and return its file."""
        return self._write_key(name, serialization.BestAvailableEncryption(b"passphrase"))

    def _write_key(self, name: str, encryption: serialization.KeySerializationEncryption) -> Path:
        path = self._directory / f"{name}.key"
        path.write_bytes(
            self._keys[name].private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
            )
        )
        return path


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
