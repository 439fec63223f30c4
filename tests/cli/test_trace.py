"""trace: what commands read from real mounts; and warm --plan, which fetches that."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.items import BLOCK_SIZE
from tests.support.accounts import Account
from tests.support.commands_here import CommandsHere
from tests.support.dtool_datasets import content_of, make_dataset
from tests.support.mounts import mounted, publish
from tests.support.servers import ServerHandle

pytest_plugins = ["tests.support.here_fixtures"]

SIZES = {"first": 5000, "second": 3 * BLOCK_SIZE, "third": 10, "empty": 0}
ITEMS = {relpath: content_of(f"traced {relpath}", size) for relpath, size in SIZES.items()}


@pytest.fixture(scope="module")
def uri(server: ServerHandle, token: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    local = make_dataset(tmp_path_factory.mktemp("local"), "traced", ITEMS)
    return publish(server.base_uri, token, tmp_path_factory.mktemp("cache"), local)[0]


@pytest.fixture(scope="module")
def dataset(fuse: None, current_user: Account, uri: str, token: str) -> Iterator[Path]:
    with mounted(current_user, uri, token) as path:
        yield path


def traced(account: Account, script: str, *, status: int = 0) -> list[dict[str, Any]]:
    """Return the lines about a shell's script."""
    output = account.home / "trace.jsonl"
    done = account.dserverfs("trace", "-o", output, "--", "sh", "-c", script)
    assert done.returncode == status, done.stderr
    assert done.stdout == "said\n"
    return [json.loads(line) for line in output.read_text().splitlines()]


def identifier_and_hash(dataset: Path, relpath: str) -> tuple[str, str]:
    items = json.loads((dataset / ".dtool/manifest.json").read_text())["items"]
    ((identifier, item),) = [pair for pair in items.items() if pair[1]["relpath"] == relpath]
    return identifier, item["hash"]


def test_items_are_told_in_the_order_of_the_first_read_with_the_bytes_of_each(
    current_user: Account, dataset: Path, uri: str
) -> None:
    data = dataset / "data"
    for name in ITEMS:
        (data / name).read_bytes()  # the kernel has the pages now, and nobody was traced

    third, second, first, empty = traced(
        current_user,
        f"cd {data}; echo said; cat third ../README.yml > ~/read; ls -l > /dev/null;"
        " dd if=second of=/dev/null bs=64K skip=16 count=1 status=none; cat first third > ~/read;"
        " cat empty; exit 3",
        status=3,
    )

    told = [item["relpath"] for item in (third, second, first, empty)]
    assert told == ["third", "second", "first", "empty"]
    assert (first["uri"], first["name"]) == (uri, "traced")
    assert (first["identifier"], first["hash"]) == identifier_and_hash(dataset, "first")
    assert (first["ranges"], first["bytes_read"]) == ([[0, 5000]], 5000)
    ((start, end),) = second["ranges"]
    assert 0 < start <= BLOCK_SIZE < end, "and a little that the kernel reads ahead"
    assert third["first_read_at"] <= second["first_read_at"] <= first["first_read_at"]
    assert (empty["ranges"], empty["first_read_at"]) == ([], None)


def test_processes_whose_parent_has_ended_are_traced(current_user: Account, dataset: Path) -> None:
    script = (
        f"setsid sh -c '(cat {dataset}/data/first > ~/orphan.new; mv ~/orphan.new ~/orphan) &';"
        " while [ ! -e ~/orphan ]; do sleep 0.02; done; rm ~/orphan; echo said"
    )

    (line,) = traced(current_user, script)

    assert line["relpath"] == "first"


def test_what_two_mounts_give_of_one_item_is_told_once(
    current_user: Account, server: ServerHandle, token: str, dataset: Path
) -> None:
    with mounted(current_user, server.base_uri, token) as base:
        (line,) = traced(
            current_user, f"cat {base}/traced/data/third {dataset}/data/third > ~/read; echo said"
        )

    assert (line["relpath"], line["ranges"]) == ("third", [[0, 10]])


