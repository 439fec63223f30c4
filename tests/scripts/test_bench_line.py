"""The benchmark's line: bytes arrive as they were sent, and not sooner than from afar."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.patience import LATE_S

SOURCES = Path(__file__).parents[2]
ROUND_TRIP_S = 0.1


@pytest.fixture
def echo() -> Iterator[int]:
    """Run a server that sends back what comes; yield its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    while piece := connection.recv(65536):
                        connection.sendall(piece)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(LATE_S)


def start_line(port: int, megabits: int) -> subprocess.Popen[str]:
    line = [f"127.0.0.1:{port}", str(ROUND_TRIP_S * 1e3), str(megabits)]
    return subprocess.Popen(
        [sys.executable, "-m", "benchmark.delay_proxy", *line],
        env={**os.environ, "PYTHONPATH": f"{SOURCES}:{SOURCES / 'scripts'}"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("count", [1, 3_000_000])
def test_line_brings_back_what_was_sent_after_its_round_trips(echo: int, count: int) -> None:
    sent = os.urandom(count)
    with start_line(echo, 1000) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        start_s = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            sender = threading.Thread(target=client.sendall, args=(sent,))
            sender.start()
            received = bytearray()
            while len(received) < count:
                received += client.recv(65536)
            sender.join()
        seconds = time.monotonic() - start_s
        process.kill()

    assert received == sent
    assert seconds > 2 * ROUND_TRIP_S  # one to connect, one to ask


def test_line_has_no_more_than_its_bandwidth(echo: int) -> None:
    sent = bytes(2_000_000)
    with start_line(echo, 16) as process:  # 2 MB a second
        assert process.stdout is not None
        port = int(process.stdout.readline())
        start_s = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
            sender = threading.Thread(target=client.sendall, args=(sent,))
            sender.start()
            count = 0
            while count < len(sent):
                count += len(client.recv(65536))
            sender.join()
        seconds = time.monotonic() - start_s
        process.kill()

    assert seconds > 1.0
