"""`threading`, `time` and thread pools on the scheduler: what the code under test is given.

`install` puts them in place of the standard library's in the whole process, before
dserverfs is imported: a process that simulates does nothing else. Conditions, events and
queues are the standard library's own, on these locks. Outside a task nothing ever waits.
"""

from __future__ import annotations

import concurrent.futures.thread
import contextlib
import queue
import random
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypeVar

from tests.simulation.scheduler import Killed, Scheduler, Stuck, Task

T = TypeVar("T")

_scheduler: Scheduler
_SWITCHES = 0.1  # of locks that are free, after which another task goes on first


def use(scheduler: Scheduler) -> None:
    """Have everything go on by this one from now on."""
    global _scheduler
    _scheduler = scheduler
    random.seed(scheduler.rng.getrandbits(64))


class Busy(BaseException):
    """What is to be checked is being changed."""


_is_looking = False


@contextlib.contextmanager
def looking() -> Iterator[None]:
    """Let no other task go on in the block; raises Busy where it would have to wait."""
    global _is_looking
    _is_looking = True
    try:
        yield
    finally:
        _is_looking = False


class Lock:
    """A lock of `threading`, held by whoever took it."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Task] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = _scheduler
        task = scheduler.current
        if task is not None and task.process.is_dead:
            raise Killed
        if not self._held:
            self._held = True
            if task is not None and not _is_looking and scheduler.rng.random() < _SWITCHES:
                scheduler.pause()
            return True
        if not blocking:
            return False
        if _is_looking:
            raise Busy
        if task is None:
            raise Stuck("a lock is waited for outside every task")
        self._waiting.append(task)
        if scheduler.wait(None if timeout < 0 else timeout):
            return True  # it was handed over
        if task in self._waiting:
            self._waiting.remove(task)
        return False

    def release(self) -> None:
        if not self._held:
            _scheduler.require_alive()  # what a killed process's threads do is of no use
            raise RuntimeError("release unlocked lock")
        while self._waiting:
            task = self._waiting.popleft()
            if not task.is_done and not task.process.is_dead:
                _scheduler.wake(task)  # which holds it from now on
                return
        self._held = False

    def locked(self) -> bool:
        return self._held

    def _at_fork_reinit(self) -> None:
        self._held = False

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """A lock that its holder may take again."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._owner: object = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = _scheduler.current or _scheduler
        if self._owner is me:
            self._count += 1
            return True
        if not self._lock.acquire(blocking, timeout):
            return False
        self._owner, self._count = me, 1
        return True

    def release(self) -> None:
        _scheduler.require_alive()
        self._count -= 1
        if not self._count:
            self._owner = None
            self._lock.release()

    def _release_save(self) -> tuple[int, object]:
        saved = (self._count, self._owner)
        self._count, self._owner = 0, None
        self._lock.release()
        return saved

    def _acquire_restore(self, saved: tuple[int, object]) -> None:
        self._lock.acquire()
        self._count, self._owner = saved

    def _is_owned(self) -> bool:
        return self._owner is (_scheduler.current or _scheduler)

    def _at_fork_reinit(self) -> None:
        self._lock, self._owner, self._count = Lock(), None, 0

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    """A thread: a task of the process that starts it."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self._target, self._arguments, self._options = target, tuple(args), kwargs or {}
        self.name = name or "thread"
        self.daemon = daemon
        self._task: Task | None = None

    def start(self) -> None:
        current = _scheduler.current
        assert current is not None, "a thread is started by a task"
        self._task = _scheduler.spawn(self.name, current.process, self.run)

    def run(self) -> None:
        if self._target is not None:
            self._target(*self._arguments, **self._options)

    def join(self, timeout: float | None = None) -> None:
        if self._task is not None:
            _scheduler.join(self._task, timeout)

    def is_alive(self) -> bool:
        return self._task is not None and not self._task.is_done

    @property
    def ident(self) -> int | None:
        return None if self._task is None else id(self._task)


class Timer(Thread):
    """A call after a time, unless it is cancelled."""

    def __init__(
        self,
        interval: float,
        function: Callable[..., object],
        args: Iterable[Any] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(target=function, name="timer", args=args or (), kwargs=kwargs)
        self._interval = interval
        self._finished = threading.Event()

    def cancel(self) -> None:
        self._finished.set()

    def run(self) -> None:
        if not self._finished.wait(self._interval):
            self._finished.set()
            super().run()


class Pool(concurrent.futures.Executor):
    """A thread pool."""

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: None = None,
        initargs: tuple[()] = (),
    ) -> None:
        self._most = max_workers or 4
        self._prefix = thread_name_prefix or "pool"
        self._queue: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._workers: list[Task] = []
        self._idle: deque[Task] = deque()
        self._is_shut = False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        if self._is_shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        _scheduler.require_alive()
        current = _scheduler.current
        assert current is not None, "a pool is used by tasks"
        future: Future[T] = Future()
        self._queue.append((future, lambda: fn(*args, **kwargs)))
        if self._idle:
            _scheduler.wake(self._idle.popleft())
        elif len(self._workers) < self._most:
            name = f"{self._prefix}-{len(self._workers)}"
            self._workers.append(_scheduler.spawn(name, current.process, self._work))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._is_shut = True
        if cancel_futures:
            while self._queue:
                self._queue.popleft()[0].cancel()
        while self._idle:
            _scheduler.wake(self._idle.popleft())
        if wait:
            for worker in self._workers:
                _scheduler.join(worker)

    def map(
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
    ) -> Iterator[T]:
        futures = [self.submit(fn, *each) for each in zip(*iterables, strict=False)]
        return (future.result() for future in futures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        self.shutdown(wait=True)

    def _work(self) -> None:
        me = _scheduler.current
        assert me is not None
        while True:
            if not self._queue:
                if self._is_shut:
                    return
                self._idle.append(me)
                _scheduler.wait()
                continue
            future, call = self._queue.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except Killed:
                raise
            except BaseException as error:  # noqa: BLE001 - the future's
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, call


class Local:
    """Attributes of a thread's own."""

    def _own(self) -> dict[str, Any]:
        task = _scheduler.current
        if task is None:
            own: dict[str, Any] = object.__getattribute__(self, "__dict__")
            return own
        return task.locals.setdefault(id(self), {})

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        own = self._own()
        return own[name] if name in own else object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._own()[name] = value

    def __delattr__(self, name: str) -> None:
        self._own().pop(name, None)


