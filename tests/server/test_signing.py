from __future__ import annotations

import dataclasses
import datetime
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from botocore.config import Config

from dserverfs.base.errors import Unsupported
from dserverfs.server.store import layout
from dserverfs.server.store.signing import Signer, Storage, bucket_of

STORAGE = Storage(
    endpoint="http://127.0.0.1:8333", access_key="AKIDEXAMPLE", secret_key="wJalr/XU+tn", bucket="b"
)
KEYS = ("dtool", "a/b c/é+~.txt", "x" * 300, "a=b&c?d#e%20")


def botocore_url(
    method: str, key: str, headers: dict[str, str], endpoint: str = STORAGE.endpoint
) -> str:
    """Sign with botocore."""
    client = boto3.session.Session(
        aws_access_key_id=STORAGE.access_key,
        aws_secret_access_key=STORAGE.secret_key,
        region_name=STORAGE.region,
    ).client(
        "s3",
        endpoint_url=endpoint,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    parameters: dict[str, object] = {"Bucket": "b", "Key": key}
    if headers:
        parameters["ContentMD5"] = headers["Content-MD5"]
        parameters["Metadata"] = {
            name.removeprefix("x-amz-meta-"): value
            for name, value in headers.items()
            if name.startswith("x-amz-meta-")
        }
    url: str = client.generate_presigned_url(method, Params=parameters, ExpiresIn=3600)
    return url


@pytest.mark.parametrize("key", KEYS)
def test_signer_signs_gets_as_botocore_does(key: str) -> None:
    theirs = botocore_url("get_object", key, {})
    ours = signer_of(theirs).get_url("b", key)

    assert ours == theirs


@pytest.mark.parametrize("key", KEYS)
def test_signer_signs_puts_with_pinned_headers_as_botocore_does(key: str) -> None:
    headers = dict(layout.item_headers("dir/é.txt", "d41d8cd98f00b204e9800998ecf8427e"))

    theirs = botocore_url("put_object", key, headers)
    ours = signer_of(theirs).put_url("b", key, headers)

    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    assert urlsplit(ours).path == urlsplit(theirs).path


def signer_of(url: str, storage: Storage = STORAGE) -> Signer:
    """Return a signer for the moment at which `url` was signed."""
    date = parse_qs(urlsplit(url).query)["X-Amz-Date"][0]
    now = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.timezone.utc)
    return Signer(storage, now=now, expiry_seconds=3600)


@pytest.mark.parametrize(
    ("endpoint", "host"),
    [
        ("https://store.example.org", "store.example.org"),
        ("https://store.example.org:443/", "store.example.org"),
        ("https://store.example.org:8443", "store.example.org:8443"),
        ("http://store.example.org:80", "store.example.org"),
        ("http://store.example.org:443", "store.example.org:443"),
        ("https://[2001:db8::1]:8443", "[2001:db8::1]:8443"),
    ],
)
def test_signer_signs_for_the_host_that_clients_reach(endpoint: str, host: str) -> None:
    """By botocore's signature for that host: without the port that is its scheme's own."""
    public = dataclasses.replace(STORAGE, public_endpoint=endpoint)
    theirs = botocore_url("get_object", KEYS[1], {}, f"{endpoint.partition(':')[0]}://{host}")

    ours = signer_of(theirs, public).get_url("b", KEYS[1])

    assert parse_qs(urlsplit(ours).query) == parse_qs(urlsplit(theirs).query)
    assert ours.startswith(f"{endpoint.rstrip('/')}/b/")


def test_storage_does_not_show_its_secret() -> None:
    assert STORAGE.secret_key not in repr(STORAGE)


@pytest.mark.parametrize(
    "base_uri", ["azure://account/container", "s3://", "s3://b/prefix", "file:///x", "b", ""]
)
def test_bucket_of_refuses_what_is_not_a_bucket(base_uri: str) -> None:
    with pytest.raises(Unsupported):
        bucket_of(base_uri)
