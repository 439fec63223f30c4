"""dtool's commands, run as a user runs them, and dtool-s3 to look behind them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import dtoolcore
import pytest

from tests.support.server_store import storage_of
from tests.support.servers import ServerHandle
from tests.support.warm_dtool import WarmDtool

TIMEOUT_S = 120

warm_dtool = WarmDtool()  # closed at the end of the run


class Dtool(NamedTuple):
    """A user's environment, with an empty home."""

    home: Path
    environment: Mapping[str, str]

    def run(
        self, *arguments: object, input: str = "", env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `dtool ARGUMENTS...` to its end."""
        return warm_dtool.run(
            [*map(str, arguments)],
            env={**self.environment, **(env or {})},
            cwd=self.home,
            input=input,
            timeout_s=TIMEOUT_S,
        )

    def program(self, code: str, *arguments: object) -> str:
        """Run a Python program that must succeed, and say nothing on stderr, as `output`."""
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=dict(self.environment),
            cwd=self.home,
            input="",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def output(self, *arguments: object, input: str = "") -> str:
        """Run a command that must succeed, and say nothing on stderr; return what it printed."""
        done = self.run(*arguments, input=input)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def refusal(self, *arguments: object, env: Mapping[str, str] | None = None) -> str:
        """Run a command that must fail with one line on stderr; return that line."""
        done = self.run(*arguments, env=env)
        assert done.returncode != 0, done
        lines = done.stderr.splitlines()
        assert len(lines) == 1, done.stderr
        return lines[0]


def dtool_of(home: Path, token: str) -> Dtool:
    """Return dtool for the holder of a token."""
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "LC_ALL") if key in os.environ}
    # getpass.getuser, which dtool calls, wants a name.
    return Dtool(
        home,
        {**kept, "HOME": str(home), "LOGNAME": "tester", "DSERVER_TOKEN": token},
    )


@contextlib.contextmanager
def s3_access(server: ServerHandle, cache: Path) -> Iterator[None]:
    """Let dtool-s3 in this process see the server's buckets, with the store's credentials."""
    storage = storage_of(server)
    with pytest.MonkeyPatch.context() as patch:
        # Of every bucket: boto3's own variables.
        patch.setenv("AWS_ENDPOINT_URL", storage.endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", storage.access_key)
        patch.setenv("AWS_SECRET_ACCESS_KEY", storage.secret_key)
        patch.setenv("AWS_DEFAULT_REGION", storage.region)
        patch.setenv("DTOOL_CACHE_DIRECTORY", str(cache))
        yield


def stored_dataset(uuid: str, bucket: str) -> dtoolcore.DataSet:
    """Return a dataset as dtool-s3 sees it; under `s3_access`."""
    return dtoolcore.DataSet.from_uri(f"s3://{bucket}/{uuid}")
