"""Threads, clocks and chance of the simulation: one seed is one schedule.

Every thread of a simulated process is a greenlet in one thread of this process. It goes on
until it waits (for a lock, a moment, an answer) or meets a seam, where another one may be
chosen by the seed. When all of them wait, the clock moves to the next moment that one of
them waits for: an hour of pauses takes no time.
"""

from __future__ import annotations

import heapq
import random
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import greenlet

# A moment in 2033, on a second: files of the real machine look older than anything here.
EPOCH_NS = 2_000_000_000 * 10**9
_BOOT_NS = 1_000 * 10**9


class Killed(BaseException):
    """The process of this task was killed: nothing that it does from now on has an effect."""


class Stuck(AssertionError):
    """No task can go on, and no moment is waited for."""


class Process:
    """A simulated process: the tasks that die together."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.is_dead = False
        self.tasks: dict[Task, None] = {}

    def __repr__(self) -> str:
        return f"{self.name}[{self.pid}]{' dead' if self.is_dead else ''}"


class Task:
    """A thread of a process."""

    def __init__(
        self,
        name: str,
        process: Process,
        call: Callable[[], object],
        hub: greenlet.greenlet,
    ) -> None:
        self.name = name
        self.process = process
        self.greenlet = greenlet.greenlet(self._run, hub)
        self.is_done = False
        self.is_loop = False  # answers the kernel: must not wait for a network or a disk
        self.error: BaseException | None = None
        self.joiners: list[Task] = []
        self.locals: dict[int, dict[str, Any]] = {}
        self.wait_number = 0  # of its last wait: a moment of an earlier one wakes nobody
        self.was_woken = False
        self._call = call

    def _run(self) -> None:
        try:
            self._call()
        except Killed:
            pass
        except BaseException as error:  # noqa: BLE001 - told by the scheduler
            self.error = error

    def __repr__(self) -> str:
        return f"{self.process.name}/{self.name}"


class Scheduler:
    """The tasks of one run."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ns = 0
        self.steps = 0
        self.trace = 0  # a checksum of all that was run, in order
        self.current: Task | None = None
        self.failure: BaseException | None = None
        self._ready: list[Task] = []
        self._timers: list[tuple[int, int, Task, int]] = []
        self._count = 0
        self._hub = greenlet.getcurrent()
        self._to_unwind: list[Process] = []

    # Clocks

    def monotonic_ns(self) -> int:
        return _BOOT_NS + self.now_ns

    def wall_ns(self) -> int:
        return EPOCH_NS + self.now_ns

    # Tasks

    def spawn(self, name: str, process: Process, call: Callable[[], object]) -> Task:
        task = Task(name, process, call, self._hub)
        if process.is_dead:
            task.is_done = True
            return task
        process.tasks[task] = None
        self._ready.append(task)
        return task

    def pause(self) -> None:
        """Let any other task go on first."""
        task = self._living()
        if task is not None:
            self._ready.append(task)
            self._leave(task)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return whether the task was woken before the time was over."""
        task = self._living()
        assert task is not None, "nobody but a task can wait"
        task.wait_number += 1
        task.was_woken = False
        if timeout_s is not None:
            self._count += 1
            moment_ns = self.now_ns + max(1000, round(min(timeout_s, 1e9) * 1e9))
            heapq.heappush(self._timers, (moment_ns, self._count, task, task.wait_number))
        self._leave(task)
        return task.was_woken

    def wake(self, task: Task) -> None:
        """Have a task that waits go on."""
        if not task.is_done and not task.process.is_dead:
            task.was_woken = True
            task.wait_number += 1
            self._ready.append(task)

    def join(self, task: Task, timeout_s: float | None = None) -> None:
        me = self.current
        if not task.is_done and me is not None:
            task.joiners.append(me)
            if not self.wait(timeout_s):
                task.joiners.remove(me)

    def kill(self, process: Process) -> None:
        """End a process as SIGKILL does; raises Killed if it is that of the running task."""
        if process.is_dead:
            return
        process.is_dead = True
        self._to_unwind.append(process)
        if self.current is not None and self.current.process is process:
            raise Killed
        if self.current is None:
            self._unwind()

    def as_loop(self, is_loop: bool) -> bool:
        """Set whether the task answers the kernel just now; return what it was."""
        task = self.current
        if task is None:
            return False
        before, task.is_loop = task.is_loop, is_loop
        return before

    def require_alive(self) -> None:
        """Raise Killed in a task whose process was killed."""
        if self.current is not None and self.current.process.is_dead:
            raise Killed

    def run(self, until: Callable[[], bool]) -> None:
        """Go on until `until` says so or a task fails; for the main thread alone."""
        ready, rng = self._ready, self.rng
        while self.failure is None and not until():
            if not ready:
                self._to_next_moment()
                continue
            place = int(rng.random() * len(ready))
            ready[place], ready[-1] = ready[-1], ready[place]
            task = ready.pop()
            if task.is_done or task.process.is_dead:
                continue
            self.steps += 1
            self.trace = zlib.crc32(task.name.encode(), self.trace)
            self._switch(task)
        if self.failure is not None:
            raise self.failure

    def stacks(self) -> str:
        """Return where each task is, for a person."""
        return "\n".join(
            f"{task}\n{''.join(traceback.format_stack(task.greenlet.gr_frame)[-6:])}"
            for task in self._all_tasks()
            if task.greenlet.gr_frame is not None
        )

    # Inside

    def _all_tasks(self) -> list[Task]:
        seen = {task: None for task in self._ready}
        seen.update((entry[2], None) for entry in self._timers)
        for process in {task.process: None for task in seen}:
            seen.update(process.tasks)
        return [task for task in seen if not task.is_done]

    def _living(self) -> Task | None:
        task = self.current
        if task is not None and task.process.is_dead:
            raise Killed
        return task

    def _leave(self, task: Task) -> None:
        self._hub.switch()
        if task.process.is_dead:
            raise Killed

    def _switch(self, task: Task) -> None:
        self.current = task
        task.greenlet.switch()
        self.current = None
        if task.greenlet.dead:
            self._ended(task)
        if self._to_unwind:
            self._unwind()

    def _ended(self, task: Task) -> None:
        task.is_done = True
        task.process.tasks.pop(task, None)
        for joiner in task.joiners:
            self.wake(joiner)
        if task.error is not None and self.failure is None:
            self.failure = task.error

    def _unwind(self) -> None:
        """Let the tasks of killed processes end; none of what they do has an effect."""
        processes, self._to_unwind = self._to_unwind, []
        for process in processes:
            for task in list(process.tasks):
                self.current = task
                for _ in range(100):
                    if not task.greenlet:  # not begun, or over
                        break
                    task.greenlet.throw(Killed)
                self.current = None
                task.is_done = True
                for joiner in task.joiners:
                    self.wake(joiner)
            process.tasks.clear()

    def _to_next_moment(self) -> None:
        while self._timers:
            moment_ns, _, task, wait_number = heapq.heappop(self._timers)
            if task.wait_number != wait_number or task.is_done or task.process.is_dead:
                continue
            self.now_ns = max(self.now_ns, moment_ns)
            task.wait_number += 1
            self._ready.append(task)
            return
        raise Stuck(f"every task waits for another one:\n{self.stacks()}")