def sleep(seconds: float) -> None:
    """Wait; outside a task for no time."""
    if _scheduler.current is not None:
        _scheduler.wait(seconds)


def real_time_s() -> float:
    """Return the seconds of the real machine's clock."""
    return _real_monotonic()


_real_monotonic = time.monotonic


def install() -> None:
    """Replace the standard library's threads and clocks in this process, for good."""
    assert "dserverfs" not in sys.modules, "it has the real clocks by now"
    use(Scheduler(0))
    stolen: Any = threading
    stolen.Lock = stolen._allocate_lock = Lock
    stolen.RLock = RLock
    stolen.Thread, stolen.Timer = Thread, Timer
    stolen.get_ident = lambda: id(_scheduler.current)
    stolen.current_thread = lambda: _scheduler.current or _MAIN
    stolen.local = Local
    stolen._shutdown = lambda: None  # no thread is to be joined, least of all by who fails here
    pools: Any = concurrent.futures
    pools.ThreadPoolExecutor = pools.thread.ThreadPoolExecutor = Pool
    clocks: Any = time
    clocks.monotonic = lambda: _scheduler.monotonic_ns() / 1e9
    clocks.monotonic_ns = lambda: _scheduler.monotonic_ns()
    clocks.time = lambda: _scheduler.wall_ns() / 1e9
    clocks.time_ns = lambda: _scheduler.wall_ns()
    clocks.sleep = sleep
    clocks.clock_gettime = lambda which: _clock_ns(which) / 1e9
    clocks.clock_gettime_ns = lambda which: _clock_ns(which)
    queues: Any = queue
    queues.SimpleQueue = queues._PySimpleQueue
    stolen._time = queue.time = clocks.monotonic  # type: ignore[attr-defined]


def _clock_ns(which: int) -> int:
    if which in (time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC):
        return _scheduler.monotonic_ns()
    if which == _CLOCK_REALTIME_COARSE:
        return _scheduler.wall_ns() // TICK_NS * TICK_NS
    return _scheduler.wall_ns()


_CLOCK_REALTIME_COARSE = 5
TICK_NS = 4_000_000  # of the kernel's clock: what is dated within one is dated the same


class _Main:
    name = "main"
    daemon = False
    ident = 0


_MAIN = _Main()
