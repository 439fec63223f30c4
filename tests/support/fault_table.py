"""The tables of `reliability.rst`: what becomes of each operation while a fault lasts.

`python -m tests.support.fault_table` tries everything, which takes minutes, and writes them
anew.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import dserverfs
from tests.support import accounts, fault_cells
from tests.support.fault_cells import Cell, Outcome, complaint, run_all
from tests.support.fault_world import World, fault_world
from tests.support.servers import running_server

PAGE = Path(dserverfs.__file__).parent / "docs/reliability.rst"
THREADS = 16
_SHORT = {"EHOSTUNREACH": "away", "ETIMEDOUT": "late", "EACCES": "acces", "EIO": "eio"}
_NONE = "-"
Rows = dict[str, list[str]]


def shown(said: str) -> str:
    """Return an outcome as the table has it."""
    word, _, then = said.partition(" ")
    if word in ("ok", "later", "again", "told"):
        return word
    return f"{_SHORT.get(word, word)}{ {'': '', 'later': '+', 'again': '!'}[then] }"


def rows(side: str, said: Mapping[Cell, str]) -> Rows:
    """Return the cells of a table by the faults, in the order of the operations."""
    return {
        fault: [
            shown(said[cell])
            if (cell := Cell(side, operation.name, fault, "for good")) in said
            else _NONE
            for operation in fault_cells.operations_of(side)
        ]
        for fault in fault_cells.FAULTS[side]
    }


def rendered(side: str, table: Rows) -> str:
    """Return a table as text of the page."""
    names = [operation.name for operation in fault_cells.operations_of(side)]
    first = max(map(len, table))
    widths = [
        max(len(name), *(len(row[number]) for row in table.values()))
        for number, name in enumerate(names)
    ]
    rule = " ".join("=" * width for width in [first, *widths])
    lines = [rule, _line(side, names, first, widths), rule]
    lines += [_line(fault, row, first, widths) for fault, row in table.items()]
    return "\n".join([*lines, rule])


def _line(name: str, words: Iterable[str], first: int, widths: Iterable[int]) -> str:
    cells = [word.ljust(width) for word, width in zip(words, widths, strict=True)]
    return " ".join([name.ljust(first), *cells]).rstrip()


def of_page(side: str) -> Rows:
    """Return the rows of the page's table."""
    lines = PAGE.read_text().splitlines()
    (head,) = (
        n for n, line in enumerate(lines) if line.startswith(f"{side} ") and "==" in lines[n - 1]
    )
    columns = []
    position = 0
    for word in lines[head - 1].split(" "):
        columns.append((position, position + len(word)))
        position += len(word) + 1
    found: Rows = {}
    for line in lines[head + 2 :]:
        if line.startswith("=="):
            return found
        fault, *words = (line[begin:end].strip() for begin, end in columns)
        found[fault] = words
    raise ValueError(f"{PAGE}: the table of {side} has no end")


def differences(outcomes: Mapping[Cell, Outcome]) -> list[str]:
    """Return in which cells the page says something else than what came of them."""
    found = []
    for side in fault_cells.FAULTS:
        page = of_page(side)
        table = rows(side, {cell: outcome.said for cell, outcome in outcomes.items()})
        names = [operation.name for operation in fault_cells.operations_of(side)]
        for fault, words in table.items():
            for name, is_now, was in zip(names, words, page[fault], strict=True):
                if is_now != _NONE and _regardless(is_now) != _regardless(was):
                    found.append(f"{side}, {name}, {fault}: {is_now}; the page says {was}")
    return found


def tried(world: World, cells: Sequence[Cell], threads: int) -> dict[Cell, Outcome]:
    """Return the outcomes; what was told too late, or wrongly, is tried again with less beside it.

    On a machine in use each limit of time may be over before a fault is. What was told wrongly
    and is right now is printed: it may be a race. Wrong bytes are never tried again.
    """
    outcomes = run_all(world, cells, threads)
    pages = {side: of_page(side) for side in fault_cells.FAULTS}

    def is_late(cell: Cell, outcome: Outcome) -> bool:
        names = [operation.name for operation in fault_cells.operations_of(cell.side)]
        words = pages[cell.side].get(cell.fault)
        expected = words[names.index(cell.operation)] if words else ""
        is_expected = cell.mode != "once" and "late" in expected
        has_waited = "ETIMEDOUT" in outcome.said or "EINPROGRESS" in outcome.said
        return (has_waited and not is_expected) or " s: " in outcome.problem

    wrong = {cell: said for cell in outcomes if (said := complaint(cell, outcomes[cell]))}
    again = [
        cell
        for cell, outcome in outcomes.items()
        if not outcome.is_wrong and (cell in wrong or is_late(cell, outcome))
    ]
    second = run_all(world, again, 4) if again else {}
    for cell in second.keys() & wrong.keys():
        print(f"{cell}: {wrong[cell]}; then {second[cell].said}")
    return {**outcomes, **second}


def _regardless(word: str) -> str:
    """Return an outcome regardless of which limit was over first, that of a wait or of all."""
    return word.replace("late", "away") if word != "later" else word


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        directory = Path(name).resolve()
        directory.chmod(0o755)
        account = accounts.current(directory)
        with (
            running_server(directory / "data") as server,
            fault_world(account, server, directory) as world,
        ):
            cells = fault_cells.all_cells()
            outcomes = tried(world, cells, THREADS)
    wrong = 0
    for cell, outcome in outcomes.items():
        if said := complaint(cell, outcome):
            wrong += 1
            print(*cell, said, sep=": ")
    text = PAGE.read_text()
    for side in fault_cells.FAULTS:
        table = rows(side, {cell: outcome.said for cell, outcome in outcomes.items()})
        text = text.replace(rendered(side, of_page(side)), rendered(side, table))
    PAGE.write_text(text)
    print(f"{len(outcomes)} cells, {wrong} are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
