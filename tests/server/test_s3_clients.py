"""The S3 endpoints of the embedded server, as boto3 and rclone use them.

On this machine and for others, by what `dserverfs serve credentials` says.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import botocore.config
import botocore.exceptions
import pytest
import requests

from tests.support.accounts import Account
from tests.support.authority import Authority
from tests.support.directory_trees import md5_of_files
from tests.support.servers import ServerHandle, encoded, new_uuid, running_server

PART_BYTES = 5 * 1024 * 1024  # S3's least size of a part that is not the last
KEYS = (
    "plain",
    "a/b/c",
    "with space",
    "ünïcödé 文字",
    "100%25",
    "plus+and&=?",
    "~tilde",
    "/".join(["x" * 200] * 4),
)


class Told(NamedTuple):
    """What an administrator is told, and the certificate authority of the endpoint."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str
    authority: Path | None


def told_of(server: ServerHandle, endpoint: str, authority: Path | None = None) -> Told:
    """Ask as an administrator does; `endpoint` is the name of the line about it."""
    command = (sys.executable, "-m", "dserverfs", "serve", "credentials", "--data", server.data)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    told = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    return Told(told[endpoint], told["access key"], told["secret key"], told["region"], authority)


@pytest.fixture(scope="module", params=["endpoint", "endpoint for other machines"])
def told(
    request: pytest.FixtureRequest,
    server: ServerHandle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Told]:
    if request.param == "endpoint":
        server.request("PUT", f"/base-uris/{encoded('azure://account')}", {}).raise_for_status()
        yield told_of(server, request.param)
        return
    directory = tmp_path_factory.mktemp("others")
    authority = Authority(directory)
    certificate, key = authority.certify("server", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
    with running_server(
        directory / "data",
        *("--store-host", "127.0.0.1", "--store-port", port),
        *("--tls-cert", str(certificate), "--tls-key", str(key)),
    ) as for_others:
        yield told_of(for_others, request.param, authority.file)


@pytest.fixture(scope="module")
def client(told: Told) -> Iterator[Any]:
    session = boto3.session.Session(told.access_key, told.secret_key, region_name=told.region)
    client = session.client(
        "s3",
        endpoint_url=told.endpoint,
        verify=None if told.authority is None else str(told.authority),
        config=botocore.config.Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )
    yield client
    client.close()


@pytest.fixture
def bucket(client: Any) -> Iterator[str]:
    """A bucket that boto3 makes, and empties and deletes afterwards."""
    name = f"bucket-{new_uuid()}"
    client.create_bucket(Bucket=name)
    yield name
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=name):
        for found in page.get("Contents", ()):
            client.delete_object(Bucket=name, Key=found["Key"])
    client.delete_bucket(Bucket=name)
    assert not _is_there(lambda: client.head_bucket(Bucket=name))


def _is_there(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except botocore.exceptions.ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        return False
    return True


def test_bucket_is_listed_and_is_not_deleted_with_something_in_it(client: Any, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="something", Body=b"x")

    with pytest.raises(botocore.exceptions.ClientError, match="BucketNotEmpty"):
        client.delete_bucket(Bucket=bucket)

    assert bucket in {each["Name"] for each in client.list_buckets()["Buckets"]}


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
def test_object_is_put_looked_at_read_copied_and_deleted(
    client: Any, bucket: str, key: str
) -> None:
    content = key.encode() * 100
    place = {"Bucket": bucket, "Key": key}

    put = client.put_object(**place, Body=content, Metadata={"handle": "aGFuZGxl"})
    head = client.head_object(**place)
    part = client.get_object(**place, Range="bytes=100-199")
    client.copy_object(Bucket=bucket, Key="copy", CopySource=place)

    assert put["ETag"].strip('"') == head["ETag"].strip('"') == hashlib.md5(content).hexdigest()
    assert head["ContentLength"] == len(content)
    assert head["Metadata"] == {"handle": "aGFuZGxl"}
    assert part["Body"].read() == content[100:200]
    assert client.get_object(**place)["Body"].read() == content
    assert client.get_object(Bucket=bucket, Key="copy")["Body"].read() == content
    client.delete_object(**place)
    assert not _is_there(lambda: client.head_object(**place))


def test_objects_are_listed_by_pages_prefixes_and_directories(client: Any, bucket: str) -> None:
    keys = ["a/1", "a/2", "a/b/3", "c", "d/4"]
    for key in keys:
        client.put_object(Bucket=bucket, Key=key, Body=key.encode())

    def listed(**how: Any) -> tuple[list[str], list[str]]:
        pages = [*client.get_paginator("list_objects_v2").paginate(Bucket=bucket, **how)]
        return (
            [each["Key"] for page in pages for each in page.get("Contents", ())],
            [each["Prefix"] for page in pages for each in page.get("CommonPrefixes", ())],
        )

    assert listed(PaginationConfig={"PageSize": 2}) == (keys, [])
    assert listed(Prefix="a/", PaginationConfig={"PageSize": 1}) == (keys[:3], [])
    assert listed(Delimiter="/") == (["c"], ["a/", "d/"])
    assert listed(Prefix="a/", Delimiter="/") == (["a/1", "a/2"], ["a/b/"])
    assert listed(StartAfter="a/2") == (keys[2:], [])
    gone = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in keys[:3]]})
    assert {each["Key"] for each in gone["Deleted"]} == {*keys[:3]}
    assert listed() == (keys[3:], [])


