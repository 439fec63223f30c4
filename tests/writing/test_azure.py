"""Blobs of Azure: whole, in blocks, verified; the fake and Azurite, if it is there, alike.

Azurite is 186 MB of 374 npm packages, so it is no part of the set-up:
`npm install azurite`, with its `azurite-blob` on PATH, has these tests use it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hmac
import os
import re
import shutil
import subprocess
import urllib.parse
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from dserverfs.base.errors import ItemChanged, ProtocolError
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import Item
from dserverfs.remote.objects import Storage
from dserverfs.remote.upload_urls import UploadUrl
from dserverfs.writing.upload.azure import BlobSender, is_sas
from dserverfs.writing.upload.pieces import PieceSender
from dserverfs.writing.upload.put_retry import AnnouncedTarget, Attempts, Tally
from tests.support.child_processes import spawn
from tests.support.dtool_datasets import content_of
from tests.support.fake_azure import azure_fake
from tests.support.local_uploads import local_dataset

# Of Azurite, in its manual; the fake takes any.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
VERSION = "2020-12-06"

LIMIT = 2 * 1024 * 1024  # of one PUT, in these tests
BLOCK = 1024 * 1024


class Account:
    """Where blobs are, and SAS URLs to one container."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/{ACCOUNT}"
        self._container = f"c-{uuid.uuid4()}"
        made = requests.put(
            f"{self._url}/{self._container}?restype=container&{self._account_sas()}", timeout=30
        )
        assert made.status_code == 201, made.text

    def put_url(self, blob: str, *, life_s: float = 3600) -> str:
        """Return a URL with the right to create and write one blob."""
        end = _date(life_s)
        resource = f"/blob/{ACCOUNT}/{self._container}/{blob}"
        fields = ["cw", "", end, resource, "", "", "", VERSION, "b", *[""] * 7]
        query = {"sp": "cw", "se": end, "sv": VERSION, "sr": "b", "sig": _sign("\n".join(fields))}
        return f"{self._url}/{self._container}/{blob}?{urllib.parse.urlencode(query)}"

    def get(self, blob: str) -> requests.Response:
        url = f"{self._url}/{self._container}/{blob}?{self._account_sas()}"
        return requests.get(url, timeout=30)

    def _account_sas(self) -> str:
        end = _date(3600)
        text = "\n".join([ACCOUNT, "rwlac", "b", "sco", "", end, "", "", VERSION, "", ""])
        query = {"sp": "rwlac", "ss": "b", "srt": "sco", "se": end, "sv": VERSION}
        return urllib.parse.urlencode({**query, "sig": _sign(text)})


