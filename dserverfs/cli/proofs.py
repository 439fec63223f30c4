"""Proofs of whole datasets: all that the store has is the manifest's; and their block hashes.

Used by `prove`. What is read goes past the cache, which would hide a fault of the stored
object. The hashes of blocks are written to a file without a name as they are made, in any
order. Blocking.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

from dserverfs.base.block_hashes import BlockHasher, has_hashes, place_of
from dserverfs.base.errors import (
    DserverfsError,
    IntegrityError,
    NotFound,
    NotStored,
    ProtocolError,
    Unsupported,
    UsageError,
)
from dserverfs.base.model import Dataset, DserverURI
from dserverfs.base.printable import counted
from dserverfs.base.progress import Progress
from dserverfs.base.retry import AWAY
from dserverfs.cli import remote_items
from dserverfs.cli.arguments import say
from dserverfs.cli.progress import ProgressLine, size
from dserverfs.cli.remote_items import RemoteItem
from dserverfs.cli.whole_items import BytesSoFar, WholeItem, for_each
from dserverfs.client import Client

# What says that an item, or the manifest, is wrong; other errors end the command.
_WRONG = (IntegrityError, NotStored, NotFound, Unsupported, ProtocolError)


class Summary:
    """How many datasets were proven."""

    def __init__(self) -> None:
        self.proven = 0
        self.wrong = 0
        self.passed_over = 0

    def text(self) -> str:
        """Return one line on the outcome."""
        parts = [f"{counted(self.proven, 'dataset')} proven"]
        if self.passed_over:
            parts.append(f"no proof needed by {self.passed_over}")
        if self.wrong:
            parts.append(f"{self.wrong} wrong")
        return ", ".join(parts)


def prove_one(client: Client, uri: DserverURI, summary: Summary) -> None:
    """Prove the dataset that a URI names; raises UsageError if it names more."""
    if uri.uuid is None:
        raise UsageError(f"{uri}: is not one dataset; --all proves all that are in it")
    (dataset,) = client.catalogue.datasets_below(uri)
    with ProgressLine() as line:
        _Proof(client, dataset, line).run(summary)


def prove_all(client: Client, uri: DserverURI, summary: Summary) -> None:
    """Prove the datasets below a URI, but those whose parts are compared when they are read.

    These have block hashes, or no item of more than one block.
    """
    datasets = client.catalogue.datasets_below(uri)
    with ProgressLine() as line:
        for number, dataset in enumerate(datasets, 1):
            line.count("looking for block hashes", number, len(datasets), "dataset")
            proof = _Proof(client, dataset, line, f"dataset {number} of {len(datasets)}, ")
            if proof.has_block_hashes() or not proof.has_large_items():
                summary.passed_over += 1
            else:
                proof.run(summary)


class _Proof:
    """The proof of one dataset."""

    def __init__(
        self, client: Client, dataset: Dataset, line: ProgressLine, where: str = ""
    ) -> None:
        self._client = client
        self._dataset = dataset
        self._line = line
        self._where = where
        self._name = str(client.catalogue.uri_of(dataset))
        self._items = self._bytes = 0
        self._wrong = 0
        self._first_wrong = ""  # with its reason
        self._has_hashes = False

    def has_block_hashes(self) -> bool:
        return self._client.block_hashes.has(self._dataset)

    def has_large_items(self) -> bool:
        return any(has_hashes(item.content.size_in_bytes) for item in self._all())

    def run(self, summary: Summary) -> None:
        """Compare all items, add the hashes of their blocks, and print a line on the outcome."""
        try:
            self._has_hashes = self.has_block_hashes()
            with tempfile.TemporaryFile() as file:
                for_each(self._work(file), self._done, self._show)
                fault = self._fault
                outcome = self._add(file) if fault is None else ""
        except DserverfsError as error:
            _raise_unless_wrong(error)
            fault = str(error)
        self._line.clear()
        if fault is not None:
            summary.wrong += 1
            say(f"wrong: {self._name}: {fault}")
            return
        summary.proven += 1
        say(f"proven: {self._name}: {counted(self._items, 'item')}, {size(self._bytes)}; {outcome}")

    def _all(self) -> Iterator[RemoteItem]:
        for relpath, content in self._client.catalogue.contents(self._dataset):
            yield RemoteItem(relpath, content)

    def _work(self, file: BinaryIO) -> Iterator[WholeItem]:
        for item in self._all():
            so_far = BytesSoFar()
            work = partial(self._compare, item, file, so_far)
            yield WholeItem(item.name, item.content.size_in_bytes, work, so_far)

    def _compare(self, item: RemoteItem, file: BinaryIO, so_far: BytesSoFar) -> None:
        """Compare an item, and its block hashes with those that there are, or write them."""
        place = item.content.hashes_place()
        if place is None:
            remote_items.compare(self._client, item, so_far)
            return
        blocks = BlockHasher()
        remote_items.compare(self._client, item, blocks, so_far)
        hashes = blocks.hashes()
        if self._has_hashes:
            number = item.content.number_of_blocks
            if self._client.block_hashes.fetch(item.content, 0, number) != hashes:
                raise IntegrityError("its block hashes are wrong, and its content is right")
            return
        os.pwrite(file.fileno(), place.head, 0)
        os.pwrite(file.fileno(), hashes, place_of(place.first))

    def _done(self, item: WholeItem, error: DserverfsError | None) -> None:
        if error is not None:
            _raise_unless_wrong(error)
            self._first_wrong = self._first_wrong or f"{item.name}: {error}"
            self._wrong += 1
        self._items += 1
        self._bytes += item.size_in_bytes

    def _show(self, bytes_under_way: int) -> None:
        self._line.progress(
            f"{self._where}proving",
            Progress(
                self._bytes + bytes_under_way,
                self._dataset.size_in_bytes or 0,
                self._items,
                self._dataset.number_of_items or 0,
            ),
        )

    @property
    def _fault(self) -> str | None:
        if not self._wrong:
            return None
        return f"{self._wrong} of {counted(self._items, 'item')}; {self._first_wrong}"

    def _add(self, file: BinaryIO) -> str:
        """Add the hashes of its blocks; return what became of them."""
        if not self.has_large_items():
            return "it needs no block hashes"
        if self._has_hashes:
            return "it has block hashes"
        if not self._client.resolver.capabilities().block_hashes:
            return "this server keeps no block hashes"
        if self._dataset.base_uri not in self._client.resolver.user().register_base_uris:
            return "block hashes not added: you may not register there"
        self._client.uploader.add_block_hashes(self._dataset.uri, file)
        return "block hashes added"


def _raise_unless_wrong(error: DserverfsError) -> None:
    """Raise an error that says nothing of the dataset."""
    if not isinstance(error, _WRONG) or isinstance(error, AWAY):
        raise error