def test_object_in_parts_is_whole_or_not_there(client: Any, bucket: str) -> None:
    parts = [os.urandom(PART_BYTES), os.urandom(PART_BYTES), b"the rest"]
    place = {"Bucket": bucket, "Key": "large"}
    upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}

    made = [
        {"PartNumber": n, "ETag": client.upload_part(**upload, PartNumber=n, Body=part)["ETag"]}
        for n, part in enumerate(parts, 1)
    ]

    assert [each["PartNumber"] for each in client.list_parts(**upload)["Parts"]] == [1, 2, 3]
    assert not _is_there(lambda: client.head_object(**place))
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": made})
    content = client.get_object(**place)["Body"].read()
    assert hashlib.md5(content).hexdigest() == hashlib.md5(b"".join(parts)).hexdigest()


def test_upload_in_parts_that_is_given_up_leaves_nothing(client: Any, bucket: str) -> None:
    place = {"Bucket": bucket, "Key": "given-up"}
    upload = {**place, "UploadId": client.create_multipart_upload(**place)["UploadId"]}
    client.upload_part(**upload, PartNumber=1, Body=b"part")

    client.abort_multipart_upload(**upload)

    assert not _is_there(lambda: client.head_object(**place))
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


def test_signed_urls_of_boto3_put_and_get_until_they_are_changed(
    client: Any, bucket: str, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    if told.authority is not None:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(told.authority))
    place = {"Bucket": bucket, "Key": "signed/ü 1"}
    put = client.generate_presigned_url("put_object", Params=place, ExpiresIn=60)
    get = client.generate_presigned_url("get_object", Params=place, ExpiresIn=60)

    assert requests.put(put, data=b"by URL", timeout=30).status_code == 200
    assert requests.get(get, timeout=30).content == b"by URL"
    assert requests.put(get, data=b"x", timeout=30).status_code == 403
    assert requests.get(get.replace("signed/", "signed2/"), timeout=30).status_code == 403
    assert requests.get(get.replace("Expires=60", "Expires=6000"), timeout=30).status_code == 403


def test_rclone_mirrors_a_directory_both_ways(
    told: Told, bucket: str, current_user: Account, tmp_path: Path
) -> None:
    beside = Path(sys.executable).with_name("rclone")
    program = str(beside) if beside.exists() else shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed; it is in the extra 'bench'")
    remote = (
        f':s3,provider=SeaweedFS,access_key_id="{told.access_key}",'
        f'secret_access_key="{told.secret_key}",endpoint="{told.endpoint}":{bucket}'
    )
    source, back = tmp_path / "source", tmp_path / "back"
    (source / "a/ü b").mkdir(parents=True)
    for relpath, content in {"a/ü b/one": b"1", "a/two": b"22", "empty": b""}.items():
        (source / relpath).write_bytes(content)

    def rclone(*arguments: str | Path) -> None:
        trusting = [] if told.authority is None else ["--ca-cert", str(told.authority)]
        command = [program, "--config", "", *trusting, *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    rclone("sync", source, remote)
    rclone("check", "--download", source, remote)
    (source / "a/two").unlink()
    (source / "a/three").write_bytes(os.urandom(6 * 1024 * 1024))
    rclone("sync", "--s3-upload-cutoff", "5M", "--s3-chunk-size", "5M", source, remote)
    rclone("sync", remote, back)

    assert md5_of_files(current_user, back) == md5_of_files(current_user, source)
    assert sorted(md5_of_files(current_user, back)) == ["a/three", "a/ü b/one", "empty"]