def test_plan_has_the_same_bytes_fetched_elsewhere_and_no_others(
    current_user: Account,
    dataset: Path,
    here: CommandsHere,
    uri: str,
    token: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN", token)
    plan = tmp_path / "plan"
    lines = traced(
        current_user, f"cd {dataset}/data; tail -c 5 second > ~/read; cat first > ~/read; echo said"
    )
    wrong = [{**lines[0], "hash": "0" * 32}, {**lines[1], "identifier": "0" * 40}]

    plan.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before = here.run("warm", "-n", "--plan", plan)
    fetched = here.run("warm", "--plan", plan)
    after = here.run("warm", "-n", "--plan", plan)
    plan.write_text("".join(f"{json.dumps(line)}\n" for line in wrong))
    failed = here.run("warm", "--plan", plan, status=1)
    plan.write_text('{"uri": 5}\n')

    assert before[-1].startswith("would be fetched: 2 of 2 items, 1.0 MiB of 1.0 MiB")
    assert fetched[-1] == "2 items, 1.0 MiB: in the cache"
    assert after == ["would be fetched: 0 of 2 items, 0 B of 1.0 MiB"]
    assert json.loads("".join(here.run("cache", "info", "--json")))["blocks"] == 2
    hash_differs, is_missing = failed[:2]
    assert hash_differs.endswith(f"has hash {lines[0]['hash']}, the plan says {'0' * 32}")
    assert is_missing.endswith("first: is not in the dataset")
    assert f"{plan}, line 1: is no line of a trace" in here.refusal("warm", "--plan", plan)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (("sh", "-c", "kill -TERM $$"), 128 + signal.SIGTERM),
        (("no-such-command",), 127),
        (("/",), 126),
    ],
)
def test_status_is_what_a_shell_says(
    current_user: Account, dataset: Path, words: tuple[str, ...], status: int
) -> None:
    done = current_user.dserverfs("trace", "-o", "/dev/null", "--", *words)

    assert done.returncode == status
    assert "Traceback" not in done.stderr


def test_command_is_not_run_if_its_trace_can_be_written_nowhere(here: CommandsHere) -> None:
    assert "cannot be written" in here.refusal("trace", "-o", "/none/file", "--", "touch", "/none")
    assert "name the command" in here.refusal("trace", "-o", "/dev/null", "--")


READS_BY_PYTHON = """
import multiprocessing, os, sys
import dserverfs, fsspec

def in_a_child(item):
    with item.open() as file:
        file.seek(10)
        file.read(5)

if __name__ == "__main__":
    ds = dserverfs.open(sys.argv[1])
    with ds["second"].open() as file:
        file.seek(1 << 20)
        file.read(100)
    child = multiprocessing.get_context("fork").Process(target=in_a_child, args=(ds["first"],))
    child.start()
    child.join()
    path = sys.argv[1].removeprefix("dserver://") + "/data/"
    fs = fsspec.filesystem("dserver")
    assert [len(part) for part in fs.cat_ranges([path + "second"] * 2, [0, 5], [3, 9])] == [3, 4]
    ds["third"].path
    left_open = ds["empty"].open()
    another = ds["first"].open()
    another.read(2)
    print(DSERVER if (DSERVER := os.environ.get("DSERVER_TRACE_FILE")) is None else "traced")
"""


def test_items_that_python_reads_without_a_mount_are_told_and_make_a_plan(
    current_user: Account, uri: str, token: str
) -> None:
    env = {"DSERVER_TOKEN": token}
    program, output = current_user.home / "reads.py", current_user.home / "python.jsonl"
    program.write_text(READS_BY_PYTHON)

    done = current_user.dserverfs(
        "trace", "-o", output, "--", current_user.python, program, uri, env=env
    )

    assert (done.returncode, done.stdout) == (0, "traced\n"), done.stderr
    # A mount of another test may end meanwhile, or be without a daemon; nothing is read from any.
    of_mounts = ("what was read from /", "is not traced: the mount's daemon")
    said = [line for line in done.stderr.splitlines() if not any(map(line.count, of_mounts))]
    assert said == []
    told = [json.loads(line) for line in output.read_text().splitlines()]
    assert [item["relpath"] for item in told] == ["second", "first", "third", "empty"]
    ranges = [item["ranges"] for item in told]
    second = [[0, 3], [5, 9], [BLOCK_SIZE, BLOCK_SIZE + 100]]
    assert ranges == [second, [[0, 2], [10, 15]], [[0, 10]], []]
    assert [item["bytes_read"] for item in told] == [107, 7, 10, 0]
    assert {(item["uri"], item["name"]) for item in told} == {(uri, "traced")}
    cache = current_user.home / "cache-of-plan"
    warmed = current_user.dserverfs(
        "warm", "--plan", output, env={**env, "DSERVER_CACHE_DIR": str(cache)}
    )
    assert warmed.returncode == 0, warmed.stderr
    again = current_user.dserverfs(
        "warm", "--plan", output, "--dry-run", env={**env, "DSERVER_CACHE_DIR": str(cache)}
    )
    assert "0 B" in again.stdout + again.stderr


def test_program_whose_reads_cannot_be_recorded_reads_on(
    current_user: Account, uri: str, token: str
) -> None:
    script = (
        "import dserverfs, sys, os\n"
        "ds = dserverfs.open(sys.argv[1])\n"
        "print(len(ds['first'].read_bytes()), len(ds['third'].read_bytes()))"
    )
    where = current_user.home / "no-directory/read.jsonl"

    done = current_user.run(
        *(current_user.python, "-c", script, uri),
        env={"DSERVER_TOKEN": token, "DSERVER_TRACE_FILE": str(where)},
    )

    assert done.stdout == "5000 10\n"
    assert done.stderr.count("what is read is not recorded any more") == 1
