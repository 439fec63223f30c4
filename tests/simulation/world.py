"""One run: a machine with mounts, a server, the programs that use them, and what befalls them.

`Run(seed).go(steps)` returns what was done, or raises what is wrong. The last part of a run
is calm: everything that was promised must be there then.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import urllib.parse
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from dserverfs.base import items, retry
from dserverfs.base.errors import DserverfsError
from dserverfs.base.hashes import Policy
from tests.simulation import actors, disk_seams, network, setup, threads
from tests.simulation.daemon import Daemon, Files
from tests.simulation.disk import Disk
from tests.simulation.dserver import Dserver, Person, Registered
from tests.simulation.invariants import Invariants
from tests.simulation.model import Model, Violation
from tests.simulation.scheduler import Process, Scheduler
from tests.simulation.store import STORE, Request
from tests.simulation.weather import Weather
from tests.support.staged_states import staged_states

BASES = ("s3://one", "s3://two")
TOKEN = "alice-token"
_MOUNTS = 2
_QUIET_S = 3 * 3600.0  # of calm at the end: the longest pauses between attempts are 600 s


class Slot:
    """A mount that is begun again whenever its daemon ends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.daemon: Daemon | None = None


class Run:
    """One run of the simulation."""

    present: ClassVar[Run | None] = None

    def __init__(self, seed: int) -> None:
        Run.present = self
        self.seed = seed
        self.scheduler = Scheduler(seed)
        threads.use(self.scheduler)
        self.rng = self.scheduler.rng
        retry.chance.seed(self.rng.getrandbits(64))
        self._root = tempfile.mkdtemp(prefix="simulation-", dir=_memory())
        self.machine = Path(self._root, "machine")
        self.machine.mkdir()
        self.disk = Disk(self.scheduler, str(self.machine), self._seam)
        disk_seams.use(self.disk)
        scheduler = self.scheduler
        self.dserver = Dserver(
            lambda: scheduler.wall_ns() / 1e9, max_put_bytes=40_000, part_bytes=16_000
        )
        self.alice = Person("alice", set(BASES), set(BASES))
        self.dserver.people[TOKEN] = self.alice
        self.weather = Weather(self.rng)
        self.network = network.Network(scheduler, self.dserver, self.weather.fate_of)
        self.network.seam = self._seam
        network.use(self.network)
        self.model = Model(self.dserver, lambda: scheduler.now_ns)
        self.dserver.changed = self._changed
        self.network.heard = self._heard
        self.invariants = Invariants()
        self.counts: Counter[str] = Counter()
        self.world = Process("world", 1)
        self.slots = [Slot(f"mount-{number}") for number in range(_MOUNTS)]
        self.policy = self.rng.choice((Policy.COMPLETE, Policy.COMPLETE, Policy.STRICT))
        self.is_calm = False  # the last part
        self.token = TOKEN
        self.edited: set[str] = set()  # URIs whose README a program rewrites just now
        self.last_failure = ""
        self._rights_ns: dict[str, int] = {}  # when a right in a base URI was missing last
        self._pid = 1000
        self._all: list[Process] = []
        self._is_over = False
        self._crash_at = self._next_crash()
        setup.running.clear()

    # The run

    def go(self, steps: int) -> Counter[str]:
        """Go on for so many steps, then until all is quiet; return what was done."""
        scheduler = self.scheduler
        try:
            self._begin(steps)
            scheduler.run(lambda: self._is_over)
            self._require_kept()
        finally:
            setup.running.clear()
            self._end()
        self.counts["steps"] = scheduler.steps
        self.counts["requests"] = self.network.requests
        self.counts["checks"] = self.model.checks + self.invariants.checks
        return self.counts

    def _begin(self, steps: int) -> None:
        spawn = self.scheduler.spawn
        for slot in self.slots:
            spawn(f"keep {slot.name}", self.world, functools.partial(self._keep, slot))
        spawn("weather", self.world, self._change_weather)
        spawn("end", self.world, lambda: self._finish(steps))
        for name, program in actors.cast(self):
            process = self.new_process(name)
            setup.running[process.pid] = name
            spawn(name, process, functools.partial(self._act, program, process.pid))

    def _act(self, program: Callable[[int], None], pid: int) -> None:
        try:
            program(pid)
        finally:
            setup.running.pop(pid, None)

    def _finish(self, steps: int) -> None:
        """Let the run go on, then make it calm and wait until all is settled."""
        while self.scheduler.steps < steps:
            threads.sleep(5.0)
        self.is_calm = True
        self.weather.clear()
        self.give_rights()
        end_s = _QUIET_S
        while end_s > 0 and not self._is_settled():
            threads.sleep(60.0)
            end_s -= 60.0
        threads.sleep(700.0)
        for slot in self.slots:
            daemon = slot.daemon
            slot.daemon = None
            if daemon is not None and not daemon.process.is_dead:
                self.scheduler.join(
                    self.scheduler.spawn("umount", daemon.process, daemon.umount), 600.0
                )
        self._is_over = True

    def _is_settled(self) -> bool:
        waiting = [job for job in self.model.jobs.values() if job.is_made and job.uri is None]
        return not any(
            job.is_going_on or not (job.is_given_up or job.is_discarded) for job in waiting
        )

    def _keep(self, slot: Slot) -> None:
        """Mount, and mount again when the daemon has died."""
        while not self.is_calm or slot.daemon is None:
            process = self.new_process(slot.name)
            daemon = Daemon(
                self.scheduler,
                process,
                TOKEN,
                self.machine,
                freeze_delay_s=3.0,
                cache_size=self.rng.choice((0, 200_000, 50_000_000)),
                verify=self.policy,
            )
            failure: list[BaseException] = []

            def start(daemon: Daemon = daemon, failure: list[BaseException] = failure) -> None:
                try:
                    daemon.start()
                except (DserverfsError, OSError) as error:
                    failure.append(error)

            task = self.scheduler.spawn("start", process, start)
            self.scheduler.join(task)
            if daemon.fs is None or process.is_dead:
                self.counts["mounts that failed"] += 1
                self.kill(process, "failed")
                threads.sleep(self.rng.uniform(0.5, 20.0))
                continue
            self.counts["mounts"] += 1
            slot.daemon = daemon
            self.invariants.watch(daemon)
            while not process.is_dead and not self._is_over:
                threads.sleep(1.0 if self.is_calm else self.rng.uniform(0.1, 3.0))
            self.invariants.forget(daemon)
            if self._is_over:
                return
            slot.daemon = None
            threads.sleep(self.rng.uniform(0.0, 5.0))

    def _change_weather(self) -> None:
        while not self.is_calm:
            self.weather.change()
            threads.sleep(self.rng.uniform(1.0, 90.0))

    # What befalls them

    def _seam(self, kind: str, where: str) -> None:
        """Be where something may happen: a crash, an error, another thread."""
        scheduler = self.scheduler
        task = scheduler.current
        if task is None:
            return
        if task.is_loop and kind in ("request", "fsync", "lock"):
            raise Violation(f"the event loop waits for {kind} ({where})")
        if not self.is_calm:
            self._crash_at -= 1
            if self._crash_at <= 0:
                self._crash()
            scheduler.require_alive()
            self.weather.on_disk(kind, where)
        self.invariants.check_some(task.process)
        scheduler.pause()

    def _next_crash(self) -> int:
        return int(self.rng.expovariate(1 / 1500)) + 20

    def _crash(self) -> None:
        self._crash_at = self._next_crash()
        alive = [slot.daemon for slot in self.slots if slot.daemon is not None]
        alive = [daemon for daemon in alive if not daemon.process.is_dead]
        if self.rng.random() < 0.3:
            self.power_cut()
        elif alive:
            self.counts["kills"] += 1
            self.kill(self.rng.choice(alive).process, "killed")

    def kill(self, process: Process, why: str) -> None:
        if not process.is_dead:
            self.disk.release_locks(process)
            self.scheduler.kill(process)

    def power_cut(self) -> None:
        """End every process of the machine, and take back what was not synced."""
        self.counts["power cuts"] += 1
        mine = self.scheduler.current.process if self.scheduler.current else None
        processes = [
            process
            for process in self.processes()
            if not process.is_dead and process.name.startswith(("mount", "script-"))
        ]
        own: Process | None = None
        for process in processes:
            if process is mine:
                own = process
                continue
            self.kill(process, "without power")
        if own is not None:
            own.is_dead = True
            self.disk.release_locks(own)
        self.disk.power_cut(self.rng)
        for job in self.model.jobs.values():
            job.power_cut()
        if own is not None:
            own.is_dead = False
            self.scheduler.kill(own)

    def _changed(self, dataset: Registered, what: str, who: str) -> None:
        task = self.scheduler.current
        by = repr(task.process) if who == "alice" and task is not None else who
        try:
            self.model.changed_on_server(dataset, what, by)
        except Violation as violation:  # the code under test would take it for its own
            self.scheduler.failure = violation

    def _heard(self, request: Request) -> None:
        """Note that a process has got a README."""
        task = self.scheduler.current
        if task is not None and request.method == "GET" and "/readmes/" in request.url:
            uri = urllib.parse.unquote(request.url.rpartition("/")[2])
            self.model.compared_ns[repr(task.process), uri] = self.scheduler.now_ns

    def take_right(self, base_uri: str, right: str) -> None:
        if right == "token":
            self.dserver.expired.add(TOKEN)
        else:
            getattr(self.alice, right).discard(base_uri)
        self._note_rights()

    def give_rights(self) -> None:
        self._note_rights()
        self.alice.search, self.alice.register = set(BASES), set(BASES)
        self.dserver.expired.clear()

    def _note_rights(self) -> None:
        for base_uri in BASES:
            if base_uri not in self.alice.search:
                self._rights_ns[base_uri] = self.scheduler.now_ns

    def alice_may(self, uri: str) -> bool:
        """Return whether the mount's user could read a dataset for the last minutes."""
        base_uri = uri.rpartition("/")[0]
        since_ns = self.scheduler.now_ns - self._rights_ns.get(base_uri, -(10**18))
        return base_uri in self.alice.search and since_ns > 600 * 10**9

    def may_be_missing(self, uri: str) -> bool:
        """Return whether a dataset may be shown otherwise than frozen, or not at all."""
        is_staged = next(self.machine.glob(f"staging/*/*/{uri.rpartition('/')[2]}"), None)
        return uri in self.model.unsteady or not self.alice_may(uri) or is_staged is not None

    def may_be_unverified(self, uri: str, relpath: str) -> bool:
        """Return whether a part of an item may be wrong: the store sent wrong bytes of it."""
        identifier = hashlib.sha1(relpath.encode()).hexdigest()
        key = f"{STORE}/{uri.partition('://')[2]}/data/{identifier}"
        is_large = len(self.model.truth[uri][relpath]) > items.BLOCK_SIZE
        return self.policy is Policy.COMPLETE and is_large and key in self.weather.garbled

    def begin_program(self, name: str) -> int:
        """Return the pid of a program that writes."""
        self._pid += 1
        setup.running[self._pid] = name
        return self._pid

    def end_program(self, pid: int) -> None:
        setup.running.pop(pid, None)

    def new_uuid(self) -> str:
        return str(uuid.uuid4())

    # For the actors

    def new_process(self, name: str) -> Process:
        self._pid += 1
        process = Process(name, self._pid)
        self._all.append(process)
        return process

    def processes(self) -> Iterator[Process]:
        return iter(self._all)

    def files(self, pid: int) -> Files | None:
        """Return a mount that answers, as a program sees it; None if there is none just now."""
        alive = [slot.daemon for slot in self.slots if slot.daemon is not None]
        alive = [daemon for daemon in alive if not daemon.process.is_dead]
        return Files(self.rng.choice(alive), pid) if alive else None

    def pause(self, most_s: float) -> None:
        threads.sleep(self.rng.uniform(0.0, most_s))

    # The end

    def _require_kept(self) -> None:
        staged: dict[tuple[str, str], dict[str, bytes]] = {}
        states: dict[str, str] = {}
        for directory, record in staged_states(self.machine / "staging", torn_too=True):
            states[record["name"]] = f"{record['state']}, {record.get('reason')}"
            tree = directory / "tree"
            files = {
                str(path.relative_to(tree)): path.read_bytes()
                for path in sorted(tree.rglob("*"))
                if path.is_file()
            }
            staged[record["base_uri"], record["name"]] = files
        self.model.require_kept(staged, states)

    def _end(self) -> None:
        for process in self._all:
            self.scheduler.current = None
            self.scheduler.kill(process)
        self.scheduler.kill(self.world)
        disk_seams.use(None)
        shutil.rmtree(self._root, ignore_errors=True)


def _memory() -> str | None:
    """Return a directory in memory, if there is one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
