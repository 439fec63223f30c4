"""The mount: mounts, serves, and says when the mount answers.

Run by the daemon. One that is killed or fails leaves a dead mount point (ENOTCONN), never an empty
directory, unless its channel has another daemon take its place. A device that was given is mounted
already: it is served until the program that mounted it unmounts it, and not unmounted here.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import pyfuse3
import trio

from dserverfs.base import mountinfo, service_manager
from dserverfs.base.end_signals import EndSignals
from dserverfs.base.errors import DserverfsError, UsageError
from dserverfs.base.model import Dataset
from dserverfs.client import Client
from dserverfs.mount import (
    allocator,
    background,
    direct_requests,
    given_device,
    invalidation,
    kernel_tuning,
    mountpoint,
    taking_over,
)
from dserverfs.mount.channel.link import Link
from dserverfs.mount.control import Address, Server
from dserverfs.mount.control_commands import Commander
from dserverfs.mount.kept_errors import KeptErrors
from dserverfs.mount.launcher import MountOptions
from dserverfs.mount.metrics import Metrics
from dserverfs.mount.parts import Parts
from dserverfs.mount.recent_errors import RecentErrors
from dserverfs.mount.stalls import stalls_logged
from dserverfs.mount.taking_over import Numbers
from dserverfs.mount.told_contents import ToldContents
from dserverfs.remote.tokens import TokenSource
from dserverfs.settings import Settings
from dserverfs.tree.number_journal import NumberJournal

logger = logging.getLogger(__name__)

# How long requests under way may go on after a signal to end.
GRACE_S = 2.0
# Requests answered at a time; at pyfuse3's 99, so many stalled reads stop `ls`.
MAX_REQUESTS = 10_000
ERRORS_KEPT_S = 10.0  # guess: a mount that is killed forgets those of so long
TOKEN_CHECK_S = 600.0  # a token that lasts a day is renewed after half of it
# The kernel's first request is there before the daemon looks for it.
FIRST_REQUEST_S = 20.0


def run(
    options: MountOptions,
    settings: Settings,
    client: Client,
    only: Future[Dataset | None],
    ready_fd: int | None,
    signals: EndSignals,
    channel: Link | None = None,
) -> None:
    """Mount and serve until unmounted or told to end; raises DserverfsError if it cannot.

    `only` becomes the dataset that the URI names, if it names one. `ready_fd` is
    where to say that the mount answers; it is closed.
    """
    allocator.keep_freed_memory()
    if options.given is None and not (channel is not None and channel.is_inherited):
        if options.allow_other:
            mountpoint.require_allow_other()
        mountpoint.prepare(options.path)
    kept = None
    if options.given is None:  # else it has no place that is the same the next time
        kept = KeptErrors(settings.errors_directory(), options.path, str(options.uri))
    numbers = Numbers.of(channel)
    shown = taking_over.shown_dataset(numbers, options, only)
    parts = Parts.of(options, client, shown, kept, channel, numbers, signals)
    del numbers  # what the daemon before had given: not for as long as this one serves
    with _metrics_served(options, parts.metrics), _errors_kept(kept, parts.recent_errors):
        _mount(options, parts, settings, ready_fd)
    is_replaced = parts.is_replaced()
    if not signals.seen and not is_replaced:
        client.edits.take_as_closed()
    client.edits.close()
    logger.info("%s: %s", options.path, "left to another daemon" if is_replaced else "unmounted")


def _mount(options: MountOptions, parts: Parts, settings: Settings, ready_fd: int | None) -> None:
    if options.given is not None:
        given_device.require_waiting(options.given)
    wanted, channel = _fuse_options(options), parts.channel
    parts.signals.hold()
    target = _target(options, channel, wanted, parts.journal)
    try:
        pyfuse3.init(parts.operations, target, wanted)
    except RuntimeError as error:
        if channel is not None and not channel.is_inherited:  # it has mounted, and nobody saw it
            _end_channel(options, parts, channel)
        raise UsageError(f"{options.path}: cannot be mounted: {error}") from error
    try:
        trio.run(_serve, options, parts, settings, ready_fd)
        if parts.failures:
            raise parts.failures[0]
        if not (parts.operations.begun.is_set() or parts.signals.seen):
            raise UsageError(f"{options.path}: was unmounted before it was served")
    except BaseException:
        # A dead mount point is seen; an empty directory would be mirrored.
        pyfuse3.close(unmount=False)
        raise
    if parts.is_replaced():
        pyfuse3.close(unmount=False)
        return
    if channel is not None:
        channel.end()
    pyfuse3.close(unmount=options.given is None)
    if channel is not None:
        _end_channel(options, parts, channel)


def _end_channel(options: MountOptions, parts: Parts, channel: Link) -> None:
    """Unmount what the channel has mounted: libfuse, which has not, does not."""
    channel.close()
    if not parts.unmounted.is_set() and options.given is None:
        mountpoint.detach(options.path)


def _target(
    options: MountOptions, channel: Link | None, wanted: set[str], journal: NumberJournal
) -> str:
    """Return what libfuse is to be told to mount; with a channel it is mounted by now."""
    if channel is None:
        return str(options.path)
    if options.given is None:
        return channel.mount(options.path, wanted, journal.fd)
    return channel.take(options.given, options.uid, journal.fd)


@contextlib.contextmanager
def _metrics_served(options: MountOptions, metrics: Metrics) -> Iterator[None]:
    """Show the figures to Prometheus until the end of the block, if that is asked for.

    Raises UsageError if the address is taken.
    """
    if options.metrics_at is None:
        yield
        return
    from dserverfs.mount import metrics_page  # its http.server takes 20 ms

    with metrics_page.serving(*options.metrics_at, metrics.text):
        yield


@contextlib.contextmanager
def _errors_kept(kept: KeptErrors | None, recent: RecentErrors) -> Iterator[None]:
    """Go on with the errors that the last mount there told of, and leave them for the next."""
    if kept is None:
        yield
        return
    recent.restore(kept.load())
    try:
        yield
    finally:
        kept.keep(recent.below(""))


def _fuse_options(options: MountOptions) -> set[str]:
    source = str(options.uri).replace("\\", "\\\\").replace(",", "\\,")
    wanted = {f"fsname={source}", "subtype=dserverfs", "default_permissions"}
    if options.read_only:
        wanted.add("ro")
    if options.allow_other:
        wanted.add("allow_other")
    return wanted | set(options.fuse_options)


async def _serve(
    options: MountOptions, parts: Parts, settings: Settings, ready_fd: int | None
) -> None:
    with stalls_logged(settings.stall_s()):
        await _serve_requests(options, parts, settings.control_directory(), ready_fd)


async def _serve_requests(
    options: MountOptions, parts: Parts, control_directory: Path, ready_fd: int | None
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope, parts.signals)
        nursery.start_soon(_begin, options, parts, control_directory, ready_fd)
        nursery.start_soon(keep_token, parts.tokens)
        if parts.kept_errors is not None:
            nursery.start_soon(_keep_errors, parts.kept_errors, parts.recent_errors)
        if parts.channel is not None and parts.contents is not None:
            nursery.start_soon(_answer_directly, parts, parts.channel, parts.contents)
        await pyfuse3.main(max_tasks=MAX_REQUESTS)
        if ready_fd is None and not options.successor:
            service_manager.stopping(f"{options.path} is unmounted")
        nursery.cancel_scope.cancel()


async def _answer_directly(parts: Parts, channel: Link, contents: ToldContents) -> None:
    with contextlib.closing(contents):
        await direct_requests.serve(channel, parts.operations, contents)
    parts.unmounted.set()
    pyfuse3.terminate()


async def keep_token(tokens: TokenSource) -> None:
    """Have the token renewed also when nobody uses the mount, for as long as this is run."""
    while True:
        await trio.sleep(TOKEN_CHECK_S)
        try:
            await trio.to_thread.run_sync(tokens.token, abandon_on_cancel=True)
        except DserverfsError as error:
            logger.debug("the token was looked at: %s", error)


async def _keep_errors(kept: KeptErrors, recent: RecentErrors) -> None:
    """Write the errors that programs were given; of a mount that is killed, the next one knows."""
    while True:
        await trio.sleep(ERRORS_KEPT_S)
        await trio.to_thread.run_sync(kept.keep, recent.below(""))


async def _end_on_signal(scope: trio.CancelScope, signals: EndSignals) -> None:
    come, token = trio.Event(), trio.lowlevel.current_trio_token()
    with signals.told(lambda: token.run_sync_soon(come.set, idempotent=True)):
        await come.wait()
    logger.info("ends on %s", signals.seen[0].name)
    pyfuse3.terminate()
    scope.deadline = trio.current_time() + GRACE_S


async def _begin(
    options: MountOptions, parts: Parts, control_directory: Path, ready_fd: int | None
) -> None:
    try:
        await _tell_ready(options, parts, control_directory, ready_fd)
    except DserverfsError as error:
        parts.failures.append(error)
        pyfuse3.terminate()


async def _tell_ready(
    options: MountOptions, parts: Parts, control_directory: Path, ready_fd: int | None
) -> None:
    address = await _answering(options, parts, control_directory)
    if ready_fd is not None and background.is_alone(ready_fd):
        logger.warning("the command that mounts %s was ended: so is the mount", options.path)
        pyfuse3.terminate()
        return
    token = trio.lowlevel.current_trio_token()
    commander = Commander(
        options.uri,
        options.path,
        parts.tree,
        parts.staging,
        parts.freezer,
        parts.edits,
        parts.reader,
        parts.cached,
        parts.operations.traces,
        parts.tokens,
        parts.recent_errors,
        parts.cache_usage,
        parts.site_cache,
        parts.look,
        lambda call: trio.from_thread.run_sync(call, trio_token=token),
        functools.partial(invalidation.of_name, parts.channel),
        parts.replacement,
        pyfuse3.terminate,
    )
    control = Server(address, commander)
    control.open()
    recipe = taking_over.recipe(options)
    if parts.channel is not None and recipe is not None:
        parts.channel.serves(recipe)
    logger.info("%s: mounted at %s", options.uri, options.path)
    gc.freeze()  # what was imported stays: it need not be looked through again and again
    gc.enable()
    if ready_fd is not None:
        background.become_daemon(ready_fd)
    elif recipe is None:
        service_manager.ready(f"{options.uri} is mounted at {options.path}")
    else:  # in the place of another one
        background.leave_stderr()
    try:
        await trio.sleep_forever()
    finally:
        control.close()


async def _answering(options: MountOptions, parts: Parts, directory: Path) -> Address:
    """Wait until the mount answers; return where its commands are to find the daemon.

    Raises UsageError if the kernel asks nothing, or what was mounted just now is an error.
    """
    if parts.control is None:
        device = await _device_of(options, parts)
        kernel_tuning.tune(device)
        return Address.of(directory, device, os.geteuid())
    with trio.move_on_after(FIRST_REQUEST_S):
        await parts.operations.begun.wait()
    if not parts.operations.begun.is_set():
        raise UsageError(
            f"{options.path}: the kernel's first request has not come: another daemon serves it"
        )
    return Address.of_given(directory, parts.control)


async def _device_of(options: MountOptions, parts: Parts) -> int:
    """Return the number of the mount's device, when the mount answers.

    What another daemon has mounted may answer with an error: the token is lost, say, and with
    another one all is as before.
    """
    try:
        status = await trio.to_thread.run_sync(os.stat, options.path, abandon_on_cancel=True)
        return status.st_dev
    except OSError as error:
        mounted = mountinfo.find_mounted(options.path)
        if parts.channel is None or not parts.channel.is_inherited or mounted is None:
            raise UsageError(f"{options.path}: does not answer: {error.strerror}") from error
        logger.warning("%s: goes on with an error: %s", options.path, error.strerror)
        return mounted.device
