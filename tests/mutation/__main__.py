"""`scripts/mutate`: put one small fault after the other into modules, and see the tests fail."""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.mutation.covering import Reached, Watch
from tests.mutation.mutants import Mutant, mutants_of
from tests.mutation.survivors import explained
from tests.mutation.trial import Fate, Order, Task, Trials, all_tried, attempt_anew, end_with_parent

_T = TypeVar("_T")
ROOT = Path.cwd()  # of the repository, where scripts/mutate goes
_PYTEST = ["-q", "-s", "-p", "no:cacheprovider", "-o", "timeout=0", "-o", "addopts="]
_PYTEST += ["--hypothesis-profile=ci"]  # the same examples each time


def main() -> int:
    arguments = _arguments()
    begun_s = time.monotonic()
    modules = [_path(name) for name in arguments.module]
    tests = arguments.tests or sorted({f"tests/{path.parts[1]}" for path in modules})
    with tempfile.TemporaryDirectory(prefix="dserverfs-mutation-") as scratch:
        run = _Run(modules, tests, arguments, Path(scratch))
        run.all()
    print(f"{time.monotonic() - begun_s:.0f} s")
    return run.report()


class _Run:
    def __init__(
        self, modules: list[Path], tests: list[str], arguments: argparse.Namespace, scratch: Path
    ) -> None:
        self._modules = modules
        self._tests = tests
        self._arguments = arguments
        self._scratch = scratch
        self._order = Order(arguments.seconds)
        self._fates: list[tuple[Path, Mutant, Fate]] = []

    def all(self) -> None:
        reached = _in_a_process(self._reached, self._scratch / "reached")
        slowest = self._arguments.slowest
        fast = [test for test in reached if test.seconds <= slowest]
        print(f"{len(reached)} tests reach them, {len(fast)} in at most {slowest} s", flush=True)
        tasks = [task for path in self._modules for task in self._tasks(path, fast)]
        print(f"{len(tasks)} mutants", flush=True)
        results = self._scratch / "fates"
        for is_in_function, make in ((True, self._try_in_place), (False, self._try_anew)):
            some = [task for task in tasks if bool(task.mutant.function) == is_in_function]
            if some:
                self._fates += _in_a_process(lambda make=make, some=some: make(some), results)  # type: ignore[misc]

    def _reached(self) -> list[Reached]:
        watch = Watch([ROOT / path for path in self._modules])
        status = pytest.main([*_PYTEST, *self._tests], plugins=[watch])
        if status:
            print("the tests fail without any fault", flush=True)
        return watch.reached

    def _tasks(self, path: Path, tests: list[Reached]) -> Iterator[Task]:
        source = path.read_text()
        name = ".".join(path.with_suffix("").parts)
        excused = explained(path)
        reaching = {
            test.name: test.lines[str(ROOT / path)]
            for test in tests
            if str(ROOT / path) in test.lines
        }
        # What is outside of functions is run when the module is imported, for all tests.
        files = {name.partition("::")[0] for name in reaching}
        mutants = list(mutants_of(source))
        for old, new in excused - {(mutant.old, mutant.new) for mutant in mutants}:
            print(f"{path}: explained, but not there any more: {old} -> {new}", flush=True)
        for mutant in mutants:
            if (mutant.old, mutant.new) in excused:
                continue
            lines = set(range(mutant.first_line, mutant.last_line + 1))
            chosen = [
                test
                for test in tests
                if (
                    lines.intersection(reaching.get(test.name, ()))
                    if mutant.function
                    else test.name.partition("::")[0] in files
                )
            ]
            yield Task(ROOT / path, name, source, mutant, chosen)

    def _try_in_place(self, tasks: list[Task]) -> list[tuple[Path, Mutant, Fate]]:
        fates: list[tuple[Path, Mutant, Fate]] = []

        def run(attempt: Callable[[Task], None]) -> None:
            fates.extend(self._tried(tasks, attempt))

        modules = [ROOT / path for path in self._modules]
        pytest.main([*_PYTEST, *self._tests], plugins=[Trials(run, modules)])
        return fates

    def _try_anew(self, tasks: list[Task]) -> list[tuple[Path, Mutant, Fate]]:
        return list(self._tried(tasks, lambda task: attempt_anew(task, _PYTEST)))

    def _tried(
        self, tasks: list[Task], attempt: Callable[[Task], None]
    ) -> Iterator[tuple[Path, Mutant, Fate]]:
        for task, fate in all_tried(
            tasks, attempt, self._scratch, order=self._order, jobs=self._arguments.jobs
        ):
            path = task.path.relative_to(ROOT)
            if fate in (Fate.SURVIVED, Fate.UNTESTED):
                print(f"\n{_shown(path, task.mutant, fate)}", flush=True)
            yield path, task.mutant, fate

    def report(self) -> int:
        """Print the score of each module; return whether one is below what is asked for."""
        is_low = False
        print(f"\n{'module':45} mutants killed late explained untested survived score")
        for path in self._modules:
            of = Counter(fate for module, _, fate in self._fates if module == path)
            tried = sum(of.values())
            killed = of[Fate.KILLED] + of[Fate.TIMED_OUT]
            score = 100 * killed / tried if tried else 100
            is_low |= score < self._arguments.score
            print(
                f"{str(path).removeprefix('dserverfs/'):45} {tried:7} {of[Fate.KILLED]:6}"
                f" {of[Fate.TIMED_OUT]:4} {len(explained(path)):9} {of[Fate.UNTESTED]:8}"
                f" {of[Fate.SURVIVED]:8} {score:4.0f}%"
            )
        return int(is_low)


def _in_a_process(work: Callable[[], _T], result: Path) -> _T:
    """Return what `work` returns in a fork, so that nothing is imported here that it imports."""
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        status = 1
        try:
            end_with_parent()
            result.write_bytes(pickle.dumps(work()))
            status = 0
        except BaseException:  # noqa: BLE001 - the process ends here, whatever it was
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    if status:
        raise ChildProcessError("the process that runs the tests failed")
    value: _T = pickle.loads(result.read_bytes())  # noqa: S301 - the fork's own
    return value


def _shown(path: Path, mutant: Mutant, fate: Fate) -> str:
    where = ".".join(mutant.function)
    return f"{path}:{mutant.first_line} {where}: {fate.value}\n- {mutant.old}\n+ {mutant.new}"


def _path(name: str) -> Path:
    """Return the file of a module: writing/staging/states, or a path."""
    path = Path(name) if name.endswith(".py") else Path("dserverfs", f"{name}.py")
    return path.resolve().relative_to(ROOT) if path.is_absolute() else path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description=__doc__)
    parser.add_argument("module", nargs="+", help="as writing/staging/states, or a file")
    parser.add_argument("--tests", action="append", help="these; else those of the same room")
    parser.add_argument("--slowest", type=float, default=2.0, help="seconds a test may take")
    parser.add_argument("--seconds", type=float, default=30.0, help="of all tests of a mutant")
    parser.add_argument("--jobs", type=int, default=1, help="mutants that are tried at once")
    parser.add_argument("--score", type=float, default=90.0, help="fail below this, in percent")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
