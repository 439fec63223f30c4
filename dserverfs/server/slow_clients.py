"""Which connections of the server are closed because their clients are too slow.

Used by the web server's loop, in whose thread all of this runs. waitress closes a connection
that is idle between two requests, and none that is slow in the middle of one: a
hundred of these, of anybody on the network, would keep all others out, and eight clients
that were stopped while they read a large answer would keep all of its threads.

    a head must be complete        HEAD_S after its first byte, TLS HEAD_S after the connection
    a body or an answer            must move within STALLED_S
    more than MAX_CONNECTIONS      those go first that wait for a request longest

A request that is being worked on is never closed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

MAX_CONNECTIONS = 400  # files of the process: 1024 by default
HEAD_S = 30.0
STALLED_S = 60.0

_log = logging.getLogger(__name__)


def overdue(channels: Sequence[Any], now_s: float) -> list[Any]:
    """Return the channels to close.

    They are waitress's, each with `moved_s`, when bytes came or went last, and `request_s`, when
    its last request began or it was opened, in seconds of the monotonic clock; and with
    `is_shaking_hands`, for TLS.
    """
    late = [channel for channel in channels if _is_late(channel, now_s)]
    surplus = len(channels) - len(late) - MAX_CONNECTIONS
    if surplus > 0:
        waiting = [each for each in channels if _waits(each) and each not in late]
        waiting.sort(key=lambda each: float(each.request_s))
        late += waiting[:surplus]
    return late


def idle(channels: Sequence[Any]) -> list[Any]:
    """Return the connections on which nothing is under way."""
    return [each for each in channels if _waits(each) and each.request is None]


def close_overdue(channels: Sequence[Any]) -> None:
    """Close what is overdue; called in the thread of the loop, between two turns of it."""
    closed = overdue(channels, time.monotonic())
    for channel in closed:
        channel.handle_close()
    if closed:
        _log.info("closed %d of %d connections: slow clients", len(closed), len(channels))


def _is_late(channel: Any, now_s: float) -> bool:
    is_in_head = channel.request is not None and not channel.request.headers_finished
    if (is_in_head or channel.is_shaking_hands) and now_s - channel.request_s > HEAD_S:
        return True
    owes = channel.total_outbufs_len > 0 or channel.request is not None
    return owes and now_s - channel.moved_s > STALLED_S


def _waits(channel: Any) -> bool:
    """Return whether the client has asked for nothing that is not answered."""
    return not channel.requests and not channel.total_outbufs_len