def _date(life_s: float) -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (now + datetime.timedelta(seconds=life_s)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sign(text: str) -> str:
    digest = hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")
    return base64.b64encode(digest).decode()


@contextlib.contextmanager
def azurite(directory: Path) -> Iterator[str]:
    program = shutil.which("azurite-blob")
    if program is None:
        pytest.skip("azurite is not installed")
    command = [
        *(program, "--blobPort", "0", "--location", str(directory)),
        *("--skipApiVersionCheck", "--disableTelemetry", "--loose"),
    ]
    with spawn(command, env={**os.environ}, cwd=directory, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(rb"listens on (http://[0-9.:]+)", line):
                yield found[1].decode()
                return
        raise AssertionError("azurite did not start")


@pytest.fixture(scope="module", params=["fake", "azurite"])
def account(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Account]:
    with contextlib.ExitStack() as stack:
        if request.param == "fake":
            yield Account(stack.enter_context(azure_fake()).url)
        else:
            yield Account(stack.enter_context(azurite(tmp_path_factory.mktemp("azurite"))))


class Fixed:
    """Targets one after the other, as they are refused."""

    def __init__(self, *urls: UploadUrl) -> None:
        self.urls = list(urls)

    def url(self) -> UploadUrl:
        return self.urls[0]

    def renew(self) -> None:
        if len(self.urls) > 1:
            del self.urls[0]


def send(dataset: LocalDataset, path: Path, target: Fixed) -> None:
    """Send the only item of a dataset."""
    (item,) = dataset.items.values()
    storage = Storage(stall_timeout_s=10)
    tally = Tally([item.size_in_bytes])
    attempts = Attempts(storage, tally)
    pieces = PieceSender(attempts, tally)
    sender = BlobSender(attempts, pieces, max_put_bytes=LIMIT, block_bytes=BLOCK)

    def on_other_content() -> None:
        raise ItemChanged("other content", relpath=item.relpath)

    with path.open("rb") as file, contextlib.closing(storage):
        sender.send(lambda: target, item, file.fileno(), on_other_content)


def described(directory: Path, content: bytes) -> tuple[LocalDataset, Path, Item]:
    dataset = local_dataset(directory, {"item": content})
    (item,) = dataset.items.values()
    return dataset, directory / "item", item


SIZES = [0, 1, LIMIT, LIMIT + 1, 3 * BLOCK, 3 * BLOCK + 17]


@pytest.mark.parametrize("size", SIZES)
def test_blob_arrives_with_its_md5_and_the_headers_of_the_server(
    account: Account, tmp_path: Path, size: int
) -> None:
    content = content_of("item", size)
    dataset, path, item = described(tmp_path, content)
    name = f"blob-{size}"
    headers = {"x-ms-meta-relpath": "item", "Content-MD5": "ignored, for we know it ourselves"}

    send(dataset, path, Fixed(UploadUrl(account.put_url(name), headers)))

    blob = account.get(name)
    assert blob.content == content
    assert blob.headers["Content-MD5"] == base64.b64encode(bytes.fromhex(item.hash)).decode()
    assert blob.headers["x-ms-meta-relpath"] == "item"


@pytest.mark.parametrize("size", [100, 3 * BLOCK])
def test_url_that_expired_is_renewed(account: Account, tmp_path: Path, size: int) -> None:
    content = content_of("item", size)
    dataset, path, _ = described(tmp_path, content)
    name = f"renewed-{size}"
    expired, good = account.put_url(name, life_s=-60), account.put_url(name)

    send(dataset, path, Fixed(UploadUrl(expired, {}), UploadUrl(good, {})))

    assert account.get(name).content == content


def test_url_that_stays_refused_is_an_error(account: Account, tmp_path: Path) -> None:
    dataset, path, _ = described(tmp_path, b"content")

    with pytest.raises(ProtocolError, match=r"403 Auth\w+, for a URL signed just now"):
        send(dataset, path, Fixed(UploadUrl(account.put_url("refused", life_s=-60), {})))


@pytest.mark.parametrize("size", [100, 3 * BLOCK])
def test_file_that_is_not_what_was_hashed_becomes_no_blob(
    account: Account, tmp_path: Path, size: int
) -> None:
    dataset, path, _ = described(tmp_path, content_of("item", size))
    with path.open("r+b") as file:
        file.write(b"other")
    name = f"changed-{size}"

    with pytest.raises(ItemChanged):
        send(dataset, path, Fixed(UploadUrl(account.put_url(name), {})))

    assert account.get(name).status_code == 404


def test_which_urls_lead_to_azure() -> None:
    assert is_sas("http://127.0.0.1:1/devstoreaccount1/c/b?sv=2020-12-06&se=x&sig=y")
    assert is_sas("https://account.blob.core.windows.net/c/b?whatever=1")
    assert not is_sas("https://bucket.s3.amazonaws.com/key?X-Amz-Signature=1")
    assert not is_sas("http://store/key")


def test_announced_target_gives_way_to_another_when_refused() -> None:
    class Twice:
        def __init__(self) -> None:
            self.given = ["one"]

        def urls(self) -> Any:
            return self.given[-1]

        def renewed(self, refused: Any) -> Any:
            self.given.append(f"not {refused}")

    target = AnnouncedTarget(Twice(), lambda urls: UploadUrl(str(urls), {}))  # type: ignore[arg-type]

    assert target.url().url == "one"
    target.renew()
    assert target.url().url == "not one"
