"""The certificate of the web server, read again when its files change.

Those that renew certificates replace two files, one after the other. What cannot be used is
told once, and the certificate before it stays. Safe to share between threads.
"""

from __future__ import annotations

import datetime
import logging
import os
import ssl
import threading
import time
from pathlib import Path

from cryptography import x509

from dserverfs.base.errors import UsageError
from dserverfs.server.store.gateway import TlsFiles

LOOK_S = 1.0
SOON = datetime.timedelta(days=7)

_log = logging.getLogger(__name__)


class Certificates:
    """The certificate in two files."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._seen: object = None
        self._looked_s = 0.0

    def load(self) -> None:
        """Read the files; raises UsageError that says what is wrong with them."""
        with self._lock:
            self._load_locked()

    def context(self) -> ssl.SSLContext:
        """Return the context for a connection that begins now."""
        with self._lock:
            now_s = time.monotonic()
            if self._context is None:
                self._load_locked()
            elif now_s - self._looked_s >= LOOK_S:
                self._looked_s = now_s
                self._look_locked()
            assert self._context is not None
            return self._context

    def _look_locked(self) -> None:
        seen: object
        try:
            seen = self._state()
        except UsageError as error:
            seen = str(error)
        if seen == self._seen:
            return
        self._seen = seen  # what is wrong is told once, not at each connection
        try:
            self._load_locked()
            _log.info("the certificate in %s is used from now on", self._files.certificate)
        except UsageError as error:
            _log.warning("%s; the certificate before it stays in use", error)

    def _load_locked(self) -> None:
        seen = self._state()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self._files
        try:
            # Without a password of ours, OpenSSL would ask the terminal for one.
            context.load_cert_chain(certificate, key, password=_no_password)
        except _Encrypted as error:
            raise UsageError(f"--tls-key {key}: has a passphrase: give a key without") from error
        except ssl.SSLError as error:
            raise UsageError(
                f"--tls-cert {certificate}, --tls-key {key}: {_fault(error)}"
            ) from error
        self._context, self._seen = context, seen
        _tell_dates(certificate)

    def _state(self) -> object:
        """Return what changes when a file does; raises UsageError for one that cannot be read."""
        states = []
        for name, path in zip(("--tls-cert", "--tls-key"), self._files, strict=True):
            try:
                with open(path, "rb") as file:
                    found = os.stat(file.fileno())
            except OSError as error:
                raise UsageError(f"{name} {path}: {error.strerror}") from error
            states.append((found.st_ino, found.st_mtime_ns, found.st_size))
        return states


class _Encrypted(Exception):
    """The key has a passphrase."""


def _no_password() -> str:
    raise _Encrypted


def _fault(error: ssl.SSLError) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not the certificate's"
    return "not a certificate and its key in PEM"


def _tell_dates(path: Path) -> None:
    """Log a certificate that clients refuse by its dates, or will soon."""
    try:
        first = x509.load_pem_x509_certificates(path.read_bytes())[0]
    except (OSError, ValueError):  # OpenSSL takes it all the same
        return
    now = datetime.datetime.now(datetime.timezone.utc)
    begin, end = first.not_valid_before_utc, first.not_valid_after_utc
    if now < begin:
        _log.warning("%s is not valid before %s by this machine's clock", path, begin)
    elif end < now:
        _log.warning("%s has expired on %s: clients refuse it", path, end)
    elif end < now + SOON:
        _log.warning("%s expires on %s: renew it", path, end)
