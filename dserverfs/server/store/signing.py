"""The description of an S3 store, and signed URLs for it.

Pure: signing is arithmetic on the credentials (AWS Signature Version 4 in the
query). botocore's `generate_presigned_url` gives the same URLs at 140 us each;
this takes about 15 us, which is what lets one answer carry thousands of them.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

from dserverfs.base.errors import Unsupported, UsageError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]\Z")
_FOREIGN_BUCKET = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{1,61}[0-9A-Za-z]\Z")
MIB = 1024**2
GIB = 1024**3
MAX_OBJECT_BYTES = 5 * 1024 * GIB  # of S3, in parts
MAX_PARTS = 10_000  # of S3
_UNRESERVED = "-_.~"


@dataclass(frozen=True)
class Storage:
    """Where objects are and with which keys; any S3 server with path-style URLs."""

    endpoint: str  # "http://127.0.0.1:8333"
    access_key: str
    secret_key: str = field(repr=False)
    bucket: str
    prefix: str = ""  # before each dataset's keys; empty or ending in "/"
    region: str = "us-east-1"
    max_put_bytes: int = 5 * GIB  # of S3, for one PUT
    part_bytes: int = 64 * MIB  # of larger objects; S3 takes 5 MiB to 5 GiB
    public_endpoint: str = ""  # what signed URLs name, where clients need another

    @property
    def base_uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def signed_endpoint(self) -> str:
        """Return what signed URLs name."""
        return (self.public_endpoint or self.endpoint).rstrip("/")


def bucket_of(base_uri: str) -> str:
    """Return the bucket of `s3://BUCKET`; raises Unsupported for any other base URI."""
    scheme, _, bucket = base_uri.partition("://")
    if scheme != "s3" or not bucket or "/" in bucket:
        raise Unsupported(f"{base_uri}: this server signs URLs for s3://BUCKET only", uri=base_uri)
    return bucket


def require_bucket_name(bucket: str, *, is_foreign: bool) -> None:
    """Raise UsageError for a bucket that cannot be; old ones elsewhere have dots and more."""
    pattern = _FOREIGN_BUCKET if is_foreign else _BUCKET
    if not pattern.match(bucket):
        raise UsageError(
            f"bucket {bucket}: not 3 to 63 characters of a-z, 0-9 and '-', "
            "beginning and ending with a letter or digit"
        )


class Signer:
    """Signs URLs that all begin at one moment and end after `expiry_seconds`."""

    def __init__(self, storage: Storage, *, now: datetime.datetime, expiry_seconds: int) -> None:
        self._storage = storage
        self._endpoint = storage.signed_endpoint
        self._host = _signed_host(self._endpoint)
        self._moment = now.strftime("%Y%m%dT%H%M%SZ")
        self._scope = f"{self._moment[:8]}/{storage.region}/s3/aws4_request"
        self._expiry_seconds = expiry_seconds
        end = now + datetime.timedelta(seconds=expiry_seconds)
        self.expiry: Mapping[str, Any] = {  # as an answer tells it
            "expiry_seconds": expiry_seconds,
            "expiry_timestamp": end.isoformat(),
        }
        self._key = _signing_key(storage.secret_key, self._moment[:8], storage.region)

    def get_url(self, bucket: str, key: str) -> str:
        """Return a URL from which `key` can be read, with any Range."""
        return self._signed("GET", bucket, key, {})

    def download_url(self, bucket: str, key: str, file_name: str) -> str:
        """Return a URL from which a browser saves `key` under this name, and shows nothing."""
        disposition = f"attachment; filename*=UTF-8''{quote(file_name, safe=_UNRESERVED)}"
        query = f"&response-content-disposition={quote(disposition, safe=_UNRESERVED)}"
        return self._signed("GET", bucket, key, {}, query)

    def put_url(self, bucket: str, key: str, headers: Mapping[str, str]) -> str:
        """Return a URL to which `key` can be put, with exactly these `headers`."""
        return self._signed("PUT", bucket, key, headers)

    def part_url(
        self, bucket: str, key: str, upload_id: str, number: int, headers: Mapping[str, str]
    ) -> str:
        """Return a URL to which one part of a multipart upload can be put."""
        query = f"&partNumber={number}&uploadId={quote(upload_id, safe=_UNRESERVED)}"
        return self._signed("PUT", bucket, key, headers, query)

    def _signed(
        self, method: str, bucket: str, key: str, headers: Mapping[str, str], further: str = ""
    ) -> str:
        """Sign; `further` comes after X-Amz-... in the order of signing, which is by letters."""
        path = "/" + quote(f"{bucket}/{key}", safe=_UNRESERVED + "/")
        signed = {"host": self._host}
        signed.update((name.lower(), value.strip()) for name, value in headers.items())
        names = ";".join(sorted(signed))
        credential = quote(f"{self._storage.access_key}/{self._scope}", safe=_UNRESERVED)
        query = (
            "X-Amz-Algorithm=AWS4-HMAC-SHA256"
            f"&X-Amz-Credential={credential}"
            f"&X-Amz-Date={self._moment}"
            f"&X-Amz-Expires={self._expiry_seconds}"
            f"&X-Amz-SignedHeaders={quote(names, safe=_UNRESERVED)}{further}"
        )
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        canonical = f"{method}\n{path}\n{query}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        to_sign = f"AWS4-HMAC-SHA256\n{self._moment}\n{self._scope}\n{digest}"
        signature = hmac.digest(self._key, to_sign.encode(), "sha256").hex()
        return f"{self._endpoint}{path}?{query}&X-Amz-Signature={signature}"


def _signed_host(endpoint: str) -> str:
    """Return the Host that clients say: without the port that its scheme has by itself."""
    parts = urlsplit(endpoint)
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, ":")
    return parts.netloc.removesuffix(default)


def _signing_key(secret_key: str, date: str, region: str) -> bytes:
    key = f"AWS4{secret_key}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
