"""What `dserverfs doctor SERVER` asks a server and its store, each after the one it needs."""

from __future__ import annotations

import contextlib
import email.utils
import time
import urllib.parse
from collections.abc import Callable, Iterator

from dserverfs.base.errors import DeadlineExceeded, DserverfsError, NotConnected, ProtocolError
from dserverfs.base.limits import size_is_usable
from dserverfs.base.loopback import is_loopback
from dserverfs.base.model import Dataset, Identifier, User
from dserverfs.base.retry import Deadline, Retries
from dserverfs.cli.arguments import moment
from dserverfs.cli.findings import Check, Finding, ok, problem, warning
from dserverfs.cli.progress import size
from dserverfs.client import Remote
from dserverfs.remote.addresses import addresses_of, only
from dserverfs.remote.answers import Answer
from dserverfs.remote.manifest_parsing import ManifestStream
from dserverfs.remote.objects import ByteRange, Storage
from dserverfs.remote.tokens import expires_at
from dserverfs.remote.trust import proxy_for

MAX_SKEW_S = 60.0
SOON_S = 86400.0
MAX_BASE_URIS = 5
MAX_ITEMS = 1000  # of the dataset that is looked at
MAX_READ_BYTES = 4 * 1024 * 1024
MAX_READ_S = 3.0
PIECE_BYTES = 64 * 1024
SHARE = 0.8  # of the time, for all addresses of a host


class ServerChecks:
    """The checks of one server, in their order; each ends within `timeout_s`, if it can."""

    def __init__(self, server: str, remote: Remote, timeout_s: float) -> None:
        self._server = server
        self._remote = remote
        self._timeout_s = timeout_s
        self._answer: Answer | None = None  # about its versions
        self._user: User | None = None
        self._dataset: Dataset | None = None
        self._store_url: str | None = None  # signed; to be shown to nobody
        self._item: tuple[Identifier, int] | None = None  # its largest, with the size

    def all(self) -> Iterator[Check]:
        """Yield each check; the next one after it was done, if it can be."""
        yield Check("server", self._answers)
        if self._answer is None:
            return
        yield Check("addresses", self._server_addresses)
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
        if self._store_url is not None:
            yield Check("addresses of the store", self._store_addresses)
        yield Check("throughput", self._throughput)
        if self._remote.site_cache is not None:
            yield Check("site cache", self._site_cache)

    def _answers(self) -> Finding:
        begun_s = time.monotonic()
        answer = self._remote.transport.request(
            "GET",
            "/config/versions",
            authenticated=False,
            attempts=2,  # the second at another address, if there is one
            timeout_s=self._timeout_s,
        )
        took_s = time.monotonic() - begun_s
        version = self._remote.resolver.capabilities().core_version
        self._answer = answer
        url = self._remote.resolver.server_url
        return ok(f"{url}: dservercore {version} answered in {took_s * 1000:.0f} ms")

    def _server_addresses(self) -> Finding:
        transport = self._remote.transport

        def ask(timeout_s: float) -> None:
            transport.request(
                "GET", "/config/versions", authenticated=False, attempts=1, timeout_s=timeout_s
            )

        return self._each_address(transport.base_url, ask)

    def _store_addresses(self) -> Finding:
        url = self._store_url
        assert url is not None
        storage = self._remote.storage
        return self._each_address(
            url, lambda timeout_s: storage.read_object(url, Deadline(timeout_s))
        )

    def _each_address(self, url: str, ask: Callable[[float], object]) -> Finding:
        """Ask each address of a host; `ask` has so many seconds, and raises what went wrong."""
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname or ""
        if proxy_for(url) is not None:
            return ok(f"{host} is asked by way of a proxy")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        addresses = addresses_of(host, port, self._timeout_s)
        # Of this machine's name the server needs to have one: 127.0.0.1 or ::1.
        if len(addresses) == 1 or is_loopback(host):
            return ok(f"{host} is at {addresses[0]}")
        failures = {}
        for address in addresses:
            try:
                with only(address):
                    ask(self._timeout_s / len(addresses) * SHARE)
            except DserverfsError as error:
                failures[address] = str(error)
        if not failures:
            return ok(f"{host}: all {len(addresses)} addresses answer")
        said = ", ".join(f"{address} ({why})" for address, why in failures.items())
        if len(failures) == len(addresses):
            return problem(f"{host}: none of {len(addresses)} addresses answers: {said}")
        do = "does" if len(failures) == 1 else "do"
        return warning(
            f"{host}: {len(failures)} of {len(addresses)} addresses {do} not answer: {said}",
            "the others are used, after a wait now and then; tell the operator of the server",
        )

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
            content = Retries(Deadline(self._timeout_s), attempts=2).run(
                lambda limit: self._remote.storage.read_object(url, limit)
            )
        except (NotConnected, DeadlineExceeded) as error:
            here = urllib.parse.urlsplit(self._remote.resolver.server_url).hostname or ""
            there = urllib.parse.urlsplit(url).hostname or ""
            return problem(str(error), _way_to_store(there, here))
        self._store_url = url
        return ok(f"the store gave {len(content)} bytes of the dataset's metadata")

    def _throughput(self) -> Finding:
        taken = self._read(self._remote.storage)
        if taken is None:
            return ok("not measured: the items are empty")
        return ok(f"{size(taken.rate())} a second ({size(taken.count)} of an item)")

    def _site_cache(self) -> Finding:
        near = self._remote.site_cache
        assert near is not None
        taken = self._read(self._remote.storage.behind(near))
        if taken is None:
            return ok(f"{near.url}: not asked: the items are empty")
        if near.state().requests:
            return ok(f"{near.url}: {size(taken.rate())} a second ({size(taken.count)})")
        return warning(f"{near.url}: items come from the store itself", "dserverfs help site_cache")

    def _read(self, storage: Storage) -> _Taken | None:
        """Read the beginning of the dataset's largest item; return None if all are empty."""
        assert self._dataset is not None
        if self._item is None:
            self._item = self._largest_item(self._dataset)
        identifier, item_size = self._item
        if not item_size:
            return None
        url = self._remote.resolver.item_url(self._dataset, identifier, lambda count: [identifier])
        taken = _Taken(min(MAX_READ_S, self._timeout_s))
        with contextlib.suppress(_TimeIsOver):
            storage.read_range(
                url.url,
                ByteRange(0, min(MAX_READ_BYTES, item_size), item_size),
                block_size=PIECE_BYTES,
                etag=None,
                deadline=Deadline(self._timeout_s),
                on_etag=lambda etag: None,
                on_block=taken.take,
            )
        return taken

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
