"""What becomes of one mutant: a process of its own runs tests with it, until one fails.

The process is a fork of one that has all tests collected, so that a trial costs little
more than its tests. A fault in a function is put into the functions that are there; for any
other fault the module is imported anew, with everything that knows it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

import pytest
from _pytest.runner import runtestprotocol

from tests.mutation.covering import Reached
from tests.mutation.mutants import Mutant

# A test with a fault may take this long: several times as long as without, for others run beside.
_LATE_S, _LATE_TIMES = 5.0, 6.0
_PR_SET_PDEATHSIG = 1
_NOW = "now-at"
_SURVIVED, _KILLED, _NOT_TRIED = 0, 1, 3
_MEMORY_BYTES, _FILE_BYTES = 6 * 1024**3, 1024**3


class Fate(Enum):
    KILLED = "killed"
    TIMED_OUT = "timed out"
    SURVIVED = "survived"
    UNTESTED = "reached by no test"


class Task(NamedTuple):
    """A mutant of the module in a file, and the tests that reach it, the best ones first."""

    path: Path
    name: str  # of the module
    original: str
    mutant: Mutant
    tests: Sequence[Reached]


class Trials:
    """The plugin that makes the trials of faults in functions in place of running the tests."""

    def __init__(
        self, run: Callable[[Callable[[Task], None]], None], modules: Iterable[Path]
    ) -> None:
        """`modules` are the files of those that have faults."""
        self._run = run
        self._modules = modules

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        # Here once: in each fork it would have all objects copied.
        functions = _functions_of(self._modules)

        def attempt(task: Task) -> None:
            _put_in(task, functions[task.path])
            for test in task.tests:
                _ends_after(test.seconds)
                _now_at().write_text(test.name)
                _require_pass(session, items[test.name])

        gc.freeze()
        self._run(attempt)
        return True


def attempt_anew(task: Task, arguments: list[str]) -> None:
    """Import the module with its fault, and run the tests; in a process that has neither yet."""
    sys.meta_path.insert(0, _Mutated(task))
    names = [test.name for test in task.tests]
    _ends_after(20.0 + sum(test.seconds for test in task.tests))
    if pytest.main([*arguments, "-x", *names]):
        os._exit(_KILLED)


class Process:
    """The process of one trial."""

    def __init__(self, attempt: Callable[[Task], None], task: Task, scratch: Path) -> None:
        self.task = task
        self._scratch = scratch
        scratch.mkdir()
        self.pid = os.fork()
        if self.pid:
            return
        status = _NOT_TRIED
        try:
            os.setsid()
            end_with_parent()
            null = os.open(os.devnull, os.O_RDWR)
            stderr = os.dup(2)
            for fd in range(3):
                os.dup2(null, fd)
            resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
            resource.setrlimit(resource.RLIMIT_FSIZE, (_FILE_BYTES, _FILE_BYTES))
            os.environ["TMPDIR"] = str(scratch)
            attempt(task)
            status = _SURVIVED
        except BaseException as error:  # noqa: BLE001 - the process ends here, whatever it was
            os.write(stderr, f"{error!r}\n".encode())
        finally:
            os._exit(status)

    def ended(self, status: int, order: Order) -> Fate:
        """Return what became of the mutant of a process that was waited for."""
        _end_group(self.pid)
        if status and (self._scratch / _NOW).exists():
            order.killed_by((self._scratch / _NOW).read_text())
        shutil.rmtree(self._scratch, ignore_errors=True)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return Fate.TIMED_OUT
        if os.waitstatus_to_exitcode(status) == _NOT_TRIED:
            raise ChildProcessError(f"{self.task.name}: not tried: {self.task.mutant}")
        return Fate.SURVIVED if status == _SURVIVED else Fate.KILLED


class Order:
    """The order in which tests are run: first those that killed many mutants in little time."""

    def __init__(self, seconds: float) -> None:
        """`seconds` are those of all tests of one mutant."""
        self._seconds = seconds
        self._kills: Counter[str] = Counter()

    def first(self, tests: Sequence[Reached]) -> list[Reached]:
        left_s = self._seconds
        chosen = []
        for test in sorted(tests, key=lambda test: test.seconds / (1 + self._kills[test.name])):
            left_s -= test.seconds
            if left_s < 0:
                break
            chosen.append(test)
        return chosen

    def killed_by(self, name: str) -> None:
        self._kills[name] += 1


def all_tried(
    tasks: Iterable[Task],
    attempt: Callable[[Task], None],
    scratch: Path,
    *,
    order: Order,
    jobs: int,
) -> Iterator[tuple[Task, Fate]]:
    """Yield what became of each mutant, in the order of their ends; `jobs` are tried at once."""
    running: dict[int, Process] = {}
    for number, task in enumerate(tasks):
        if not task.tests:
            yield task, Fate.UNTESTED
            continue
        chosen = task._replace(tests=order.first(task.tests))
        process = Process(attempt, chosen, scratch / f"{os.getpid()}-{number}")
        running[process.pid] = process
        while len(running) >= jobs:
            yield _next_ended(running, order)
    while running:
        yield _next_ended(running, order)


def _next_ended(running: dict[int, Process], order: Order) -> tuple[Task, Fate]:
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid in running:
            process = running.pop(pid)
            return process.task, process.ended(status, order)


def end_with_parent() -> None:
    """Have the kernel end this process with the one that forked it."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _ends_after(seconds: float) -> None:
    """Have the process ended by SIGALRM if a test takes much longer than it should."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, _LATE_S + _LATE_TIMES * seconds)


def _now_at() -> Path:
    """Return the file that has the name of the test that runs."""
    return Path(os.environ["TMPDIR"], _NOW)


def _require_pass(session: pytest.Session, item: pytest.Item) -> None:
    factory = session.config._tmp_path_factory  # type: ignore[attr-defined]
    factory._basetemp = Path(os.environ["TMPDIR"])
    try:
        reports = runtestprotocol(item, log=False, nextitem=None)
    except BaseException:  # noqa: BLE001 - a fault may raise what ends pytest
        os._exit(_KILLED)
    if any(report.failed for report in reports):
        os._exit(_KILLED)


def _put_in(task: Task, functions: Iterable[FunctionType]) -> None:
    """Give every function that the mutant is in its code with the fault; `functions` are all."""
    names = task.mutant.function
    olds = _codes(compile(task.original, str(task.path), "exec"), names)
    news = _codes(compile(task.mutant.source, str(task.path), "exec"), names)
    changed = {
        (old.co_name, old.co_firstlineno): new
        for pair in zip(olds, news, strict=True)
        for old, new in _with_inner(*pair)
        if old != new
    }
    found = 0
    for function in functions:
        code = function.__code__
        if new := changed.get((code.co_name, code.co_firstlineno)):
            function.__code__ = new
            found += 1
    assert found, f"{task.name}: {names} is not there"


def _with_inner(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """Yield the code of a function and of those in it, which may have been made: a decorator's."""
    yield old, new
    codes = ([each for each in code.co_consts if isinstance(each, CodeType)] for code in (old, new))
    for inner, changed in zip(*codes, strict=False):
        if (inner.co_name, inner.co_freevars) == (changed.co_name, changed.co_freevars):
            yield from _with_inner(inner, changed)


def _functions_of(modules: Iterable[Path]) -> dict[Path, list[FunctionType]]:
    """Return the functions that there are of each module."""
    found: dict[Path, list[FunctionType]] = {path: [] for path in modules}
    of_file = {str(path): functions for path, functions in found.items()}
    for thing in gc.get_objects():
        if type(thing) is FunctionType and thing.__code__.co_filename in of_file:
            of_file[thing.__code__.co_filename].append(thing)
    return found


def _codes(code: CodeType, names: tuple[str, ...]) -> list[CodeType]:
    """Return the code of all functions of that name: a property has a getter and a setter."""
    found = [code]
    for name in names:
        found = [
            const
            for outer in found
            for const in outer.co_consts
            if isinstance(const, CodeType) and const.co_name == name
        ]
    return found


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds one module, with a fault in it."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def find_spec(
        self, name: str, path: object, target: object = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self._task.name:
            return None
        return importlib.util.spec_from_file_location(name, self._task.path, loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._task.mutant.source, str(self._task.path), "exec"), module.__dict__)
