"""The broker answers as the mount does, with its server there and with its server away."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dserverfs.base.items import BLOCK_SIZE
from tests.support import accounts
from tests.support.accounts import Account
from tests.support.dtool_commands import dtool_of
from tests.support.dtool_datasets import README, content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.servers import running_server

NAME = "known"
ITEMS = {
    "seen": b"seen",
    "empty": b"",
    # So large that the broker fetches it past the cache of blocks.
    "large": content_of("large", 8 * BLOCK_SIZE + 1),
}
UNSEEN = "unseen"
AWAY = "cannot be reached"

ASK = """
import dtoolcore, hashlib, json, pathlib, sys
base, uuid, *relpaths = sys.argv[1:]
server = "/".join(base.split("/")[:3])

def answer(ask):
    try:
        return ask()
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def opened():
    return dtoolcore.DataSet.from_uri(f"{base}/{uuid}")

def content(relpath):
    path = opened().item_content_abspath(dtoolcore.utils.generate_identifier(relpath))
    return hashlib.md5(pathlib.Path(path).read_bytes()).hexdigest()

def of_each(names, get):
    return {name: get(name) for name in names}

print(json.dumps({
    "name": answer(lambda: opened().name),
    "name by uuid": answer(lambda: dtoolcore.DataSet.from_uri(f"{server}/{uuid}").name),
    "names": answer(lambda: [each.name for each in dtoolcore.iter_datasets_in_base_uri(base)]),
    "admin metadata": answer(lambda: dict(opened()._admin_metadata)),
    "README": answer(lambda: opened().get_readme_content()),
    "tags": answer(lambda: opened().list_tags()),
    "annotations": answer(
        lambda: of_each(opened().list_annotation_names(), opened().get_annotation)
    ),
    "overlays": answer(lambda: of_each(opened().list_overlay_names(), opened().get_overlay)),
    "manifest": answer(lambda: opened()._manifest),
    **{f"item {relpath}": answer(lambda: content(relpath)) for relpath in relpaths},
}))
"""
SITUATIONS = [
    "mount, server there",
    "broker, server there",
    "mount, server away",
    "broker, server away",
    "broker after a mount, server away",
]
QUESTIONS = [
    *("name", "name by uuid", "names", "admin metadata", "README", "tags"),
    *("annotations", "overlays", "manifest", *(f"item {relpath}" for relpath in ITEMS)),
]
# Commands about the base URI, the dataset or a proto dataset, and what they then say.
REFUSED = [
    (("create", "new", "BASE"), "no dataset can be created while"),
    (("freeze", "PROTO"), "cannot be frozen, and stays a proto dataset, while"),
    (("tag", "set", "URI", "new"), "tags/new cannot be changed while"),
    (("tag", "delete", "URI", "testing"), "tags/testing cannot be deleted while"),
    (("annotation", "set", "URI", "answer", "1"), "answer.json cannot be changed while"),
    (("readme", "write", "URI", "readme.yml"), "README.yml cannot be changed while"),
    (("name", "URI", "another"), "the name cannot be changed while"),
    (("publish", "URI"), "cannot be published while"),
    (("verify", "URI"), "the stored items cannot be compared while"),
]


class Asked(NamedTuple):
    """The answers of one server, there and away."""

    right: Mapping[str, Any]
    answers: Mapping[str, Mapping[str, Any]]  # by situation
    refusals: Mapping[tuple[str, ...], str]  # by command, with the server away


@pytest.fixture(scope="module")
def asked(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Ask mount and broker all questions, stop the server and its store, and ask them again."""
    scratch = tmp_path_factory.mktemp("scratch")
    local = make_dataset(scratch, NAME, {**ITEMS, UNSEEN: b"unseen"})
    by_mount, by_broker = (accounts.current(tmp_path_factory.mktemp(n)) for n in ("m", "b"))
    answers = {}
    with running_server(tmp_path_factory.mktemp("server") / "data") as server:
        base, token = server.base_uri, server.token
        uri = publish(base, token, scratch / "cache", local)[0]
        answers["mount, server there"] = ask_mounts(by_mount, uri, token, *ITEMS)
        answers["broker, server there"] = ask_broker(by_broker, uri, token, *ITEMS)
        dtool = dtool_of(by_broker.home, token)
        proto = dtool.output("create", "-q", "begun", base).strip()
    # All at once: most of their time they wait for a server that is away.
    away = {
        "mount, server away": (ask_mounts, by_mount),
        "broker, server away": (ask_broker, by_broker),
        "broker after a mount, server away": (ask_broker, by_mount),
    }
    (dtool.home / "readme.yml").write_text("---\na: 1\n")
    uris = {"BASE": base, "URI": uri, "PROTO": proto}
    with ThreadPoolExecutor(len(away) + len(REFUSED)) as threads:
        asking = {
            situation: threads.submit(ask, account, uri, token, *ITEMS, UNSEEN)
            for situation, (ask, account) in away.items()
        }
        refusing = {
            command: threads.submit(dtool.refusal, *(uris.get(word, word) for word in command))
            for command, _ in REFUSED
        }
        answers |= {situation: answer.result() for situation, answer in asking.items()}
        refusals = {command: line.result() for command, line in refusing.items()}
    return Asked(right_answers(local), answers, refusals)


