"""Faults and operations: each operation meets each fault, once and for good.

A cell is an operation on a place while a plan of a front does one thing wrong. Its outcome
is what the user is told, and whether all was well again without mounting anew.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from dserverfs.base import retry
from dserverfs.writing.upload import put_retry
from tests.support import front_faults as faults
from tests.support.dtool_datasets import make_dataset
from tests.support.fault_world import (
    PARTS_FROM,
    README,
    RECOVERY_S,
    Failed,
    Place,
    World,
    wait_until,
)
from tests.support.front import Fault, Plan, for_good, once
from tests.support.front_faults import errs, refuses, says
from tests.support.staged_states import staged_states

OK = "ok"
TOLD = "told"  # by a command, in one line
LATER = "later"  # kept, and sent by itself when all is well
AGAIN = "again"  # kept, and sent when the user says so
DAY_S = 86400.0

SERVER_FAULTS: Mapping[str, Fault] = {
    "401, token expired": errs(401, msg="Token has expired"),
    "403, right revoked": errs(403, code=403, status="Forbidden"),
    "403, page of a proxy": says(403),
    "404, page of a proxy": says(404),
    "429, Retry-After": says(429, Retry_After="1"),
    "500": errs(500, code=500, status="Internal Server Error"),
    "502, page of a proxy": says(502),
    "503, for an hour": says(503, Retry_After="3600"),
    "clock a day ahead": faults.another_date(DAY_S),
    "clock a day behind": faults.another_date(-DAY_S),
    "no first byte": faults.stall,
    "trickled head": faults.trickled_head,
    "trickled body": faults.trickled_body,
    "stall in the body": faults.stall_in_body,
    "truncated body": faults.cut,
    "body a byte short": faults.too_short,
    "body a byte long": faults.says_more,
    "bytes after the body": faults.too_long,
    "Content-Encoding": faults.says_encoded,
    "reset before the answer": faults.reset,
    "reset after it was done": faults.lose_answer,
    "redirect elsewhere": says(302, Location=faults.ELSEWHERE),
    "200, page of a proxy": says(200),
}
STORE_FAULTS: Mapping[str, Fault] = {
    "403, URL expired": refuses(403, "AccessDenied", "Request has expired"),
    "403, key revoked": refuses(403, "InvalidAccessKeyId"),
    "403, clock skew": refuses(403, "RequestTimeTooSkewed"),
    "401": refuses(401, "Unauthorized"),
    "404, page of a proxy": says(404),
    "404, object lost": refuses(404, "NoSuchKey"),
    "429, Retry-After": refuses(429, "TooManyRequests", Retry_After="1"),
    "500": refuses(500, "InternalError"),
    "502, page of a proxy": says(502),
    "503, for an hour": refuses(503, "SlowDown", Retry_After="3600"),
    "no first byte": faults.stall,
    "trickled head": faults.trickled_head,
    "trickled body": faults.trickled_body,
    "stall in the body": faults.stall_in_body,
    "truncated body": faults.cut,
    "body a byte short": faults.too_short,
    "body a byte long": faults.says_more,
    "bytes after the body": faults.too_long,
    "200 to a range": faults.ignore_range,
    "other bytes": faults.other_bytes,
    "Content-Encoding": faults.says_encoded,
    "reset before the answer": faults.reset,
    "reset after it was done": faults.lose_answer,
    "redirect elsewhere": says(302, Location=faults.ELSEWHERE),
    "200, page of a proxy": says(200),
}
FAULTS = {"server": SERVER_FAULTS, "store": STORE_FAULTS}


class Wrong(AssertionError):
    """An operation succeeded with something else than the right bytes."""


def require(is_right: bool, what: str) -> None:
    if not is_right:
        raise Wrong(what)


# What is read through the mount


def listing(place: Place) -> None:
    require(os.listdir(place.path) == ["read"], "the listing")


def manifest(place: Place) -> None:
    require(sorted(os.listdir(place.dataset_path / "data")) == ["a", "b", "c", "d"], "the items")


def readme(place: Place) -> None:
    require((place.dataset_path / "README.yml").read_bytes() == README, "the README")


def metadata(place: Place) -> None:
    admin = json.loads((place.dataset_path / ".dtool/dtool").read_bytes())
    require(admin["uuid"] == place.dataset, "dtool's metadata")


def item(relpath: str) -> Callable[[Place], None]:
    """Read an item in order, as `cat` does."""

    def read(place: Place) -> None:
        with (place.dataset_path / "data" / relpath).open("rb", buffering=0) as file:
            pieces = list(iter(lambda: file.read(128 * 1024), b""))
        require(b"".join(pieces) == place.contents[relpath], relpath)

    return read


# Commands


def warm(place: Place) -> None:
    cache = place.scratch("warm")
    place.world.jobs.run("dserverfs", "warm", place.dataset_uri, "--cache-dir", cache)


def copy_from(place: Place) -> None:
    target = place.scratch("copy")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    place.world.jobs.run("dtool", "cp", "-q", place.dataset_uri, target, env=own_caches(place))
    for relpath, content in place.contents.items():
        require((target / "read/data" / relpath).read_bytes() == content, relpath)


def copy_to(place: Place) -> None:
    local = place.scratch("local")
    if not local.exists():
        local.mkdir(parents=True)
        make_dataset(local, "copied", ITEMS)
    # What broke off is taken up again.
    is_begun = any(staged_states(place.scratch("staging")))
    options = ["-q", "--resume"] if is_begun else ["-q"]
    if place.world.registered(place.base_uri, "copied") is None:
        arguments = ("dtool", "cp", *options, local / "copied", place.uri)
        place.world.jobs.run(*arguments, env=own_caches(place))
    require(place.world.registered(place.base_uri, "copied") is not None, "not registered")


def own_caches(place: Place) -> Mapping[str, object]:
    return {
        "DTOOL_CACHE_DIRECTORY": place.scratch("dtool-cache"),
        "DSERVER_CACHE_DIR": place.scratch("cache"),
        "DSERVER_STAGING_DIR": place.scratch("staging"),
    }


# Uploads

ITEMS = {"one": b"one\n" * 100, "two/three": b"three\n" * 100}


def made(name: str, contents: Mapping[str, bytes]) -> Callable[[Place], None]:
    """Make a dataset in the mount and freeze it; raises OSError of the freeze."""

    def make(place: Place) -> None:
        path = place.path / name
        if place.world.registered(place.base_uri, name) is None:
            if not path.exists():
                path.mkdir()
                for relpath, content in contents.items():
                    (path / relpath).parent.mkdir(exist_ok=True)
                    (path / relpath).write_bytes(content)
            os.setxattr(path, "user.dserverfs.freeze", b"1")
        stored = place.world.registered(place.base_uri, name)
        require(stored is not None and stored.keys() == contents.keys(), f"{name}: {stored}")

    return make


def large(name: str) -> Callable[[Place], None]:
    return made(name, {"large": os.urandom(1024) * (PARTS_FROM // 1024 + 1)})


# Changes of what is frozen


def change_readme(place: Place) -> None:
    content = b"---\nchanged: to\n"
    temporary = place.dataset_path / "README.yml~"
    temporary.write_bytes(content)
    temporary.replace(place.dataset_path / "README.yml")
    require(place.world.readme(place) == content, "the README on the server")


def change_tag(place: Place) -> None:
    path = place.dataset_path / ".dtool/tags/new"
    with path.open("w") as file:
        os.fsync(file.fileno())


def change_annotation(place: Place) -> None:
    path = place.dataset_path / ".dtool/annotations/new.json"
    with path.open("w") as file:
        file.write("[1]")
        file.flush()
        os.fsync(file.fileno())


CLOSED = b"---\nwritten: and closed\n"


def close_readme(place: Place) -> None:
    """Write a README and close it, which cannot say that the server did not take it."""
    (place.dataset_path / "README.yml").write_bytes(CLOSED)


class Operation(NamedTuple):
    """Something that crosses the network, and its requests that are hit."""

    name: str  # as in the table
    side: str
    pattern: str
    act: Callable[[Place], None]
    # How many ask for it, each with its attempts: the kernel asks once more for what it could
    # not read, blocks and items are fetched beside each other, and what is kept is sent again.
    askers: int = 2
    staged: str | None = None  # the name of the dataset that it makes
    attempts: int = retry.ATTEMPTS

    @property
    def most_requests(self) -> int:
        """How many there may be while the fault lasts: more are a storm."""
        return self.askers * self.attempts


_PUTS = put_retry.ATTEMPTS
OPERATIONS: Sequence[Operation] = (
    Operation("list", "server", "POST /uris", listing),
    Operation("items", "server", "GET /manifests/", manifest),
    Operation("README", "server", "GET /readmes/", readme),
    Operation("sign", "server", "POST /signed-urls/items/", item("a/signed"), 3),
    Operation("begin", "server", "POST /signed-urls/upload/", made("begin", ITEMS), 2, "begin"),
    Operation("part", "server", "POST .*-parts/sign", large("part"), 2, "part"),
    Operation("join", "server", "POST .*-parts/complete", large("join"), 2, "join"),
    Operation("freeze", "server", "POST .*-complete", made("freeze", ITEMS), 2, "freeze"),
    Operation("tag", "server", "POST /tags/", change_tag),
    Operation("note", "server", "PUT /annotations/", change_annotation),
    Operation("edit", "server", "PUT /readmes/", change_readme),
    Operation("close", "server", "PUT /readmes/", close_readme),
    Operation("dtool", "store", "GET .*/dtool$", metadata),
    Operation("read", "store", "GET .*/data/", item("b/small"), 4),
    Operation("ahead", "store", "GET .*/data/", item("c/large"), 4),
    Operation("warm", "store", "GET .*/data/", warm, 7),
    Operation("cp from", "store", "GET .*/data/", copy_from, 7),
    Operation("put", "store", "PUT .*/data/", made("put", ITEMS), 4, "put", _PUTS),
    Operation("part", "store", "PUT .*/data/", large("put-part"), 2, "put-part", _PUTS),
    Operation("cp to", "store", "PUT .*/data/", copy_to, 4, attempts=_PUTS),
)
COMMANDS = ("warm", "cp from", "cp to")


class Cell(NamedTuple):
    side: str
    operation: str
    fault: str
    mode: str  # "once" or "for good"


@dataclass
class Outcome:
    """What came of a cell."""

    said: str  # OK, TOLD, LATER, AGAIN or the name of an errno
    requests: int
    seconds: float
    problem: str = ""  # what is wrong with it
    is_wrong: bool = False  # by what was done, not by what was told or how long it took


def operations_of(side: str) -> list[Operation]:
    return [operation for operation in OPERATIONS if operation.side == side]


def attempt(operation: Operation, place: Place) -> str:
    """Return what one go is answered with; raises Wrong."""
    try:
        operation.act(place)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    except Failed as failed:
        said = str(failed).strip()
        if "Traceback" in said:
            raise Wrong(f"a traceback: {said}") from failed
        return TOLD
    return OK


def run_cell(place: Place, operation: Operation, fault: str, mode: str) -> Outcome:
    """Have the operation meet the fault, and all be well afterwards."""
    front = place.world.fronts[operation.side]
    done = FAULTS[operation.side][fault]
    plan = Plan(
        operation.pattern, (once if mode == "once" else for_good)(done), within=place.bucket
    )
    front.add(plan)
    began_s = time.monotonic()
    problem = ""
    is_wrong = False
    said = "wrong"
    try:
        said = attempt(operation, place)
        if operation.act is close_readme:
            world = place.world
            wait_until(lambda: plan.requests and world.kept_reason(place) is not None, "sent")
    except AssertionError as error:
        problem, is_wrong = f"{error}", isinstance(error, Wrong)
    seconds = time.monotonic() - began_s
    requests = len(plan.requests)
    state = operation.staged and place.world.state(place, operation.staged)
    front.remove(plan)
    if not problem:
        try:
            said = _recovered(operation, place, said, state)
        except AssertionError as error:
            problem, is_wrong = f"{said}, then {error}", isinstance(error, Wrong)
    if not plan.done:
        problem = problem or "it was not hit"
    return Outcome(said, requests, seconds, problem, is_wrong)


def _recovered(operation: Operation, place: Place, said: str, state: str | None) -> str:
    """Return what the user was told, when all is well again; raises AssertionError."""
    if operation.act is close_readme:
        try:
            wait_until(lambda: place.world.readme(place) == CLOSED, "sent by itself", limit_s=8.0)
        except AssertionError:
            close_readme(place)
            wait_until(lambda: place.world.readme(place) == CLOSED, "sent again")
            return AGAIN
        return LATER
    if operation.staged is not None and said != OK:
        if state in ("sealed", "uploading", "completing"):  # tried again just now, maybe
            name = operation.staged
            wait_until(lambda: place.world.state(place, name) is None, "frozen by itself")
            require(place.world.registered(place.base_uri, name) is not None, "not registered")
            return f"{said} {LATER}"
        said = f"{said} {AGAIN}"
    # What was just refused may be answered in the same way for a moment.
    wait_until(lambda: attempt(operation, place) == OK, "well again")
    return said


def by_places(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return the cells by the places that they need, in which each operation is done once."""
    found: list[list[Cell]] = []
    for number, operation in enumerate(OPERATIONS):
        its = [each for each in cells if operation_of(each) is operation]
        found += [[] for _ in range(len(its) - len(found))]
        for index, cell in enumerate(its):  # slow faults beside each other in time
            found[(index + number) % len(found) if len(its) == len(found) else index].append(cell)
    return found


