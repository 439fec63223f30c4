"""The lab as seen from afar: dserver and store behind a line of ours, the same for all peers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Sequence

from benchmark.lab import Lab, Published
from dserverfs.server.store import die_with_parent

MEGABITS = 1000
START_TIMEOUT_S = 30.0


@contextlib.contextmanager
def seen_from_afar(lab: Lab, round_trip_ms: int) -> Iterator[Lab]:
    """Yield a lab with the same datasets at other addresses, until the end of the block."""
    near = urllib.parse.urlsplit(lab.storage.endpoint).netloc
    line = [str(round_trip_ms), str(MEGABITS)]
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(_process("benchmark.delay_proxy", near, *line))
        storage = dataclasses.replace(lab.storage, endpoint=f"http://127.0.0.1:{store}")
        data = str(lab.directory / "server")
        server = stack.enter_context(
            _process("benchmark.second_server", data, storage.endpoint, storage.bucket)
        )
        web = stack.enter_context(_process("benchmark.delay_proxy", f"127.0.0.1:{server}", *line))
        base_uri = f"dserver://127.0.0.1:{web}/s3/{storage.bucket}"
        yield Lab(lab.directory, lab.sizes, base_uri, lab.token_file, storage)


def there(lab: Lab, dataset: Published) -> Published:
    """Return a dataset of the near lab as it is in `lab`."""
    uuid = dataset.local.admin_metadata["uuid"]
    return dataclasses.replace(dataset, uri=f"{lab.base_uri}/{uuid}")


@contextlib.contextmanager
def _process(module: str, *arguments: str) -> Iterator[int]:
    """Run a module that prints a port; yield that."""
    command: Sequence[str] = [
        *(sys.executable, "-I", "-S", die_with_parent.__file__, str(os.getpid())),
        *(sys.executable, "-m", module, *arguments),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
            port = process.stdout.readline().strip() if ready else ""
            if not port:
                raise RuntimeError(f"{module} did not start")
            yield int(port)
        finally:
            process.kill()
