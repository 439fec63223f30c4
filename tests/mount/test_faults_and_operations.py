"""Faults of server, store and network meet what users do, once and until they are lifted.

A third of all cells: each fault, each operation. The soak has all of them, and the limits of
time as they are. `reliability.rst` has the outcomes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fault_cells, fault_table, front_faults
from tests.support.accounts import Account
from tests.support.fault_cells import Cell, Outcome, complaint
from tests.support.fault_world import World, fault_world, wait_until
from tests.support.front import for_good
from tests.support.front import once as only_once
from tests.support.servers import ServerHandle

SHARE = 3
OF_COMMANDS = 9  # which cost more


@pytest.fixture(scope="module")
def world(
    fuse: None,
    current_user: Account,
    server: ServerHandle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    with fault_world(current_user, server, tmp_path_factory.mktemp("faults")) as world:
        yield world


def chosen() -> list[Cell]:
    """Return a share of the cells, in which each fault and each operation is."""
    return [cell for cell in fault_cells.all_cells() if _is_chosen(cell)]


def _is_chosen(cell: Cell) -> bool:
    operation = fault_cells.operation_of(cell)
    number = fault_cells.OPERATIONS.index(operation)
    number += [*fault_cells.FAULTS[cell.side]].index(cell.fault)
    number += cell.mode == "once"
    return number % (OF_COMMANDS if operation.name in fault_cells.COMMANDS else SHARE) == 0


@pytest.fixture(scope="module")
def outcomes(world: World) -> dict[Cell, Outcome]:
    return fault_table.tried(world, chosen(), threads=12)


def test_fault_gives_right_bytes_or_the_errno_that_is_documented_and_is_over_when_lifted(
    outcomes: dict[Cell, Outcome],
) -> None:
    wrong = {cell: said for cell, outcome in outcomes.items() if (said := complaint(cell, outcome))}

    assert wrong == {}
    assert len(outcomes) > 250
    assert {cell.fault for cell in outcomes} == {
        fault for faults in fault_cells.FAULTS.values() for fault in faults
    }
    assert {fault_cells.operation_of(cell) for cell in outcomes} == {*fault_cells.OPERATIONS}


def test_page_has_the_outcomes(outcomes: dict[Cell, Outcome]) -> None:
    assert fault_table.differences(outcomes) == []
    for side in fault_cells.FAULTS:
        table = fault_table.rendered(side, fault_table.of_page(side))
        assert table in fault_table.PAGE.read_text()


def test_server_that_answers_with_a_fault_has_it_frozen_later_by_itself(world: World) -> None:
    cells = [
        Cell("server", operation, fault, "for good")
        for operation in ("begin", "freeze")
        for fault in ("500", "200, page of a proxy")
    ]

    outcomes = fault_cells.run_all(world, cells, threads=4)

    assert {outcome.said for outcome in outcomes.values()} == {"EIO later"}
    assert not any(outcome.problem for outcome in outcomes.values())


def test_freeze_whose_answer_is_lost_is_asked_about_until_somebody_says_what_came_of_it(
    world: World,
) -> None:
    place = world.make_place("lost")
    front = world.fronts["server"]
    with world.mounted():
        lost = only_once(front_faults.lose_answer)
        unknown = for_good(front_faults.errs(500))
        with (
            front.planned("POST .*-complete", lost, within=place.bucket),
            front.planned("GET /uris/", unknown, within=place.bucket),
        ):
            (freeze,) = (each for each in fault_cells.OPERATIONS if each.name == "freeze")
            assert fault_cells.attempt(freeze, place) == "EIO"
            assert world.registered(place.base_uri, "freeze") is not None
            # Not failed, which could be written and frozen with other items.
            assert world.state(place, "freeze") == "completing"

        wait_until(lambda: world.state(place, "freeze") is None, "frozen by itself")


def test_names_that_are_not_found_once_and_for_good(world: World) -> None:
    once, lasting = world.make_place("once"), world.make_place("lasting")
    flag = world.directory / "names-fail"
    reading = [each for each in fault_cells.OPERATIONS if each.name in ("list", "items", "read")]
    making = [each for each in fault_cells.OPERATIONS if each.name in ("put", "edit")]

    def lose_names(content: str) -> None:
        for front in world.fronts.values():
            front.hang_up()
        flag.write_text(content)

    with world.mounted():
        os.stat(once.path)
        os.stat(lasting.path)
        for operation in [*reading, *making]:
            lose_names("once")
            assert fault_cells.attempt(operation, once) == fault_cells.OK, operation
            assert not flag.exists()

        lose_names("")
        for operation in reading[:1]:
            assert fault_cells.attempt(operation, lasting) == "EHOSTUNREACH"
        flag.unlink()
        for operation in reading:
            wait_until(
                lambda: fault_cells.attempt(operation, lasting) == fault_cells.OK,  # noqa: B023
                operation.name,
            )
        lose_names("")
        for operation in making:
            assert fault_cells.attempt(operation, lasting) == "EHOSTUNREACH", operation
        flag.unlink()
        wait_until(lambda: world.state(lasting, "put") is None, "frozen by itself")
        assert world.registered(lasting.base_uri, "put") is not None


def test_readable_file_stays_readable_beside_all_faults(world: World, tmp_path: Path) -> None:
    place = world.make_place("beside")
    with world.mounted():
        read = fault_cells.item("b/small")
        read(place)
        with (
            world.fronts["server"].planned(".", for_good(front_faults.stall)),
            world.fronts["store"].planned(".", for_good(front_faults.stall)),
        ):
            read(place)
            with pytest.raises(OSError, match=os.strerror(errno.ETIMEDOUT)):
                os.listdir(place.dataset_path / ".dtool/tags")
