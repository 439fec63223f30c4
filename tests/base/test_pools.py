"""Work that a pool does, or tells of when it is shut down before."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dserverfs.base import pools
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S
from tests.test_structure import MODULES, nodes_of, relative


def test_work_is_done_or_told_of_but_never_both_nor_neither() -> None:
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        assert go_on.wait(LATE_S)
        told.append("done")

    pool = ThreadPoolExecutor(1)
    pools.submit(pool, work, dropped=lambda: told.append("dropped, though begun"))
    pools.submit(pool, work, dropped=lambda: told.append("dropped before its turn"))
    assert begun.wait(LATE_S)

    pool.shutdown(wait=False, cancel_futures=True)
    assert told == ["dropped before its turn"]
    pools.submit(pool, work, dropped=lambda: told.append("dropped at once"))
    go_on.set()
    pool.shutdown()

    assert told == ["dropped before its turn", "dropped at once", "done"]


@pytest.mark.parametrize("has_thread", [True, False])
def test_work_that_no_thread_can_be_had_for_is_dropped_or_done_and_never_both(
    has_thread: bool,
) -> None:
    """A pool that cannot start a thread has queued the work all the same."""
    told: list[str] = []
    begun, go_on = threading.Event(), threading.Event()
    pool = ThreadPoolExecutor(2)
    if has_thread:

        def work() -> None:
            begun.set()
            assert go_on.wait(LATE_S)

        pool.submit(work)
        assert begun.wait(LATE_S)

    with no_more_threads():
        pools.submit(pool, lambda: told.append("done"), dropped=lambda: told.append("dropped"))
    assert told == ["dropped"]
    go_on.set()
    pool.submit(lambda: told.append("the next")).result(LATE_S)
    pool.shutdown()

    assert told == ["dropped", "the next"]


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_work_that_is_waited_for_is_done_once_with_whatever_threads_there_are(threads: int) -> None:
    done: list[int] = []

    def work(number: int) -> int:
        done.append(number)
        return -number

    with no_more_threads(threads), ThreadPoolExecutor(4) as pool:
        assert list(pools.each(pool, work, range(20))) == [-number for number in range(20)]
        assert pools.begun(pool, lambda: work(20)).result(LATE_S) == -20

    assert sorted(done) == [*range(21)]


@pytest.mark.parametrize("threads", [0, 4])
def test_failure_of_work_is_told_who_waits_for_it(threads: int) -> None:
    with no_more_threads(threads), ThreadPoolExecutor(4) as pool:
        with pytest.raises(ZeroDivisionError):
            pools.begun(pool, lambda: 1 // 0).result(LATE_S)
        with pytest.raises(ZeroDivisionError):
            list(pools.each(pool, lambda number: 1 // number, [1, 0, 2]))


def test_work_that_is_not_begun_is_given_up_with_its_pool() -> None:
    go_on = threading.Event()
    pool = ThreadPoolExecutor(1)
    first = pools.begun(pool, lambda: go_on.wait(LATE_S))
    second = pools.begun(pool, lambda: True)

    pool.shutdown(wait=False, cancel_futures=True)

    assert second.cancelled()
    go_on.set()
    assert first.result(LATE_S)


def ask_of_own_pool(path: Path) -> Iterator[str]:
    """Yield where work of a pool of a `with` would fail if there is no thread for it."""
    for node in nodes_of(path):
        if not isinstance(node, ast.With):
            continue
        own = {
            item.optional_vars.id
            for item in node.items
            if "ThreadPoolExecutor(" in ast.unparse(item.context_expr)
            and isinstance(item.optional_vars, ast.Name)
        }
        for call in ast.walk(node):
            if (
                isinstance(call, ast.Attribute)
                and call.attr in ("submit", "map")
                and isinstance(call.value, ast.Name)
                and call.value.id in own
            ):
                yield f"{relative(path)}:{call.lineno}"


def test_clients_that_wait_for_work_can_do_it_themselves() -> None:
    """A server has its threads when it starts."""
    clients = [path for path in MODULES if "server" not in path.parts]

    assert [place for path in clients for place in ask_of_own_pool(path)] == []
