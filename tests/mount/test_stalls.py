"""The watch on the event loop."""

from __future__ import annotations

import logging
import threading

import pytest
import trio

from dserverfs.base.errors import UsageError
from dserverfs.mount.stalls import stalls_logged
from dserverfs.settings import Settings

LIMIT_S = 0.02


def hold_up_all_requests() -> None:
    threading.Event().wait(10 * LIMIT_S)


async def with_a_stall(limit_s: float | None) -> None:
    with stalls_logged(limit_s):
        await trio.sleep(2 * LIMIT_S)
        hold_up_all_requests()
        await trio.sleep(2 * LIMIT_S)


@pytest.mark.expects_log("the event loop stalled")
def test_stall_is_logged_with_what_the_loop_was_doing(caplog: pytest.LogCaptureFixture) -> None:
    trio.run(with_a_stall, LIMIT_S)

    assert any("hold_up_all_requests" in record.getMessage() for record in caplog.records)


def test_nothing_is_watched_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    trio.run(with_a_stall, None)

    assert not caplog.records


def test_limit_of_a_stall_is_a_number_of_milliseconds() -> None:
    assert Settings({}, {}).stall_s() is None
    assert Settings({"DSERVER_LOG_STALLS_MS": "50"}, {}).stall_s() == 0.05
    for value in ("0", "-1", "1.5", "many"):
        with pytest.raises(UsageError, match="DSERVER_LOG_STALLS_MS"):
            Settings({"DSERVER_LOG_STALLS_MS": value}, {}).stall_s()
