"""What is said of a staged dataset that cannot be looked at: that, and not that it is empty."""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from dserverfs.cli import status_text
from dserverfs.cli.discard import _question
from dserverfs.tree.description import of_staged
from dserverfs.writing.staging.dataset import StagedDataset

pytest_plugins = ["tests.support.staging_fixtures"]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Errnos that a look at a directory ends with, the last of them next; then it can be read."""
    errors: list[int] = []
    scandir = os.scandir

    def failing(path: Any) -> Any:
        if errors:
            number = errors.pop()
            raise OSError(number, os.strerror(number), path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    return errors


@pytest.fixture
def written(staged: StagedDataset) -> StagedDataset:
    (staged.tree / "deep").mkdir()
    (staged.tree / "deep/file").write_bytes(b"12345")
    return staged


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT])
def test_files_that_cannot_be_counted_are_not_none(
    written: StagedDataset, looks: list[int], number: int
) -> None:
    looks[:] = [number] * 10
    facts = of_staged(written, None)

    assert facts["number_of_items"] is facts["size_in_bytes"] is None
    reason = f"its files cannot be counted: {written.tree}: {os.strerror(number)}"
    assert facts["not_counted"].rstrip("/").replace("/: ", ": ") == reason
    shown = "\n".join(status_text._staged(facts))
    assert "items that cannot be counted" in shown
    assert facts["not_counted"] in shown
    assert "not_counted: " in "\n".join(status_text.of_path(facts))
    assert "with items that cannot be counted" in str(_question(written.tree, facts))


def test_files_that_come_and_go_are_counted_again(written: StagedDataset, looks: list[int]) -> None:
    looks[:] = [errno.ENOENT] * 3

    facts = of_staged(written, None)

    assert (facts["number_of_items"], facts["size_in_bytes"]) == (1, 5)