def operation_of(cell: Cell) -> Operation:
    (operation,) = (each for each in operations_of(cell.side) if each.name == cell.operation)
    return operation


def all_cells() -> list[Cell]:
    return [
        Cell(operation.side, operation.name, fault, mode)
        for operation in OPERATIONS
        for fault in FAULTS[operation.side]
        for mode in ("once", "for good")
        if can_occur(operation, fault)
    ]


def can_occur(operation: Operation, fault: str) -> bool:
    """Return whether the fault is one for this operation."""
    is_put = operation.pattern.startswith("PUT") and operation.side == "store"
    if fault == "200 to a range":
        return operation.name in ("read", "ahead", "warm", "cp from")
    if fault == "404, object lost":
        return not is_put
    if fault == "other bytes":  # of dtool's metadata nobody knows the right ones
        return operation.name != "dtool"
    return True


def run_all(world: World, cells: Sequence[Cell], threads: int) -> dict[Cell, Outcome]:
    """Run all cells in a mount of their own, several at once; return the outcomes."""
    outcomes: dict[Cell, Outcome] = {}
    lock = threading.Lock()

    def run(place: Place, its: Sequence[Cell]) -> None:
        for cell in its:
            outcome = run_cell(place, operation_of(cell), cell.fault, cell.mode)
            with lock:
                outcomes[cell] = outcome

    places = [(world.make_place("faults"), its) for its in by_places(cells)]
    with world.mounted(), ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, place, its) for place, its in places]:
            future.result()
    return outcomes


