"""`dserverfs serve migrate`: a bucket moves to another S3 server, whatever happens meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from dserverfs.base.model import identifier_of
from dserverfs.cli.main import main
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.seaweedfs import SeaweedFS
from dserverfs.server.store.signals import Signals
from dserverfs.server.store.signing import Storage
from tests.support.accounts import Account
from tests.support.child_processes import spawn
from tests.support.crash_world import _free_port
from tests.support.mount_daemons import remountable, wait_for
from tests.support.server_store import storage_of
from tests.support.servers import (
    ServerHandle,
    begin,
    complete,
    encoded,
    put_items,
    running_server,
    upload,
    upload_body,
)

BUCKET = "moved"
LARGE = 17 * 1024**2  # moves in parts
SMALL = {f"dir/{n}": random.Random(n).randbytes(n * 100) for n in range(40)}


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """The S3 server that the buckets move to."""
    # At DEBUG, the level of the tests, they fill the report of a failure with a page per request.
    for name in ("botocore", "boto3"):
        logging.getLogger(name).setLevel(logging.INFO)
    store = SeaweedFS(tmp_path_factory.mktemp("elsewhere"), bucket="first")
    with contextlib.closing(Signals()) as signals, store.running(signals):
        ready = store.wait_ready(signals)
        yield ready.storage
        ready.client.close()


@pytest.fixture
def target(elsewhere: Storage) -> Iterator[ObjectStore]:
    """The bucket there, which is empty."""
    store = ObjectStore(dataclasses.replace(elsewhere, bucket=BUCKET))
    store.ensure_bucket(BUCKET)
    store.delete(BUCKET, [stored.key for stored in store.iter_objects(BUCKET, "")])
    yield store
    store.client.close()


def settings_of(storage: Storage) -> dict[str, str]:
    return {
        f"DTOOL_S3_ENDPOINT_{storage.bucket}": storage.endpoint,
        f"DTOOL_S3_ACCESS_KEY_ID_{storage.bucket}": storage.access_key,
        f"DTOOL_S3_SECRET_ACCESS_KEY_{storage.bucket}": storage.secret_key,
        f"DTOOL_S3_DATASET_PREFIX_{storage.bucket}": storage.prefix,
    }


@pytest.fixture
def migrate(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command, to its end, on some data."""

    def run(data: Path, storage: Storage, *options: str) -> int:
        with monkeypatch.context() as patch:
            for name, value in settings_of(storage).items():
                patch.setenv(name, value)
            return main(command(data, storage.bucket, *options))

    return run


def command(data: Path, bucket: str, *options: str) -> list[str]:
    return ["serve", "--data", str(data), "migrate", f"s3://{bucket}", *options]


def contents(store: ObjectStore) -> dict[str, tuple[str, Mapping[str, str]]]:
    """Return MD5 and metadata of each object, by its key."""
    bucket, found = store.storage.bucket, {}
    for stored in store.iter_objects(bucket, ""):
        answer = store.client.get_object(Bucket=bucket, Key=stored.key)
        found[stored.key] = (hashlib.md5(answer["Body"].read()).hexdigest(), answer["Metadata"])
    return found


@contextlib.contextmanager
def embedded(server: ServerHandle) -> Iterator[ObjectStore]:
    store = ObjectStore(storage_of(server))
    yield store
    store.client.close()


