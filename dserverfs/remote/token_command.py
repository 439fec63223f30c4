"""A token that a command prints: one of the user's own, set by DSERVER_TOKEN_COMMAND.

Used by TokenSource. The command is run without a shell, with nothing on its standard input
and without our settings in its environment; what it prints is the token, and is in no message.
Blocks for up to RUN_TIMEOUT_S.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Sequence

from dserverfs.base import child_processes
from dserverfs.base.errors import NotAuthenticated
from dserverfs.base.printable import one_line

RUN_TIMEOUT_S = 30.0  # it may ask a server of its own


def token_of(command: Sequence[str]) -> str:
    """Return what a command prints; raises NotAuthenticated with why there is nothing."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_processes.environment(),
            start_new_session=True,  # so that what it starts can be ended with it
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _failed(command, f"cannot be run: {reason}") from error
    with process:
        try:
            said, complained = process.communicate(timeout=RUN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _end(process)
            raise _failed(command, f"did not end within {RUN_TIMEOUT_S:.0f} s") from None
        except BaseException:
            _end(process)
            raise
    if process.returncode != 0:
        lines = complained.decode("utf-8", "replace").strip().split("\n")
        why = f": {one_line(lines[-1])}" if lines[-1] else ""
        raise _failed(command, f"ended with status {process.returncode}{why}")
    token = said.decode("utf-8", "replace").strip()
    if not token:
        raise _failed(command, "printed no token")
    return token


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a command and all that it has started, which may hold its pipes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _failed(command: Sequence[str], why: str) -> NotAuthenticated:
    # Not its arguments, one of which may be a secret.
    return NotAuthenticated(f"DSERVER_TOKEN_COMMAND: {one_line(command[0])} {why}")
