"""One file of a staged dataset, read and written at random, is what a file in memory is."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.support.accounts import Account
from tests.support.file_exerciser import FileExerciser

pytest_plugins = ["tests.support.mount_fixtures"]

OPERATIONS = 3000
# The same operations in every run; `scripts/soak --part one-file` takes others.
SEED = 7


def test_file_read_and_written_at_random_is_what_it_must_be_and_is_frozen_so(
    base: Path, current_user: Account
) -> None:
    dataset = base / "one-file"
    dataset.mkdir()
    exerciser = FileExerciser(dataset / "item", SEED)

    md5 = exerciser.run(OPERATIONS)
    frozen = current_user.dserverfs("freeze", dataset)

    assert frozen.returncode == 0, frozen.stderr
    manifest = json.loads((dataset / ".dtool/manifest.json").read_text())
    (item,) = manifest["items"].values()
    assert item["hash"] == md5
    read = FileExerciser(dataset / "data/item", SEED, exerciser.content).run(OPERATIONS // 5)
    assert read == md5 == hashlib.md5(exerciser.content).hexdigest()
    kinds = {*exerciser.done}
    assert len(kinds) >= 16, f"not all kinds of operations were done: {sorted(kinds)}"