# What may come of a cell

_UNREACHABLE = frozenset({"EHOSTUNREACH", "ETIMEDOUT"})
_UNUSABLE = frozenset({"EIO", "EHOSTUNREACH"})
# Of the server's own refusals, which are believed at once.
_REFUSALS: Mapping[str, str] = {"401, token expired": LATER, "403, right revoked": AGAIN}
# By a store these are no refusals of the user, but of the URL: what it is for cannot be used.
_OF_URL = frozenset(
    {"403, URL expired", "403, key revoked", "403, clock skew", "401", "404, object lost"}
)
# Believed at once: what the store says it has not is lost.
_LOST = "404, object lost"
_UNUSABLE_FAULTS = frozenset(
    {
        "500",
        "200, page of a proxy",
        "body a byte short",
        "body a byte long",
        "Content-Encoding",
        "other bytes",
        "200 to a range",
    }
)


def complaint(cell: Cell, outcome: Outcome) -> str:
    """Return what is wrong with an outcome; "" if it is right."""
    operation = operation_of(cell)
    if outcome.problem:
        return outcome.problem
    if outcome.requests > operation.most_requests:
        return f"{outcome.requests} requests, {operation.most_requests} are allowed"
    if outcome.seconds > RECOVERY_S:
        return f"it took {outcome.seconds:.0f} s"
    refusal = _REFUSALS.get(cell.fault) if cell.side == "server" else None
    if cell.fault == "other bytes" and operation.staged is not None:
        refusal = AGAIN  # the store refuses what is not as announced
    said, _, then = outcome.said.partition(" ")
    is_believed = refusal is not None or cell.fault == _LOST
    if (operation.name, cell.fault) == ("ahead", "other bytes"):
        is_believed = True  # wrong blocks were handed out before the last, which tells
    if said in (OK, LATER) or (cell.mode == "once" and not is_believed):
        return "" if said in (OK, LATER) else f"{said}, though it went wrong once only"
    if operation.name in COMMANDS:
        return "" if said == TOLD else said
    if operation.act is close_readme:
        return "" if said == refusal else said
    if cell.side == "server" and refusal is not None:
        allowed = frozenset({"EACCES"})
    elif cell.fault in _OF_URL:
        allowed, refusal = frozenset({"EIO"}), AGAIN
    elif cell.fault in _UNUSABLE_FAULTS:
        allowed = _UNUSABLE
    else:
        allowed = _UNREACHABLE
    if said not in allowed:
        return f"{said} is none of {sorted(allowed)}"
    if operation.staged is not None and not then.startswith(refusal or LATER):
        return f"{then or 'nothing'} in place of {refusal or LATER}"
    return ""
