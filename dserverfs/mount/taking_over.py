"""What a daemon leaves to the one that takes its place, and what it has from the one before.

Used by the mount. With a channel, all inode numbers are in a journal, and so the next daemon shows
the same files by them. Only a daemon in the background leaves a recipe for another one: one in the
foreground is its service manager's, and a given device is the program's that mounted it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from concurrent.futures import Future
from typing import NamedTuple

from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.model import Dataset
from dserverfs.base.printable import counted
from dserverfs.mount.channel.link import Link
from dserverfs.mount.channel.succession import Recipe
from dserverfs.mount.launcher import MountOptions
from dserverfs.settings import STARTED_IN
from dserverfs.tree import number_journal
from dserverfs.tree.mount_tree import Tree
from dserverfs.tree.number_journal import NOTHING, Known, NumberJournal
from dserverfs.tree.slots import first_dataset
from dserverfs.writing.edits.edits import DatasetEdits
from dserverfs.writing.edits.view import GivenNumbers
from dserverfs.writing.staging.area import Staging

logger = logging.getLogger(__name__)

_EDITED = "edited"  # the kind of the numbers of files that are changed


class Numbers(NamedTuple):
    """The inode numbers of a mount, while it begins: what is known may take up much memory."""

    journal: NumberJournal
    known: Known  # of the daemon before; empty in the first
    mounted_ns: int

    @classmethod
    def of(cls, channel: Link | None) -> Numbers:
        """Return those of a mount that begins or goes on; raises ProtocolError."""
        if channel is None:
            return cls(NOTHING, {}, time.time_ns())
        known: Known = {}
        mounted_ns = time.time_ns()
        if channel.is_inherited:
            known = number_journal.known(channel.take_numbers())
            mounted_ns = number_journal.mounted_ns(known)
        return cls(NumberJournal.create(mounted_ns), known, mounted_ns)

    def of_edits(self) -> GivenNumbers:
        """Return those of files that are changed in frozen datasets."""
        known = self.known.items()
        before = {prefix[1]: paths for prefix, paths in known if prefix[:1] == (_EDITED,)}
        note = self.journal.of(_EDITED)
        return GivenNumbers(lambda uri, number, path: note(uri, number, value=path), before)

    def restore(self, tree: Tree) -> None:
        """Give a tree the numbers of the daemon before; raises DserverfsError and OSError."""
        if self.known:
            tree.restore(self.known)


def shown_dataset(
    numbers: Numbers, options: MountOptions, only: Future[Dataset | None]
) -> Dataset | None:
    """Return the dataset that a mount shows, if it shows one; raises DserverfsError.

    A daemon that takes another's place goes on with what that one knew, whatever the server says
    or the token is worth just now.
    """
    try:
        return only.result()
    except DserverfsError as error:
        if not numbers.known:
            raise
        logger.warning("%s: the mount goes on with what is known: %s", options.path, error)
        if options.uri.uuid is None:
            return None
        return first_dataset(numbers.known)


def recipe(options: MountOptions) -> Recipe | None:
    """Return how another daemon is started; None of a mount that is to end with this one.

    Called before this process leaves the directory that it was started in.
    """
    if not options.successor or options.given is not None:
        return None
    environment = dict(os.environ)
    with contextlib.suppress(OSError):  # it is gone, and no path counted from it
        environment.setdefault(STARTED_IN, os.getcwd())
    return Recipe(options.successor, environment, options.log)


class Replacement:
    """Has another daemon take the place of this one, which lives."""

    def __init__(
        self,
        options: MountOptions,
        channel: Link | None,
        staging: Staging | None,
        edits: DatasetEdits,
    ) -> None:
        self._options = options
        self._channel = channel
        self._staging = staging
        self._edits = edits
        self.has_begun = False

    def begin(self) -> None:
        """Have all requests wait for the other daemon; blocks. The caller ends this one then.

        Raises UsageError if there can be none, or a file is open for writing: it would be lost.
        """
        channel = self._channel
        if channel is None:
            raise UsageError("it has no channel: unmount it, and mount it without --channel off")
        if recipe(self._options) is None:
            raise UsageError(
                "it is served in the foreground: restart its service, or mount it anew"
            )
        if not channel.hold():
            raise UsageError("changes are under way: try again when they are done")
        if writers := self._writers():
            channel.let_go()
            raise UsageError(
                f"open for writing in it: {counted(writers, 'file')}; close what writes, and try"
                " again"
            )
        self.has_begun = True

    def _writers(self) -> int:
        staged = [] if self._staging is None else self._staging.known()
        return sum(each.writers for each in staged) + self._edits.writers()
