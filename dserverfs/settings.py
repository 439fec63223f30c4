"""Where configuration comes from: the environment, then `~/.config/dtool/dtool.json`.

Read by `dserverfs.client` alone, so that no lower layer has a hidden switch.
The variables are those of the dtool ecosystem; what this file does not find
there has the default written beside it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from dserverfs.errors import UsageError

TOKEN = "DSERVER_TOKEN"
TOKEN_FILE = "DSERVER_TOKEN_FILE"
PROTOCOL = "DSERVER_PROTOCOL"
CACHE_DIR = "DSERVER_CACHE_DIR"


class Settings:
    """The user's configuration; a snapshot of the file, the environment wins."""

    def __init__(self, environment: Mapping[str, str], file_values: Mapping[str, object]) -> None:
        self._environment = environment
        self._file_values = file_values

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None) -> Settings:
        """Read dtool.json; raises UsageError if it is there and is no JSON object."""
        environment = os.environ if environment is None else environment
        path = _config_home(environment) / "dtool" / "dtool.json"
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            values = {}
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path}: is not a JSON object")
        return cls(environment, values)

    def get(self, key: str) -> str | None:
        """Return the value of `key`; an empty one counts as not set."""
        value = self._environment.get(key) or self._file_values.get(key)
        return str(value) if value else None

    def protocol(self) -> str:
        """Return `http` or `https`."""
        protocol = self.get(PROTOCOL) or "http"
        if protocol not in ("http", "https"):
            raise UsageError(f"{PROTOCOL}={protocol}: must be http or https")
        return protocol

    def token(self) -> str | None:
        return self.get(TOKEN)

    def token_file(self) -> Path | None:
        value = self.get(TOKEN_FILE)
        return Path(value).expanduser().absolute() if value else None

    def cache_directory(self) -> Path:
        value = self.get(CACHE_DIR)
        if value:
            return Path(value).expanduser().absolute()
        home = self._environment.get("XDG_CACHE_HOME") or "~/.cache"
        return (Path(home).expanduser() / "dserverfs").absolute()

    def data_directory(self) -> Path:
        """Return where data of ours is kept that is nowhere else."""
        home = self._environment.get("XDG_DATA_HOME") or "~/.local/share"
        return (Path(home).expanduser() / "dserverfs").absolute()

    def state_directory(self) -> Path:
        """Return where logs go that the user did not name a file for."""
        home = self._environment.get("XDG_STATE_HOME") or "~/.local/state"
        return (Path(home).expanduser() / "dserverfs").absolute()


def _config_home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
