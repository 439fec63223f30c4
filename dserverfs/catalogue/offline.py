"""The last answers of a server, kept on disk for the time when it cannot be reached.

Used by the catalogue in the resolver's place, with the same methods for the answers
worth keeping. Access before content: an answer is kept by server and by the user that
the token names, so no user is shown what another may see; a server that says no (403)
takes its earlier answer back. Blocking and thread-safe.

On disk: a JSON file an answer, with its seal, written under another name and renamed. One
that cannot be read, is damaged, or is another's, counts as none; a disk that fails keeps
nothing.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import json
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

from dserverfs.base.clock import boottime_s
from dserverfs.base.directories import private_directory
from dserverfs.base.errors import (
    Busy,
    DserverfsError,
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    UnusableAnswer,
    UsageError,
)
from dserverfs.base.limits import is_text, parse_json, understood
from dserverfs.base.local_files import remove_if_possible
from dserverfs.base.model import UUID, Dataset, User
from dserverfs.base.retry import AWAY, AWAY_OR_EXPIRED
from dserverfs.base.sealed_files import sealed_content, write_sealed
from dserverfs.catalogue.refreshed import COMMAND, Staleness
from dserverfs.remote.api import Metadata, Resolver
from dserverfs.remote.server_index import ServerIndex

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A server that has kept one question waiting so long without an answer is not asked again
# for a while, if its last answer is known: each would take as long, which is up to 30 s.
SLOW_S = 5.0
NOT_ASKED_S = 30.0

# Part of the names on disk: answers of an earlier or later format are not read.
KEPT_FORMAT = 3
MAX_REMEMBERED = 100_000  # answers of which is known when they were asked for; 200 bytes each


class KeptAnswers:
    """The answers of a server, or its last ones while it is away."""

    def __init__(
        self,
        resolver: Resolver,
        directory: Path,
        clock_s: Callable[[], float] = boottime_s,
        now_s: Callable[[], float] = time.time,
        staleness: Staleness = COMMAND,
    ) -> None:
        """`directory` is made when it is needed; `now_s` is of the clock that processes share.

        `staleness` says whether a server whose last answer is known has all its time.
        """
        self._staleness = staleness
        self._resolver = resolver
        self._directory = directory
        self._clock_s = clock_s
        self._not_asked_until_s = 0.0
        self._taken_back: set[str] = set()  # answers that a failing disk did not delete
        self._now_s = now_s
        # When the answers of this process were asked for. What is on the disk may be older, as
        # another process kept it later, or the disk did not take ours: it is no answer then.
        self._asked_ms: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()  # over these

    def require_signed_urls(self) -> None:
        """Raise Unsupported if the server cannot sign URLs; not if it is away and was known."""
        is_known = self._load("user") is not None
        try:
            with self._asking(hurried=is_known):
                self._resolver.require_signed_urls()
        except AWAY as error:
            if not is_known:
                raise
            logger.warning("%s; what is known of it is shown", error)

    def user(self) -> User:
        """Return the token's user."""
        return self._ask("user", self._resolver.user, _user_to_json, User.from_json)

    def accepted_user(self) -> User:
        """Return the token's user; an expired token is refused, even if the user is known."""
        return self._ask("user", self._resolver.user, _user_to_json, User.from_json, AWAY)

    def present_user(self) -> User:
        """Return the token's user as the server knows it now; raises Unreachable."""
        return self._ask("user", self._resolver.user, _user_to_json, User.from_json, ())

    def datasets(self, base_uri: str) -> list[Dataset]:
        """Return every dataset below `base_uri`, oldest first."""
        return self._listed(
            _listing(base_uri), lambda: self._resolver.datasets(base_uri), AWAY_OR_EXPIRED
        )

    def accepted_datasets(self, base_uri: str) -> list[Dataset]:
        """Return what `datasets` does; an expired token is refused."""
        return self._listed(_listing(base_uri), lambda: self._resolver.datasets(base_uri), AWAY)

    def present_datasets(self, base_uri: str) -> list[Dataset]:
        """Return what `datasets` does, as the server knows it now; raises Unreachable."""
        return self._listed(_listing(base_uri), lambda: self._resolver.datasets(base_uri), ())

    def accepted_datasets_by_uuid(self, uuid: UUID) -> list[Dataset]:
        """Return the datasets of that uuid in all base URIs; an expired token is refused."""
        return self._listed(_of_uuid(uuid), lambda: self._resolver.datasets_by_uuid(uuid), AWAY)

    def present_datasets_by_uuid(self, uuid: UUID) -> list[Dataset]:
        """Return what the server knows now; raises Unreachable."""
        return self._listed(_of_uuid(uuid), lambda: self._resolver.datasets_by_uuid(uuid), ())

    def dataset(self, uuid: UUID, base_uri: str) -> Dataset:
        """Return one dataset; an expired token is refused.

        Raises NotFound, and PermissionDenied, which also means an unknown base URI. While
        the server is away a listing that was kept counts as well.
        """
        name = f"dataset {base_uri}/{uuid}"
        try:
            return self._ask(
                name,
                lambda: self._resolver.dataset(f"{base_uri}/{uuid}"),
                dataclasses.asdict,
                Dataset.from_json,
                AWAY,
            )
        except AWAY:
            for listing in (_of_uuid(uuid), _listing(base_uri)):
                for dataset in self._kept(listing, _datasets_from_json) or ():
                    if (dataset.uuid, dataset.base_uri) == (uuid, base_uri):
                        return dataset
            raise
        except NotAuthenticated:
            raise
        except NotFound:
            self._take_back(name)
            raise
        except PermissionDenied:
            for listing in (_of_uuid(uuid), _listing(base_uri)):
                self._take_back(listing)
            raise

    def readme(self, dataset: Dataset) -> bytes:
        """Return the content of README.yml."""
        return self._ask(
            f"readme {dataset.uri}", lambda: self._resolver.readme(dataset), _encode, _decode
        )

    def metadata(self, dataset: Dataset) -> Metadata:
        """Return what `.dtool` holds."""
        return self._ask(
            f"metadata {dataset.uri}",
            lambda: self._resolver.metadata(dataset),
            _metadata_to_json,
            _metadata_from_json,
        )

    def index(self) -> ServerIndex:
        """Return what answers as the server's index is now; nothing of it is kept."""
        return self._resolver.index

    # The last answers, whether the server is away or not; None if there is none.

    def last_user(self) -> User | None:
        return self._kept("user", User.from_json)

    def last_datasets(self, base_uri: str) -> list[Dataset] | None:
        return self._kept(_listing(base_uri), _datasets_from_json)

    def last_readme(self, dataset: Dataset) -> bytes | None:
        return self._kept(f"readme {dataset.uri}", _decode)

    def last_metadata(self, dataset: Dataset) -> Metadata | None:
        return self._kept(f"metadata {dataset.uri}", _metadata_from_json)

    def forget(self, dataset: Dataset) -> None:
        """Drop what was kept of the README and metadata of a dataset that its user has changed.

        The dataset itself stays known: it is what an offline command begins with.
        """
        now_ms = int(1000 * self._now_s())
        for kind in ("readme", "metadata"):
            self._is_newest(f"{kind} {dataset.uri}", now_ms + 1)
            self._take_back(f"{kind} {dataset.uri}")

    def drop(self, dataset: Dataset) -> None:
        """Drop everything that was kept of a dataset that is gone."""
        self.forget(dataset)
        self._take_back(f"dataset {dataset.uri}")

    def manifest_pieces(self, dataset: Dataset) -> Generator[bytes, None, None]:
        """Yield the manifest's JSON as it arrives; to keep it is the catalogue's."""
        return self._resolver.manifest_pieces(dataset)

    def dtoolcore_version(self, dataset: Dataset) -> str | None:
        """Return what the beginning of the manifest says; it is not kept."""
        return self._resolver.dtoolcore_version(dataset)

    def _listed(
        self, name: str, ask: Callable[[], list[Dataset]], unless: tuple[type[Exception], ...]
    ) -> list[Dataset]:
        return self._ask(name, ask, _datasets_to_json, _datasets_from_json, unless)

    def _ask(
        self,
        name: str,
        ask: Callable[[], T],
        to_json: Callable[[T], Any],
        from_json: Callable[[Any], T],
        unless: tuple[type[Exception], ...] = AWAY_OR_EXPIRED,
    ) -> T:
        """Return the server's answer and keep it; after the failures `unless`, the one before."""
        asked_ms = int(1000 * self._now_s())
        if unless and self._clock_s() < self._not_asked_until_s:
            kept = self._kept(name, from_json)
            if kept is not None:
                return kept
        # A mount can begin without the answer.
        hurried = self._staleness.recalls and unless == AWAY and self._load(name) is not None
        try:
            with self._asking(hurried=hurried):
                answer = ask()
        except unless:
            kept = self._kept(name, from_json)
            if kept is None:
                raise
            return kept
        except NotAuthenticated:
            raise  # an expired token takes nothing back
        except PermissionDenied:
            self._take_back(name)
            raise
        if self._is_newest(name, asked_ms):
            self._save(name, to_json(answer), asked_ms)
        return answer

    def _is_newest(self, name: str, asked_ms: int) -> bool:
        """Return whether no younger answer was shown, and none is to be; older ones count no more.

        One that was asked for before its user made a change may come, or be kept by another
        process, after it.
        """
        with self._lock:
            if asked_ms < self._asked_ms.get(name, 0):
                return False
            self._asked_ms[name] = asked_ms
            self._asked_ms.move_to_end(name)
            if len(self._asked_ms) > MAX_REMEMBERED:
                self._asked_ms.popitem(last=False)
            return True

    @contextlib.contextmanager
    def _asking(self, *, hurried: bool) -> Iterator[None]:
        """Have a question asked; after one in vain that took long, none is for a while.

        With `hurried` it is asked once and not for long; then one that is away is asked no more.
        """
        begun_s = self._clock_s()
        with contextlib.ExitStack() as stack:
            if hurried:
                stack.enter_context(self._resolver.contact.hurried())
            try:
                yield
            except AWAY as error:
                now_s = self._clock_s()
                is_away = hurried and not isinstance(error, (Busy, UnusableAnswer))
                if is_away or now_s >= begun_s + SLOW_S:
                    self._not_asked_until_s = now_s + NOT_ASKED_S
                raise

    def _kept(self, name: str, from_json: Callable[[Any], T]) -> T | None:
        """Return the answer that was kept, None if there is none that can be used."""
        kept = self._load(name)
        if kept is None:
            return None
        try:
            with understood(name):
                return from_json(kept)
        except DserverfsError as error:  # of another version
            logger.debug("a kept answer is not used: %s", error)
            return None

    def _save(self, name: str, value: Any, asked_ms: int) -> None:
        kept = {"about": self._about(name), "asked_ms": asked_ms, "value": value}
        content = json.dumps(kept).encode("ascii")
        try:
            private_directory(self._directory)  # the user may have emptied the cache
            write_sealed(self._path(name), content)
            self._taken_back.discard(name)
        except (OSError, UsageError) as error:
            logger.debug("%s: not kept: %s", name, error)

    def _take_back(self, name: str) -> None:
        if not remove_if_possible(self._path(name)):
            self._taken_back.add(name)  # it is still on disk, and must not be used

    def _load(self, name: str) -> Any:
        """Return a kept answer, None if there is none of this server and user, or an old one."""
        if name in self._taken_back:
            return None
        try:
            content = sealed_content(self._path(name))
            if content is None:
                logger.info("%s: what was kept of it is damaged, and not used", name)
                return None
            kept = parse_json(content, name)
            with understood(name):
                if kept["about"] != self._about(name):
                    return None
                # None in those of earlier versions.
                is_older = int(kept.get("asked_ms", 0)) < self._asked_ms.get(name, 0)
                return None if is_older else kept["value"]
        except (OSError, DserverfsError):
            return None

    def _about(self, name: str) -> list[str | int | None]:
        # By URL: a wrong protocol must not pass for a server that is away.
        return [KEPT_FORMAT, self._resolver.server_url, self._resolver.token_subject(), name]

    def _path(self, name: str) -> Path:
        key = hashlib.sha256(json.dumps(self._about(name)).encode()).hexdigest()
        return self._directory / f"{key[:40]}.answer"


