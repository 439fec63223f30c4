"""The objects of the store, as this server itself reads and writes them.

One boto3 client for the whole process (it is safe to share between threads;
building one costs 70 ms and 13 MB). Every failure is a DserverfsError: NotFound
for a missing key, Unreachable for anything else the store or the way to it does.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from dserverfs.base.durable_files import sync_file_system
from dserverfs.base.errors import NotFound, Unreachable
from dserverfs.server.store.signing import Signer, Storage

PAGE = 1000  # keys in one answer of S3, and in one request to delete
_ABSENT = {"404", "NoSuchKey", "NoSuchBucket", "NoSuchUpload", "NotFound"}


class StoredObject(NamedTuple):
    key: str
    size_in_bytes: int
    etag: str  # without quotes; the MD5 only if the object came in one plain PUT
    is_sure: bool = True  # False: a power cut since then may have taken its bytes


class StoredPart(NamedTuple):
    number: int
    size_in_bytes: int
    etag: str  # without quotes; the MD5 unless the store encrypts


class ObjectStore:
    """The objects of all buckets of one store."""

    def __init__(
        self,
        storage: Storage,
        *,
        attempts: int = 3,
        timeout_s: float = 60.0,
        directory: Path | None = None,
        sure_since_s: float = 0.0,
    ) -> None:
        """`directory` is where this machine has its bytes, if it has them.

        What is listed as older than `sure_since_s`, and was not synced, may have lost them.
        """
        self.storage = storage
        self.sure_since_s = sure_since_s
        self._directory = directory
        core = botocore.session.get_session()
        # Half the time of a listing would go into dates, which are not used.
        core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
        session = boto3.session.Session(
            botocore_session=core,
            aws_access_key_id=storage.access_key,
            aws_secret_access_key=storage.secret_key,
            region_name=storage.region,
        )
        # Checksums in trailers ("when_supported", the default) make chunked
        # bodies, which not every S3 server takes.
        self.client: Any = session.client(
            "s3",
            endpoint_url=storage.endpoint,
            config=Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                retries={"total_max_attempts": attempts, "mode": "standard"},
                connect_timeout=min(5.0, timeout_s),
                read_timeout=timeout_s,
                max_pool_connections=16,
                proxies={},
            ),
        )

    def sync(self) -> None:
        """Return when all that was stored is on the disk; of a store elsewhere that is its task.

        SeaweedFS hands each object to the kernel and syncs none. Raises Unreachable.
        """
        if self._directory is not None:
            try:
                sync_file_system(self._directory)
            except OSError as error:
                raise Unreachable(
                    f"what was stored cannot be brought to the disk of {self._directory}: {error}"
                ) from error

    def signer(self, expiry_seconds: int) -> Signer:
        """Return a signer of URLs that are good from now on, for so long."""
        now = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0)
        return Signer(self.storage, now=now, expiry_seconds=expiry_seconds)

    def ensure_bucket(self, bucket: str) -> None:
        """Create the bucket unless it is there."""
        with _reporting(f"bucket {bucket}"):
            try:
                self.client.head_bucket(Bucket=bucket)
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise
                self.client.create_bucket(Bucket=bucket)

    def buckets(self) -> list[str]:
        """Return the names of all buckets."""
        with _reporting("list of buckets"):
            return [bucket["Name"] for bucket in self.client.list_buckets()["Buckets"]]

    def require_bucket(self, bucket: str) -> None:
        """Raise NotFound unless the bucket is there."""
        with _reporting(f"bucket {bucket}"):
            self.client.head_bucket(Bucket=bucket)

    def date(self, bucket: str) -> str:
        """Ask for the bucket, which may be missing; return the Date that the store answers with.

        Empty if it says none. Raises Unreachable.
        """
        with _reporting(f"bucket {bucket}"):
            try:
                answer = self.client.head_bucket(Bucket=bucket)
            except ClientError as error:
                if _code(error) not in _ABSENT:
                    raise
                answer = error.response
        date: str = answer["ResponseMetadata"]["HTTPHeaders"].get("date", "")
        return date

    def iter_objects(self, bucket: str, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose keys begin with `prefix`, one request per 1,000."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=bucket, Prefix=prefix, PaginationConfig={"PageSize": PAGE}
        )
        with _reporting(f"listing of {bucket}/{prefix}"):
            for page in pages:
                for entry in page.get("Contents", ()):
                    is_sure = self._is_sure(entry["LastModified"])
                    etag = entry["ETag"].strip('"')
                    yield StoredObject(entry["Key"], entry["Size"], etag, is_sure)

    def find(self, bucket: str, key: str) -> StoredObject | None:
        """Return an object by its key, also one that a listing lacks; None if it is not there.

        Of a store that knows power cuts, where only a listing says what is sure, none is found.
        """
        if self.sure_since_s:
            return None
        try:
            with _reporting(f"{bucket}/{key}"):
                answer = self.client.head_object(Bucket=bucket, Key=key)
        except NotFound:
            return None
        return StoredObject(key, answer["ContentLength"], answer["ETag"].strip('"'))

    def is_unsure(self, bucket: str, key: str) -> bool:
        """Return whether an object is there and a power cut may have taken its bytes."""
        if not self.sure_since_s:
            return False
        return any(
            stored.key == key and not stored.is_sure for stored in self.iter_objects(bucket, key)
        )

    def _is_sure(self, modified: str) -> bool:
        """Return whether a date as the store lists it is not before the last power cut."""
        if not self.sure_since_s:
            return True
        date = datetime.datetime.fromisoformat(modified.replace("Z", "+00:00"))
        return date.timestamp() >= self.sure_since_s

    def names(self, bucket: str, prefix: str, suffix: str = "") -> list[str]:
        """Return, sorted, the texts between `prefix` and `suffix` in the keys that have both."""
        keys = (stored.key for stored in self.iter_objects(bucket, prefix))
        return sorted(
            key[len(prefix) : len(key) - len(suffix)]
            for key in keys
            if key.endswith(suffix) and len(key) > len(prefix) + len(suffix)
        )

    def read(self, bucket: str, key: str, *, limit_in_bytes: int) -> bytes:
        """Return the first `limit_in_bytes` of the object; raises NotFound."""
        with _reporting(f"{bucket}/{key}"):
            answer = self.client.get_object(Bucket=bucket, Key=key)
            with answer["Body"] as body:
                content: bytes = body.read(limit_in_bytes)
                return content

    def size(self, bucket: str, key: str) -> int:
        """Return how many bytes the object has; raises NotFound."""
        with _reporting(f"{bucket}/{key}"):
            size: int = self.client.head_object(Bucket=bucket, Key=key)["ContentLength"]
            return size

    def metadata(self, bucket: str, key: str) -> Mapping[str, str]:
        """Return the object's user metadata, names in lower case; raises NotFound."""
        with _reporting(f"{bucket}/{key}"):
            answer = self.client.head_object(Bucket=bucket, Key=key)
            return {name.lower(): value for name, value in answer["Metadata"].items()}

    def write(
        self, bucket: str, key: str, content: bytes, metadata: Mapping[str, str] | None = None
    ) -> None:
        with _reporting(f"{bucket}/{key}"):
            self.client.put_object(
                Bucket=bucket, Key=key, Body=content, Metadata=dict(metadata or {})
            )

    def copy(self, bucket: str, key: str, target: str) -> None:
        """Copy an object within the store; raises NotFound."""
        with _reporting(f"{bucket}/{key}"):
            self.client.copy_object(
                Bucket=bucket, Key=target, CopySource={"Bucket": bucket, "Key": key}
            )

    def delete(self, bucket: str, keys: Iterable[str]) -> None:
        """Delete these keys, 1,000 in a request; missing ones do not matter."""
        remaining = iter(keys)
        while batch := list(islice(remaining, PAGE)):
            with _reporting(f"deletion in {bucket}"):
                self.client.delete_objects(
                    Bucket=bucket,
                    Delete={"Objects": [{"Key": key} for key in batch], "Quiet": True},
                )

    def begin_parts(self, bucket: str, key: str, metadata: Mapping[str, str]) -> str:
        """Begin a multipart upload of an object with this metadata; return its id."""
        with _reporting(f"{bucket}/{key}"):
            answer = self.client.create_multipart_upload(
                Bucket=bucket, Key=key, Metadata=dict(metadata)
            )
            upload_id: str = answer["UploadId"]
            return upload_id

    def parts(self, bucket: str, key: str, upload_id: str) -> list[StoredPart]:
        """Return the parts that are stored for sure; raises NotFound if the upload is not there."""
        pages = self.client.get_paginator("list_parts").paginate(
            Bucket=bucket, Key=key, UploadId=upload_id
        )
        with _reporting(f"parts of {bucket}/{key}"):
            return [
                StoredPart(part["PartNumber"], part["Size"], part["ETag"].strip('"'))
                for page in pages
                for part in page.get("Parts", ())
                if self._is_sure(part["LastModified"])
            ]

    def complete_parts(self, bucket: str, key: str, upload_id: str, etags: Iterable[str]) -> None:
        """Make the object of the parts 1, 2, ...; the store refuses if one has another ETag."""
        parts = [
            {"PartNumber": number, "ETag": f'"{etag}"'} for number, etag in enumerate(etags, 1)
        ]
        with _reporting(f"{bucket}/{key}"):
            self.client.complete_multipart_upload(
                Bucket=bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": parts}
            )

    def abort_parts(self, bucket: str, key: str, upload_id: str) -> None:
        """Delete the parts; an upload that is not there does not matter."""
        with suppress(NotFound), _reporting(f"parts of {bucket}/{key}"):
            self.client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


@contextmanager
def _reporting(what: str) -> Iterator[None]:
    """Turn errors of botocore into a DserverfsError that names `what`."""
    try:
        yield
    except ClientError as error:
        detail = error.response.get("Error", {})
        if _code(error) in _ABSENT:
            raise NotFound(f"{what} is not in the store") from error
        raise Unreachable(
            f"{what}: the store refused: {detail.get('Code')} {detail.get('Message', '')}".rstrip()
        ) from error
    except BotoCoreError as error:
        raise Unreachable(f"{what}: the store does not answer ({type(error).__name__})") from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code"))
