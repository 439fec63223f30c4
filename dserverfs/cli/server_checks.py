"""What `dserverfs doctor SERVER` asks a server and its store, each after the one it needs."""

from __future__ import annotations

import contextlib
import email.utils
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from dserverfs.base.errors import DeadlineExceeded, DserverfsError, NotConnected, ProtocolError
from dserverfs.base.limits import size_is_usable
from dserverfs.base.loopback import is_loopback
from dserverfs.base.model import Dataset, Identifier, User
from dserverfs.base.retry import Deadline
from dserverfs.cli.arguments import moment
from dserverfs.cli.findings import Check, Finding, ok, problem, warning
from dserverfs.cli.progress import size
from dserverfs.client import Remote
from dserverfs.remote.answers import Answer
from dserverfs.remote.manifest_parsing import ManifestStream
from dserverfs.remote.objects import ByteRange
from dserverfs.remote.tokens import expires_at

MAX_SKEW_S = 60.0
SOON_S = 86400.0
MAX_BASE_URIS = 5
MAX_ITEMS = 1000  # of the dataset that is looked at
MAX_READ_BYTES = 4 * 1024 * 1024
MAX_READ_S = 3.0
PIECE_BYTES = 64 * 1024


class ServerChecks:
    """The checks of one server, in their order; each ends within `timeout_s`, if it can."""

    def __init__(self, server: str, remote: Remote, timeout_s: float) -> None:
        self._server = server
        self._remote = remote
        self._timeout_s = timeout_s
        self._answer: Answer | None = None  # about its versions
        self._user: User | None = None
        self._dataset: Dataset | None = None

    def all(self) -> Iterator[Check]:
        """Yield each check; the next one after it was done, if it can be."""
        yield Check("server", self._answers)
        if self._answer is None:
            return
        yield Check("clock", self._clock)
        yield Check("routes", self._routes)
        yield Check("token", self._token)
        if self._user is None:
            return
        yield Check("rights", self._rights)
        if not self._user.search_base_uris:
            return
        yield Check("datasets", self._datasets)
        if self._dataset is None:
            return
        yield Check("signed URL", self._signed_url)
        yield Check("throughput", self._throughput)

    def _answers(self) -> Finding:
        begun_s = time.monotonic()
        answer = self._remote.transport.request(
            "GET", "/config/versions", authenticated=False, attempts=1, timeout_s=self._timeout_s
        )
        took_s = time.monotonic() - begun_s
        version = self._remote.resolver.capabilities().core_version
        self._answer = answer
        url = self._remote.resolver.server_url
        return ok(f"{url}: dservercore {version} answered in {took_s * 1000:.0f} ms")

    def _clock(self) -> Finding:
        assert self._answer is not None
        try:
            date = email.utils.parsedate_to_datetime(self._answer.headers["Date"])
        except (KeyError, ValueError):
            return warning("the server does not tell its time", "compare the clocks by hand")
        skew_s = time.time() - date.timestamp()
        if abs(skew_s) <= MAX_SKEW_S:
            return ok("as the server's")
        way = "ahead of" if skew_s > 0 else "behind"
        return warning(
            f"this machine's is {abs(skew_s):.0f} s {way} the server's",
            "let both follow a time server: times of datasets and ends of tokens are wrong",
        )

    def _routes(self) -> Finding:
        self._remote.resolver.require_signed_urls()
        known = self._remote.resolver.capabilities()
        there = {
            "many URLs at a time": known.extended,
            "changes of README, tags and annotations": known.metadata_writes,
            "uploads in parts": known.parts,
            "block hashes": known.block_hashes,
            "publishing": known.publishes,
        }
        has = ", ".join(["signed URLs", *(what for what, is_so in there.items() if is_so)])
        lacks = ", ".join(what for what, is_so in there.items() if is_so is False)
        return ok(f"it has {has}" + (f"; it lacks {lacks}" if lacks else ""))

    def _token(self) -> Finding:
        login = f"dserverfs login {self._server}"
        tokens = self._remote.tokens
        end_s = expires_at(tokens.token())
        try:
            self._user = self._remote.resolver.user()
        except DserverfsError as error:
            return problem(str(error), login)
        said = f"{tokens.describe()}, of user {self._user.username}, ends {moment(end_s)}"
        if end_s is not None and end_s - time.time() < SOON_S:
            return warning(said, f"if nothing renews it: {login}")
        return ok(said)

    def _rights(self) -> Finding:
        assert self._user is not None
        readable, writable = self._user.search_base_uris, self._user.register_base_uris
        if not readable:
            return warning("no base URI may be read", "ask the operator of the server for rights")
        return ok(f"base URIs: {len(readable)} may be read, {len(writable)} may be written")

    def _datasets(self) -> Finding:
        """Choose a dataset for what follows: not too many items, and many bytes."""
        assert self._user is not None
        found: list[Dataset] = []
        for base_uri in self._user.search_base_uris[:MAX_BASE_URIS]:
            found += self._remote.resolver.some_datasets(base_uri)
        fit = [each for each in found if 0 < (each.number_of_items or 0) <= MAX_ITEMS]
        if not fit:
            return ok(f"{len(found)} are listed, none to look at a store with")
        self._dataset = max(fit, key=lambda each: min(each.size_in_bytes or 0, MAX_READ_BYTES))
        return ok(f"{len(found)} or more are listed; looking at {self._dataset.uri}")

    def _signed_url(self) -> Finding:
        assert self._dataset is not None
        url = self._remote.resolver.metadata_urls(self._dataset).admin_metadata
        try:
            content = self._remote.storage.read_object(url, Deadline(self._timeout_s))
        except (NotConnected, DeadlineExceeded) as error:
            here = urlsplit(self._remote.resolver.server_url).hostname or ""
            return problem(str(error), _way_to_store(urlsplit(url).hostname or "", here))
        return ok(f"the store gave {len(content)} bytes of the dataset's metadata")

    def _throughput(self) -> Finding:
        assert self._dataset is not None
        identifier, item_size = self._largest_item(self._dataset)
        if not item_size:
            return ok("not measured: the items are empty")
        url = self._remote.resolver.item_url(self._dataset, identifier, lambda count: [identifier])
        taken = _Taken(min(MAX_READ_S, self._timeout_s))
        with contextlib.suppress(_TimeIsOver):
            self._remote.storage.read_range(
                url.url,
                ByteRange(0, min(MAX_READ_BYTES, item_size), item_size),
                block_size=PIECE_BYTES,
                etag=None,
                deadline=Deadline(self._timeout_s),
                on_etag=lambda etag: None,
                on_block=taken.take,
            )
        return ok(f"{size(taken.rate())} a second ({size(taken.count)} of an item)")

    def _largest_item(self, dataset: Dataset) -> tuple[Identifier, int]:
        manifest = ManifestStream()
        items = {}
        for piece in self._remote.resolver.manifest_pieces(dataset):
            items.update(manifest.feed(piece))
        items.update(manifest.close())
        sizes = {
            Identifier(identifier): entry["size_in_bytes"]
            for identifier, entry in items.items()
            if isinstance(entry, dict) and size_is_usable(entry.get("size_in_bytes"))
        }
        if not sizes:
            raise ProtocolError(f"{dataset.uri}: its manifest has no items")
        return max(sizes.items(), key=lambda item: item[1])


def _way_to_store(host: str, server: str) -> str:
    """Return what to do about a store at `host` that cannot be reached, of a server elsewhere."""
    if is_loopback(host) and not is_loopback(server):
        return (
            f"{host} is this machine: signed URLs are for the server's own. Its operator gives"
            " dserverfs serve the option --store-host, or --store-url behind a proxy"
        )
    return (
        f"open the way to {host}, such as a firewall's; signed URLs name what the option"
        " --store-url of dserverfs serve says"
    )


class _TimeIsOver(Exception):
    """Enough was read."""


class _Taken:
    """What has come, and how long that took; `take` raises _TimeIsOver after a while."""

    def __init__(self, limit_s: float) -> None:
        self._begun_s = time.monotonic()
        self._limit_s = limit_s
        self.count = 0

    def take(self, data: bytes) -> None:
        self.count += len(data)
        if time.monotonic() - self._begun_s > self._limit_s:
            raise _TimeIsOver

    def rate(self) -> float:
        """Return bytes a second."""
        return self.count / max(time.monotonic() - self._begun_s, 1e-6)