def right_answers(local: Path) -> Mapping[str, Any]:
    """Return what the local dataset says that was published."""
    metadata = local / ".dtool"
    return {
        "name": NAME,
        "name by uuid": NAME,
        "names": [NAME],
        "admin metadata": json.loads((metadata / "dtool").read_text()),
        "README": README,
        "tags": ["testing"],
        "annotations": json_files(metadata / "annotations"),
        "overlays": json_files(metadata / "overlays"),
        "manifest": json.loads((metadata / "manifest.json").read_text()),
        **{f"item {relpath}": digest(content) for relpath, content in ITEMS.items()},
    }


def ask_broker(account: Account, uri: str, token: str, *relpaths: str) -> Mapping[str, Any]:
    base, _, uuid = uri.rpartition("/")
    done = subprocess.run(
        [sys.executable, "-c", ASK, base, uuid, *relpaths],
        env=dict(dtool_of(account.home, token).environment),
        cwd=account.home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    answers: Mapping[str, Any] = json.loads(done.stdout)
    return answers


def ask_mounts(account: Account, uri: str, token: str, *relpaths: str) -> Mapping[str, Any]:
    base, _, uuid = uri.rpartition("/")
    with mounted(account, f"{'/'.join(base.split('/')[:3])}/{uuid}", token) as path:
        by_uuid = json.loads((path / ".dtool/dtool").read_text())["name"]
    with mounted(account, base, token) as path:
        dataset = path / os.listdir(path)[0]
        return {
            "name": json.loads((dataset / ".dtool/dtool").read_text())["name"],
            "name by uuid": by_uuid,
            "names": os.listdir(path),
            "admin metadata": json.loads((dataset / ".dtool/dtool").read_text()),
            "README": (dataset / "README.yml").read_text(),
            "tags": os.listdir(dataset / ".dtool/tags"),
            "annotations": json_files(dataset / ".dtool/annotations"),
            "overlays": json_files(dataset / ".dtool/overlays"),
            "manifest": json.loads((dataset / ".dtool/manifest.json").read_text()),
            **{f"item {relpath}": digest_of(dataset / "data" / relpath) for relpath in relpaths},
        }


def json_files(directory: Path) -> Mapping[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in directory.iterdir()}


def digest_of(path: Path) -> str:
    """Return the hash of a file's content, or what the attempt to read it gives."""
    try:
        return digest(path.read_bytes())
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def digest(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.mark.parametrize("situation", SITUATIONS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_mount_and_broker_give_the_same_answers(
    asked: Asked, question: str, situation: str
) -> None:
    found, right = asked.answers[situation][question], asked.right[question]

    if question == "admin metadata":  # dates are the server's, to a microsecond
        found, right = ({**each, "created_at": 0, "frozen_at": 0} for each in (found, right))
    assert found == right


@pytest.mark.parametrize("situation", [name for name in SITUATIONS if "away" in name])
def test_item_that_was_never_read_cannot_be_read_while_the_server_is_away(
    asked: Asked, situation: str
) -> None:
    answer = asked.answers[situation][f"item {UNSEEN}"]

    assert AWAY in answer or "No route to host" in answer


@pytest.mark.parametrize(
    ("command", "said"),
    REFUSED,
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_command_that_needs_the_server_says_so_while_it_is_away(
    asked: Asked, command: tuple[str, ...], said: str
) -> None:
    line = asked.refusals[command]

    assert said in line
    assert AWAY in line
