"""dtool itself makes datasets in a mount, and datasets that were frozen elsewhere are copied in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import dtoolcore
import pytest

from tests.support.accounts import Account
from tests.support.directory_trees import md5_of_files
from tests.support.dtool_datasets import SIZES, content_of, make_varied_dataset
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle
from tests.support.staged_datasets import job, status, wait_until, wait_until_gone

DTOOL = Path(sys.executable).with_name("dtool")
DELAY_S = "0.2"


@pytest.fixture(scope="module")
def base(fuse: None, current_user: Account, server: ServerHandle, token: str) -> Iterator[Path]:
    """The base URI, in which datasets are frozen soon after the last change."""
    with mounted(current_user, server.base_uri, token, "--freeze-delay", DELAY_S) as path:
        yield path


@pytest.fixture
def local(tmp_path: Path) -> Path:
    """A frozen dataset on the local disk, with a tag, an annotation and an overlay."""
    return make_varied_dataset(tmp_path, f"local-{tmp_path.name[:40]}")


def dtool(account: Account, *arguments: str | Path) -> str:
    """Run dtool as a job of its own, of which nobody is left when it returns."""
    environment = {"DTOOL_USER_FULL_NAME": "A", "EDITOR": "true"}
    done = account.run("setsid", "--wait", DTOOL, *arguments, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def described(directory: Path) -> dict[str, object]:
    """Return everything dtool knows of a dataset but its items' bytes."""
    dataset = dtoolcore.DataSet.from_uri(str(directory))
    admin = json.loads((directory / ".dtool/dtool").read_text())
    return {
        "admin": {key: admin[key] for key in admin.keys() - {"dtoolcore_version"}},
        "items": json.loads((directory / ".dtool/manifest.json").read_text())["items"],
        "readme": dataset.get_readme_content(),
        "tags": dataset.list_tags(),
        "annotations": {n: dataset.get_annotation(n) for n in dataset.list_annotation_names()},
        "overlays": {name: dataset.get_overlay(name) for name in dataset.list_overlay_names()},
    }


def test_dtool_create_add_and_freeze_make_a_dataset(
    base: Path, current_user: Account, tmp_path: Path
) -> None:
    (tmp_path / "item.bin").write_bytes(content_of("item", 100_000))

    dataset = base / "made-by-dtool-in-a-mount"
    dtool(current_user, "create", "--quiet", dataset.name, f"file://{base}")
    dtool(current_user, "add", "item", tmp_path / "item.bin", dataset)
    waiting = wait_until(
        current_user,
        dataset,
        reason="it is a proto dataset that dtool made:"
        " freeze it with dtool freeze, or remove .dtool",
    )
    assert waiting["state"] == "open"
    admin = json.loads((dataset / ".dtool/dtool").read_text())
    dtool(current_user, "freeze", f"file://{dataset}")

    found = wait_until(current_user, dataset, state="frozen")
    assert found["uuid"] == admin["uuid"]
    wait_until_gone(Path(waiting["directory"]))
    assert (dataset / "data/item.bin").read_bytes() == content_of("item", 100_000)
    assert "All good" in dtool(current_user, "verify", "--full", dataset)


def test_dtool_cp_into_the_mount(base: Path, local: Path, current_user: Account) -> None:
    dtool(current_user, "cp", local, f"file://{base}")

    copy = base / local.name
    wait_until(current_user, copy, state="frozen")
    original = described(local)
    # dtool's copies have the times at which they were made.
    assert described(copy) == {**original, "items": described(copy)["items"]}
    assert md5_of_files(current_user, copy / "data") == md5_of_files(current_user, local / "data")
    dtool(current_user, "diff", "--full", copy, local)


@pytest.mark.parametrize("options", ["-r", "-a"])
def test_a_frozen_dataset_that_is_copied_in_stays_what_it_is(
    base: Path, local: Path, current_user: Account, options: str
) -> None:
    job(current_user, f'cp {options} "$1" "$2"', local, base / f"copied{options}")

    found = wait_until(current_user, base / f"copied{options}", state="frozen")

    original = described(local)
    assert found["name"] == local.name
    assert described(base / f"copied{options}") == original
    dtool(current_user, "verify", "--full", base / f"copied{options}")


@pytest.mark.parametrize("fault", ["missing", "wrong", "more"])
def test_one_with_an_item_that_is_not_as_in_its_manifest_is_not_frozen_until_it_is(
    base: Path, local: Path, current_user: Account, fault: str
) -> None:
    item = local / "data/nested/a/b/c/deep.txt"
    content = item.read_bytes()
    if fault == "missing":
        item.unlink()
    elif fault == "wrong":
        item.write_bytes(bytes(len(content)))
    else:
        item.with_name("more").write_bytes(b"more")
    dataset = base / f"fault-{fault}"
    reason = {
        "missing": "nested/a/b/c/deep.txt: is in the manifest, but not there",
        "wrong": "nested/a/b/c/deep.txt: is not what the manifest says",
        "more": "nested/a/b/c/more: is there, but not in the manifest",
    }[fault]
    reason += "; if it was edited on purpose, rm -r its .dtool makes a new dataset of it"

    job(current_user, 'cp -r "$1" "$2"', local, dataset)
    found = wait_until(current_user, dataset, reason=reason)
    assert found["state"] == "open"
    assert reason in current_user.dserverfs("freeze", dataset).stderr
    assert status(current_user, dataset)["state"] == "open"

    item.write_bytes(content)
    if fault == "more":
        job(current_user, 'rm "$1"', dataset / "data/nested/a/b/c/more")
    else:
        job(current_user, 'cp "$1" "$2"', item, dataset / "data/nested/a/b/c/deep.txt")
    wait_until(current_user, dataset, state="frozen")
    assert len(list((dataset / "data").rglob("*.txt"))) == sum(".txt" in name for name in SIZES)
