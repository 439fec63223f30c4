"""The operator's configuration of `serve`, by the settings that dtool-s3 has.

    DTOOL_S3_ENDPOINT_<bucket>
    DTOOL_S3_ACCESS_KEY_ID_<bucket>
    DTOOL_S3_SECRET_ACCESS_KEY_<bucket>
    DTOOL_S3_DATASET_PREFIX_<bucket>     for new datasets; as it is, so end it with a slash
    DTOOL_S3_PUBLISH_EXPIRY              for how many seconds a link to a dataset is good
    AWS_REGION, AWS_DEFAULT_REGION       of those buckets, unless the endpoint's name says it
    DSERVER_DATABASE                     a PostgreSQL in place of the SQLite of the data directory

Where they are read is the caller's: this room reads no environment and no file. They are
asked for anew each time, so an operator can name another bucket while the server runs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from dserverfs.base.errors import UsageError
from dserverfs.server.store.signing import Storage

MAX_EXPIRY_SECONDS = 7 * 24 * 3600  # S3 signs for no longer

_AWS_HOST = re.compile(r"s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")
_DEFAULT_REGION = "us-east-1"
_PUBLISH_EXPIRY = "DTOOL_S3_PUBLISH_EXPIRY"
DATABASE = "DSERVER_DATABASE"


class ServerSettings:
    """The settings that `get` returns by name; it returns None for one that is not set."""

    def __init__(
        self, get: Callable[[str], str | None], *, public_url: str = "http://127.0.0.1:5000"
    ) -> None:
        """`public_url` is what clients reach the server by, without a slash at its end."""
        self._get = get
        self.public_url = public_url

    def reached_by(self, public_url: str) -> ServerSettings:
        """Return the same settings of a server that clients reach by another URL."""
        return ServerSettings(self._get, public_url=public_url)

    @property
    def server(self) -> str:
        """Return HOST[:PORT], as it is in URIs."""
        return urlsplit(self.public_url).netloc

    @property
    def login_address(self) -> str:
        """Return what `dserverfs login` has to be given: the URL, if it cannot be guessed."""
        parts = urlsplit(self.public_url)
        return parts.netloc if parts.scheme == "http" and not parts.path else self.public_url

    def get(self, name: str) -> str | None:
        """Return a setting that is no store's."""
        return self._get(name)

    def database(self) -> str | None:
        """Return the address of a database, maybe with a password; None: that of the last run."""
        return self._get(DATABASE)

    def publish_expiry_s(self) -> int:
        """Return how long links last; raises UsageError for a setting that is no number."""
        value = self._get(_PUBLISH_EXPIRY)
        if value is None:  # for ever to dtool-s3, which makes objects public then
            return MAX_EXPIRY_SECONDS
        try:
            seconds = int(value)
        except ValueError:
            seconds = 0
        if seconds <= 0:
            raise UsageError(f"{_PUBLISH_EXPIRY}={value}: must be a number of seconds")
        return min(seconds, MAX_EXPIRY_SECONDS)

    def storage(self, bucket: str) -> Storage | None:
        """Return the other S3 server that has a bucket, or None; raises UsageError for half of it.

        Without an endpoint dtool-s3 would go to AWS with credentials of the
        machine's; here such a bucket is the embedded store's.
        """
        endpoint, access_key, secret_key = (
            self._get(f"DTOOL_S3_{name}_{bucket}")
            for name in ("ENDPOINT", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY")
        )
        if endpoint is None and access_key is None and secret_key is None:
            return None
        if endpoint is None or access_key is None or secret_key is None:
            raise UsageError(
                f"bucket {bucket}: DTOOL_S3_ENDPOINT_{bucket}, DTOOL_S3_ACCESS_KEY_ID_{bucket} and"
                f" DTOOL_S3_SECRET_ACCESS_KEY_{bucket} must be set together"
            )
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
            raise UsageError(f"DTOOL_S3_ENDPOINT_{bucket}: must be http://... or https://...")
        return Storage(
            endpoint=endpoint,
            access_key=access_key,
            secret_key=secret_key,
            bucket=bucket,
            prefix=self._get(f"DTOOL_S3_DATASET_PREFIX_{bucket}") or "",
            region=self._region(parts.hostname),
        )

    def _region(self, host: str) -> str:
        match = _AWS_HOST.search(host)
        if match is not None:
            return match[1]
        return self._get("AWS_REGION") or self._get("AWS_DEFAULT_REGION") or _DEFAULT_REGION
