"""Asking the kernel to forget: without waiting, and where it cannot be asked the log says so."""

from __future__ import annotations

import errno
import threading
from typing import cast

import pytest

from dserverfs.mount import invalidation
from dserverfs.mount.channel.link import Link
from tests.support.few_threads import no_more_threads
from tests.support.patience import LATE_S


class Kernel:
    """A channel's way to a kernel that may refuse."""

    def __init__(self, error: OSError | None = None) -> None:
        self._error = error
        self.asked: list[threading.Thread] = []
        self.forgotten: list[threading.Thread] = []

    @property
    def link(self) -> Link:
        return cast("Link", self)

    def forget(self, inode: int) -> None:
        self.forgotten.append(threading.current_thread())

    def invalidate_inode(self, inode: int) -> None:
        self.asked.append(threading.current_thread())
        if self._error is not None:
            raise self._error

    def invalidate_entry(self, directory: int, name: bytes) -> None:
        self.asked.append(threading.current_thread())


def join() -> None:
    for thread in threading.enumerate():
        if thread.name == "invalidate":
            thread.join(LATE_S)


def test_kernel_is_asked_by_another_thread_and_the_channel_at_once() -> None:
    kernel = Kernel()

    invalidation.of_pages(kernel.link, 7, "an item")
    invalidation.of_name(kernel.link, 1, "name")

    assert kernel.forgotten == [threading.current_thread()]
    join()
    assert len(kernel.asked) == 2
    assert threading.current_thread() not in kernel.asked


@pytest.mark.expects_log("may keep wrong bytes of an item: .*not permitted")
def test_pages_that_the_kernel_does_not_forget_are_told(caplog: pytest.LogCaptureFixture) -> None:
    invalidation.of_pages(Kernel(OSError(errno.EPERM, "not permitted")).link, 7, "an item")

    join()
    assert "may keep wrong bytes of an item" in caplog.text


@pytest.mark.expects_log("may keep wrong bytes of an item: there is no thread")
def test_without_a_thread_the_caller_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    with no_more_threads():
        invalidation.of_name(kernel.link, 1, "name")
        assert "may keep" not in caplog.text
        invalidation.of_pages(kernel.link, 7, "an item")

    assert kernel.forgotten
    assert kernel.asked == []
    assert "there is no thread" in caplog.text
