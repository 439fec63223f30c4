"""The state that all datasets of a process share for one server: its client.

Made when first needed, and closed when the process ends. A process that is forked begins
with its own. No object of this room keeps a session: it asks for it each time, so that it can
be pickled, and used after a fork. Thread-safe.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dserverfs.base.directories import CannotBeMade, local_directory, private_directory
from dserverfs.base.disk_space import AS_IT_IS
from dserverfs.base.dtool_layout import ANNOTATIONS, DATA, METADATA, OVERLAYS, TAGS
from dserverfs.base.errors import DserverfsError, NotFound, PermissionDenied, UsageError
from dserverfs.base.excluded import NOTHING
from dserverfs.base.hashes import Policy
from dserverfs.base.limits import is_uuid
from dserverfs.base.model import UUID, Dataset, DserverURI
from dserverfs.base.per_process import PerProcess
from dserverfs.base.printable import listed
from dserverfs.broker.proto import ProtoDataset
from dserverfs.catalogue.refreshed import COMMAND, loaded
from dserverfs.client import Client
from dserverfs.reading.item_files import ItemFiles, directory_of
from dserverfs.settings import Settings

logger = logging.getLogger(__name__)

BY_A_PROGRAM = "a Python program made it, which freezes it"


@dataclass(frozen=True)
class Access:
    """How a server is read: what a mount is told by its options."""

    server: str  # HOST or HOST:PORT
    verify: str = Policy.COMPLETE.value
    cache_directory: str | None = None  # None: as the settings say
    cache_size: int | None = None  # in bytes; None: as it is


class Session:
    """One server, read in one way."""

    def __init__(self, access: Access) -> None:
        settings = Settings.load()
        self.server = access.server
        self._dtool_cache = settings.dtool_cache_directory()
        self._own_cache: Path | None = None
        self.client = Client(
            access.server,
            settings,
            cache_directory=self._cache_directory(access, settings),
            cache_size=AS_IT_IS if access.cache_size is None else access.cache_size,
            verify=_policy(access.verify),
            staleness=COMMAND,
        ).open()
        self._lock = threading.Lock()
        self._new: dict[tuple[str, str], ProtoDataset] = {}  # by base URI and name

    def close(self) -> None:
        for dataset in self.new():
            dataset.close()
        self.client.close()
        if self._own_cache is not None:
            shutil.rmtree(self._own_cache, ignore_errors=True)

    def _cache_directory(self, access: Access, settings: Settings) -> Path:
        """Return where the cache is: of this process alone where there is no place for the user's.

        A worker of a cluster may run where the home directory cannot be written.
        """
        if access.cache_directory is not None:
            return Path(access.cache_directory)
        directory = local_directory(settings.cache_directory())
        try:
            private_directory(directory)
        except CannotBeMade:
            pass  # for now; the cache says so
        except UsageError as error:
            # Without a finalizer, which a forked process would run, too.
            self._own_cache = Path(tempfile.mkdtemp(prefix="dserverfs-"))
            logger.warning("%s; cached in %s by this process alone", error, self._own_cache)
            return self._own_cache
        return directory

    def dataset(self, uri: DserverURI) -> Dataset:
        """Return the dataset of a URI, whose last component may be its name; blocks.

        Raises NotFound, PermissionDenied, UsageError for a URI of no dataset or of several.
        """
        if uri.uuid is not None:
            found = self.client.catalogue.check(uri)
            assert found is not None
            return found
        base_uri, separator, name = (uri.base_uri or "").rpartition("/")
        if not separator or base_uri.endswith(("/", ":")):
            raise UsageError(f"{uri}: names no dataset; expected .../BUCKET/UUID or .../NAME")
        return self.named(base_uri, name)

    def base_uris(self) -> list[str]:
        """Return the base URIs in which the user may look or register; as old as a minute."""
        user = loaded(self.client.catalogue.recent_user)
        return sorted({*user.search_base_uris, *user.register_base_uris})

    def datasets(self, base_uri: str) -> Mapping[str, Dataset]:
        """Return the datasets of a base URI by their names; blocks.

        Of several that have one name, all but the first have a part of their uuid behind it.
        """
        catalogue = self.client.catalogue
        return loaded(lambda: catalogue.datasets(base_uri, frozenset()))

    def named(self, base_uri: str, name: str) -> Dataset:
        """Return the dataset of a name, or a uuid, in a base URI; raises NotFound."""
        catalogue = self.client.catalogue
        if is_uuid(name.lower()):
            return catalogue.dataset(DserverURI(self.server, base_uri, UUID(name.lower())))
        found = self.datasets(base_uri).get(name)
        if found is None:
            loaded(lambda: catalogue.renew_listing(base_uri))
            found = self.datasets(base_uri).get(name)
        if found is None:
            raise NotFound(f"{DserverURI(self.server, base_uri)}: has no dataset named {name!r}")
        return found

    def files(self, dataset: Dataset) -> ItemFiles:
        """Return a dataset's items as whole files, which dtool's commands share."""
        directory = directory_of(self._dtool_cache, self.client.catalogue.uri_of(dataset))
        client = self.client
        prepare = client.require_signed_urls
        return ItemFiles(client.reader, client.ranges, directory, prepare, client.trace)

    # Datasets that are being made

    def create(self, base_uri: str, name: str) -> ProtoDataset:
        """Return an empty new dataset; asks the server for the user's rights.

        Raises PermissionDenied, and UsageError or NameTaken for a name that it cannot have.
        """
        uri = DserverURI(self.server, base_uri)
        user = self.client.catalogue.registering_user()
        if base_uri not in user.register_base_uris:
            raise PermissionDenied(
                f"{uri}: user {user.username} has no right to register datasets there; permitted:"
                f" {listed(user.register_base_uris)}"
            )
        self.client.note_staging_directory()
        staging = self.client.staging.open()
        staged = staging.create(base_uri, name, user.username, unarmed=BY_A_PROGRAM)
        staged.excluded = NOTHING  # whatever its name is, it was put there on purpose
        proto = ProtoDataset(staged, self.client)
        for directory in (DATA, METADATA, OVERLAYS, ANNOTATIONS, TAGS):
            (staged.tree / directory).mkdir()
        with self._lock:
            self._new[base_uri, name] = proto
        return proto

    def freeze(self, proto: ProtoDataset) -> Dataset:
        """Upload and register a new dataset; blocks. It stays staged if that fails.

        So it does at Ctrl-C: the upload, which goes on in a thread, is told to stop.
        """
        try:
            dataset = proto.finish(lambda job, progress: None)
        except DserverfsError:
            raise
        except BaseException:
            self.client.freezer.stop(proto.staged)
            raise
        self._forget(proto)
        self.client.catalogue.relist(dataset.base_uri)
        return dataset

    def discard(self, proto: ProtoDataset) -> None:
        """Delete a new dataset with all that is in it; raises Frozen if it is too late."""
        proto.close()
        self.client.freezer.discard(proto.staged)
        self._forget(proto)

    def new(self) -> list[ProtoDataset]:
        """Return the datasets that this process makes."""
        with self._lock:
            return [each for each in self._new.values() if not each.staged.is_over]

    def new_named(self, base_uri: str, name: str) -> ProtoDataset | None:
        """Return the dataset of that name that this process makes."""
        with self._lock:
            found = self._new.get((base_uri, name))
            return None if found is None or found.staged.is_over else found

    def _forget(self, proto: ProtoDataset) -> None:
        with self._lock:
            self._new = {key: each for key, each in self._new.items() if each is not proto}


_sessions = PerProcess(Session)


def session_of(access: Access) -> Session:
    """Return this process' session; reads the settings, once, and asks nobody."""
    return _sessions.get(access)


def close_all() -> None:
    """End all sessions, as the end of the process does; what is asked later begins new ones."""
    _sessions.close()


def _policy(verify: str) -> Policy:
    try:
        return Policy(verify)
    except ValueError:
        words = ", ".join(policy.value for policy in Policy)
        raise UsageError(f"verify={verify!r}: must be one of {words}") from None