def test_bucket_moves_while_it_is_written_and_mounts_go_on(
    tmp_path: Path,
    target: ObjectStore,
    migrate: Callable[..., int],
    current_user: Account,
    fuse: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bucket = target.storage.bucket
    options = ("--port", str(_free_port(random.Random())), "--bucket", bucket)
    large = {"large": random.Random(0).randbytes(LARGE)}
    with contextlib.ExitStack() as stack:
        with running_server(tmp_path / "data", *options) as server:
            one = upload(server, SMALL, name="one", tags=["goes", "stays"])
            upload(server, large, name="large")
            token = server.token
            mount = stack.enter_context(
                remountable(current_user, server.base_uri, {"DSERVER_TOKEN": token})
            )
            mount.mount("--freeze-delay", "manual")
            assert (mount.path / "one/data/dir/3").read_bytes() == SMALL["dir/3"]

            # As one that is killed with its first object there leaves it.
            target.write(bucket, f"dserverfs-migrate-probe-{'0' * 16}", b"")
            kill_when(tmp_path, target, random.Random().randrange(1, 40))
            writer = threading.Thread(target=upload_some, args=(server,))
            writer.start()
            assert migrate(tmp_path / "data", target.storage) == 0
            assert "stop it, run this again" in capsys.readouterr().out
            writer.join()
            pending = upload_body(SMALL, name="pending")
            begun = begin(server, pending)
            put_items(begun, {"dir/1": SMALL["dir/1"]})
            server.request("DELETE", f"/tags/{encoded(one)}/goes").raise_for_status()
            server.post(f"/tags/{encoded(one)}/comes").raise_for_status()
            with embedded(server) as source:
                before = contents(source)
        assert migrate(tmp_path / "data", target.storage) == 0
        out = capsys.readouterr().out
        copied, there, deleted = map(
            int, re.findall(r"(\d+)(?: objects? copied| there already| deleted)", out)
        )
        # What the writer's upload left for a moment may have been copied, and is gone as well.
        assert (copied + there, deleted >= 1) == (len(before), True)
        assert contents(target) == before

        for name, value in settings_of(target.storage).items():
            monkeypatch.setenv(name, value)
        with running_server(tmp_path / "data", *options) as server:
            assert (mount.path / "one/data/dir/9").read_bytes() == SMALL["dir/9"]
            assert (mount.path / "large/data/large").read_bytes() == large["large"]
            assert sorted(os.listdir(mount.path / "one/.dtool/tags")) == ["comes", "stays"]
            (mount.path / "later").mkdir()
            (mount.path / "later/file").write_bytes(b"after the move")
            done = current_user.dserverfs("freeze", mount.path / "later")
            assert done.returncode == 0, done.stderr
            env = {"DSERVER_TOKEN": token}
            done = current_user.dserverfs("verify", server.base_uri, env=env)
            assert done.returncode == 0, done.stdout
            begun = begin(server, pending)
            put_items(begun, SMALL)
            assert complete(server, begun["uri"]).status_code == 200


def kill_when(tmp_path: Path, target: ObjectStore, enough: int) -> None:
    """Kill a migration when so many objects have arrived."""
    bucket = target.storage.bucket
    program = [sys.executable, "-m", "dserverfs", *command(tmp_path / "data", bucket)]
    environment = {**os.environ, **settings_of(target.storage)}
    with spawn(program, env=environment, stdout=subprocess.DEVNULL) as process:
        wait_for(
            lambda: (
                process.poll() is not None
                or sum(1 for _ in target.iter_objects(bucket, "")) >= enough
            ),
            "objects arrive",
        )
        process.send_signal(signal.SIGKILL)


def upload_some(server: ServerHandle) -> None:
    for n in range(5):
        upload(server, {"a": b"%d" % n}, name=f"meanwhile-{n}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server with one dataset."""
    data = tmp_path_factory.mktemp("running") / "data"
    with running_server(data, "--bucket", BUCKET) as server:
        upload(server, SMALL, readme=b"a: 1\n", tags=["tag"])
        yield server


@pytest.fixture
def uuid(running: ServerHandle) -> str:
    """That of its dataset, of which no migration knows."""
    for record in running.data.glob("migration-*"):
        record.unlink()
    (listed,) = running.post("/uris", {}).json()
    return str(listed["uuid"])


def damage(store: Path, content: bytes) -> None:
    """Flip a bit of some content on the disk."""
    for path in store.glob("data/**/*.dat"):
        whole = path.read_bytes()
        if content in whole:
            with path.open("r+b") as file:
                file.seek(whole.index(content) + len(content) // 2)
                file.write(bytes([whole[file.tell()] ^ 1]))
            return
    raise AssertionError("the content is in no volume")


def test_damaged_object_is_named_and_the_rest_moves(
    tmp_path: Path,
    target: ObjectStore,
    running: ServerHandle,
    uuid: str,
    migrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = tmp_path / "data"  # of a server that has ended
    shutil.copytree(running.data, data, ignore=shutil.ignore_patterns("*.sock"))
    damage(data / "store", SMALL["dir/39"])

    status = migrate(data, target.storage)

    out, err = capsys.readouterr()
    key = f"{uuid}/data/{identifier_of('dir/39')}"
    assert status == 1
    assert out.startswith(f"bad: {key}: ")
    assert "not copied: 1 object, see" in err
    there = contents(target)
    assert key not in there
    assert f"dtool-{uuid}" in there
    assert len([each for each in there if "/data/" in each]) == len(SMALL) - 1
    assert migrate(data, target.storage, "--verify") == 1
    assert f"bad: {key}: it is not in " in capsys.readouterr().out


def test_prefix_of_there_is_before_all_keys_and_what_others_have_there_stays(
    running: ServerHandle,
    target: ObjectStore,
    uuid: str,
    migrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    storage = dataclasses.replace(target.storage, prefix="u/x/")
    bucket = storage.bucket
    target.write(bucket, "u/x/theirs", b"theirs")
    target.write(bucket, f"u/x/{uuid}/README.yml", b"theirs: 1\n")

    assert migrate(running.data, storage, "--dry-run") == 0
    assert len(contents(target)) == 2
    assert migrate(running.data, storage) == 1

    out, _ = capsys.readouterr()
    assert f"bad: {uuid}/README.yml: " in out
    assert "it is not written over" in out
    assert target.read(bucket, "u/x/theirs", limit_in_bytes=100) == b"theirs"
    assert target.read(bucket, f"u/x/{uuid}/README.yml", limit_in_bytes=100) == b"theirs: 1\n"
    target.delete(bucket, [f"u/x/{uuid}/README.yml"])
    assert migrate(running.data, storage) == 0
    assert target.read(bucket, f"dtool-{uuid}", limit_in_bytes=100) == b"u/x/"
    strangers = {"u/x/theirs", f"dtool-{uuid}"}
    assert all(key.startswith(f"u/x/{uuid}/") for key in contents(target).keys() - strangers)
    assert migrate(running.data, storage, "--verify") == 0

    # What a server changes there after the move is not undone.
    target.write(bucket, f"u/x/{uuid}/README.yml", b"a: 2\n")
    capsys.readouterr()
    assert migrate(running.data, storage) == 1
    assert "was changed or deleted: 1 object, such as" in capsys.readouterr().err
    assert target.read(bucket, f"u/x/{uuid}/README.yml", limit_in_bytes=100) == b"a: 2\n"


def test_copy_of_a_dataset_that_is_lost_here_is_not_deleted(
    running: ServerHandle,
    target: ObjectStore,
    uuid: str,
    migrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = upload(running, {"a": b"a"}, name="lost").rpartition("/")[2]
    assert migrate(running.data, target.storage) == 0
    before = contents(target)
    with embedded(running) as here:
        here.delete(BUCKET, [each for each in before if other in each])
    capsys.readouterr()

    assert migrate(running.data, target.storage) == 1

    assert (
        f"not in the bucket here any more: 1 dataset, such as {other}/manifest.json;"
        in capsys.readouterr().err
    )
    assert contents(target) == before
    target.delete(BUCKET, [each for each in before if other in each])
    running.request("DELETE", f"/uris/{encoded(f's3://{BUCKET}/{other}')}").raise_for_status()
    assert migrate(running.data, target.storage) == 0


def test_damage_there_is_found_by_verify(
    running: ServerHandle,
    target: ObjectStore,
    uuid: str,
    migrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert migrate(running.data, target.storage) == 0
    key = f"{uuid}/data/{identifier_of('dir/7')}"
    target.write(target.storage.bucket, key, SMALL["dir/7"][:-1] + b"x")
    (running.data / f"migration-{target.storage.bucket}.sqlite").unlink()

    assert migrate(running.data, target.storage, "--verify") == 1
    assert f"bad: {key}: " in capsys.readouterr().out
    assert migrate(running.data, target.storage) == 1
    assert f"bad: {key}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"endpoint": "http://127.0.0.1:9"}, "does not answer"),
        ({"secret_key": "wrong"}, "give keys that may do this"),
        ({"bucket": "never-made"}, "there is no base URI s3://never-made"),
        (None, "there is no such bucket; make it there"),
    ],
)
def test_target_that_cannot_be_used_is_an_error_of_one_line(
    changed: dict[str, str] | None,
    said: str,
    running: ServerHandle,
    target: ObjectStore,
    uuid: str,
    migrate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if changed is None:
        target.client.delete_bucket(Bucket=target.storage.bucket)

    status = migrate(running.data, dataclasses.replace(target.storage, **(changed or {})))  # type: ignore[arg-type]

    _, err = capsys.readouterr()
    assert status == 1
    assert said in err
    assert err.count("\n") == 1


def test_store_is_not_moved_to_itself(
    running: ServerHandle, migrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    storage = storage_of(running)
    same = storage.endpoint.replace("127.0.0.1", "localhost")

    assert migrate(running.data, dataclasses.replace(storage, endpoint=same)) == 1

    assert "is the embedded store itself" in capsys.readouterr().err


def test_nothing_is_moved_without_settings(
    running: ServerHandle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(running.data, BUCKET)) == 1
    assert f"set DTOOL_S3_ENDPOINT_{BUCKET}" in capsys.readouterr().err
