"""What all peers share: the embedded server, its store, and the datasets in it.

Everything lies below one directory, which the caller removes. The server dies
with this process. Main thread only.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from benchmark.content import make_dataset
from dserverfs.base.local_dataset import LocalDataset
from dserverfs.base.model import DserverURI, Identifier
from dserverfs.client import Client
from dserverfs.server.store import die_with_parent
from dserverfs.server.store.layout import DatasetKeys
from dserverfs.server.store.signing import Signer, Storage
from dserverfs.settings import TOKEN_FILE, Settings
from dserverfs.writing.upload.item_upload import Sender

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 15
URL_LIFE_S = 3600
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
KEEP_CACHES = "DSERVERFS_BENCH_KEEP_CACHES"


@dataclass(frozen=True)
class Published:
    """A dataset on the local disk and in the store."""

    local: LocalDataset
    items: Path  # the directory of its items on the local disk
    uri: str  # dserver://HOST:PORT/s3/BUCKET/UUID
    keys: DatasetKeys


@dataclass(frozen=True)
class Sizes:
    """How much is read; the rows' titles say it."""

    large_bytes: int
    listed_items: int
    small_items: int
    random_reads: int
    distant_bytes: int
    distant_items: int
    shown_items: int  # in one directory, only listed
    image_items: int
    many_items: int  # likewise, in a dataset of its own
    many_datasets: int


class Lab:
    """A running server with the datasets that rows ask for; `open_lab` makes one."""

    def __init__(
        self, directory: Path, sizes: Sizes, base_uri: str, token_file: Path, storage: Storage
    ) -> None:
        self.directory = directory
        self.sizes = sizes
        self.base_uri = base_uri
        self.token_file = token_file
        self.storage = storage
        self._published: dict[str, Published] = {}
        self._registered: dict[str, str] = {}

    def large(self) -> Published:
        """One large item."""
        return self._dataset("large", lambda: {"large.bin": self.sizes.large_bytes})

    def foreign(self) -> Published:
        """One large item of a dataset that has no block hashes, as dtool makes it."""
        with mock.patch.object(Sender, "send_block_hashes", return_value=None):
            return self._dataset("foreign", lambda: {"foreign.bin": self.sizes.large_bytes})

    def listed(self) -> Published:
        """Many items in one directory, to be listed."""
        return self._dataset(
            "listed", lambda: {f"item-{i:06}.txt": 16 for i in range(self.sizes.listed_items)}
        )

    def small(self) -> Published:
        """Items of 4 KiB, to be read."""
        return self._dataset(
            "small", lambda: {f"item-{i:06}.bin": 4096 for i in range(self.sizes.small_items)}
        )

    def images(self) -> Published:
        """Items of 100 KiB, as a training job reads them."""
        return self._dataset(
            "images",
            lambda: {f"image-{i:06}.bin": 100 * 1024 for i in range(self.sizes.image_items)},
        )

    def four(self) -> Published:
        """Four items, together as large as the large one."""
        size = self.sizes.large_bytes // 4
        return self._dataset("four", lambda: {f"part-{i}.bin": size for i in range(4)})

    def distant_large(self) -> Published:
        return self._dataset("distant-large", lambda: {"far.bin": self.sizes.distant_bytes})

    def distant_small(self) -> Published:
        return self._dataset(
            "distant-small",
            lambda: {f"far-{i:06}.bin": 4096 for i in range(self.sizes.distant_items)},
        )

    def registered(self, name: str, register: Callable[[], str]) -> str:
        """Return the URI that `register` gave for that name, calling it the first time."""
        if name not in self._registered:
            self._registered[name] = register()
        return self._registered[name]

    @property
    def store(self) -> Path:
        """Where the store is run, with its ports and keys."""
        return self.directory / "server" / "store"

    def signed_url(self, dataset: Published, identifier: Identifier) -> str:
        now = datetime.datetime.now(datetime.timezone.utc)
        signer = Signer(self.storage, now=now, expiry_seconds=URL_LIFE_S)
        return signer.get_url(self.storage.bucket, dataset.keys.item(identifier))

    def warm_store(self) -> None:
        """Have the kernel hold all of the server's files, so that its disk is not measured."""
        buffer = bytearray(1024 * 1024)
        for path in (self.directory / "server").rglob("*"):
            # Files come and go in a database's directory, and there are sockets.
            with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def _dataset(self, name: str, sizes: Callable[[], dict[str, int]]) -> Published:
        if name not in self._published:
            print(f"making and uploading the dataset {name}", file=sys.stderr)
            sources = self.directory / "sources"
            local = make_dataset(sources, name, sizes())
            uuid = local.admin_metadata["uuid"]
            uri = DserverURI.parse(self.base_uri)
            assert uri.base_uri is not None
            settings = Settings({TOKEN_FILE: str(self.token_file)}, {})
            cache = self.directory / "upload-cache"
            with Client(uri.server, settings, cache_directory=cache) as client:
                client.uploader.upload(local, uri.base_uri)
            keys = DatasetKeys(self.storage.prefix, uuid)
            self._published[name] = Published(
                local, sources / name / "data", f"{self.base_uri}/{uuid}", keys
            )
        return self._published[name]


@contextlib.contextmanager
def open_lab(directory: Path, sizes: Sizes) -> Iterator[Lab]:
    """Run the server with its data below `directory` until the end of the block."""
    data = directory / "server"
    log = directory / "serve.log"
    command = [
        *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
        *(sys.executable, "-m", "dserverfs", "serve", "--data", str(data), "--port", "0"),
    ]
    with (
        log.open("wb") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            said = _said_when_ready(server, log)
            yield Lab(
                directory,
                sizes,
                base_uri=said["base URI"],
                token_file=Path(said["token file"]),
                storage=_storage(data, said["base URI"]),
            )
        finally:
            server.terminate()
            try:
                server.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                server.kill()


def drop_page_cache() -> bool:
    """Empty the kernel's caches of files, names and attributes; False if we may not.

    Nor if KEEP_CACHES is in the environment: the whole machine waits for that, with all tests
    that run beside those of the benchmark.
    """
    if KEEP_CACHES in os.environ:
        return False
    os.sync()  # dirty pages would stay
    try:
        DROP_CACHES.write_text("3")
    except OSError:
        return False
    return True


def _said_when_ready(server: subprocess.Popen[str], log: Path) -> dict[str, str]:
    assert server.stdout is not None
    text = ""
    deadline = time.monotonic() + START_TIMEOUT_S
    while text.count("\n") < 3:
        left_s = max(0.0, deadline - time.monotonic())
        ready, _, _ = select.select([server.stdout], [], [], left_s)
        part = os.read(server.stdout.fileno(), 4096).decode() if ready else ""
        if not part:
            raise RuntimeError(f"dserverfs serve did not start: {log.read_text()}")
        text += part
    return {name: value for name, _, value in (line.partition(": ") for line in text.splitlines())}


def _storage(data: Path, base_uri: str) -> Storage:
    """Return the store with its credentials, which `serve` keeps to itself and peers need."""
    ports = json.loads((data / "store" / "ports.json").read_text())
    config = json.loads((data / "store" / "s3.json").read_text())
    credentials = config["identities"][0]["credentials"][0]
    return Storage(
        endpoint=f"http://127.0.0.1:{ports['s3.port']}",
        access_key=credentials["accessKey"],
        secret_key=credentials["secretKey"],
        bucket=base_uri.rpartition("/")[2],
    )