def _listing(base_uri: str) -> str:
    return f"datasets {base_uri}"


def _of_uuid(uuid: UUID) -> str:
    return f"uuid {uuid}"


def _datasets_to_json(datasets: list[Dataset]) -> list[Any]:
    return [dataclasses.asdict(dataset) for dataset in datasets]


def _datasets_from_json(kept: Any) -> list[Dataset]:
    return [Dataset.from_json(entry) for entry in kept]


def _user_to_json(user: User) -> dict[str, Any]:
    return {
        "username": user.username,
        "is_admin": user.is_admin,
        "search_permissions_on_base_uris": list(user.search_base_uris),
        "register_permissions_on_base_uris": list(user.register_base_uris),
    }


def _metadata_to_json(metadata: Metadata) -> dict[str, Any]:
    return {
        "admin_metadata": _encode(metadata.admin_metadata),
        "tags": list(metadata.tags),
        "overlays": {name: _encode(text) for name, text in metadata.overlays.items()},
        "annotations": {name: _encode(text) for name, text in metadata.annotations.items()},
    }


def _metadata_from_json(kept: Any) -> Metadata:
    return Metadata(
        admin_metadata=_decode(kept["admin_metadata"]),
        tags=tuple(tag for tag in kept["tags"] if is_text(tag)),
        overlays={name: _decode(text) for name, text in kept["overlays"].items()},
        annotations={name: _decode(text) for name, text in kept["annotations"].items()},
    )


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _decode(text: str) -> bytes:
    return base64.b64decode(text)
