"""A line with a round-trip time and a bandwidth, between a client and a server on one machine.

A process: `python -m benchmark.delay_proxy HOST:PORT ROUND_TRIP_MS MEGABITS` prints
the port it listens on. Bytes of all connections share the bandwidth, each way, and
arrive half a round trip later; a connection takes one more to be made. There is
neither loss nor slow start: both would hurt those that open many connections.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

PIECE_BYTES = 64 * 1024
# Under way or not taken by the other end yet; 1 Gbit/s at 100 ms are 12 MiB.
WINDOW_BYTES = 16 * 1024 * 1024


class Line:
    """One direction of the line."""

    def __init__(self, delay_s: float, bytes_per_s: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._free_s = 0.0  # when the last byte sent has left

    def arrival_s(self, count: int) -> float:
        """Send `count` bytes; return when they arrive, by the loop's clock."""
        now_s = asyncio.get_running_loop().time()
        self._free_s = max(self._free_s, now_s) + count / self._bytes_per_s
        return self._free_s + self._delay_s


async def _pass_on(
    source: asyncio.StreamReader, target: asyncio.StreamWriter, line: Line, begin_s: float
) -> None:
    """Pass bytes on until the source ends; nothing arrives before `begin_s`."""
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WINDOW_BYTES // PIECE_BYTES)

    async def deliver() -> None:
        loop = asyncio.get_running_loop()
        while True:
            arrival_s, piece = await under_way.get()
            if (wait_s := max(arrival_s, begin_s) - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if not piece:
                target.write_eof()
                return
            target.write(piece)
            await target.drain()

    async def take() -> None:
        while piece := await source.read(PIECE_BYTES):
            await under_way.put((line.arrival_s(len(piece)), piece))
        await under_way.put((line.arrival_s(0), b""))

    await asyncio.gather(deliver(), take())


async def _serve(host: str, port: int, round_trip_s: float, bytes_per_s: float) -> None:
    there, back = (Line(round_trip_s / 2, bytes_per_s) for _ in range(2))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made_s = asyncio.get_running_loop().time() + round_trip_s * 1.5
        try:
            their_reader, their_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.close()
            return
        try:
            await asyncio.gather(
                _pass_on(reader, their_writer, there, made_s),
                _pass_on(their_reader, writer, back, made_s),
            )
        except OSError:
            pass  # one end hung up
        finally:
            writer.close()
            their_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def main(arguments: Sequence[str]) -> None:
    where, round_trip_ms, megabits = arguments
    host, _, port = where.rpartition(":")
    asyncio.run(_serve(host, int(port), float(round_trip_ms) / 1e3, float(megabits) * 1e6 / 8))


if __name__ == "__main__":
    main(sys.argv[1:])
