"""The configuration: the environment, then `~/.config/dtool/dtool.json`.

Read by `dserverfs.client` alone, so that no lower layer has a hidden switch.
The variables are those of the dtool ecosystem where it has them. SERVER below
is HOST or HOST:PORT as in the dserver URI; what is set for a server counts
before what is set for all.

    DSERVER_URL_<SERVER>         base URL, if it is not PROTOCOL://SERVER:
                                 https://data.example.org/lookup
    DSERVER_URL                  the same, if SERVER is the host of this URL
    DSERVER_PROTOCOL             http (default) or https; counts less than the address that
                                 `dserverfs login https://SERVER/...` has kept
    DSERVER_TOKEN[_<SERVER>]     the token itself
    DSERVER_TOKEN_FILE[_<SERVER>]  a file with it, read again when it changes; of dtool.json
                                 those for all servers count less than what `dserverfs
                                 login` has kept, and where DSERVER_URL is set beside one
                                 for all, only its host gets the token
    DSERVER_TOKEN_COMMAND[_<SERVER>]  a command that prints it, run without a shell
    DSERVER_USERNAME[_<SERVER>]  whom `dserverfs login` logs in
    DSERVER_TOKEN_GENERATOR_URL[_<SERVER>]  where it does so, if not at the dserver
    DSERVER_CA_FILE[_<SERVER>]   certificate authority to trust beside the machine's,
                                 for dserver and the store: PEM file or directory
    DSERVER_VERIFY_SSL[_<SERVER>]  false: accept any certificate (default true)
    REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, SSL_CERT_FILE
                                 (environment only) certificates in place of the machine's
    HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY
                                 (environment only) never used for this machine itself
    DSERVER_SITE_CACHE[_<SERVER>]  http(s)://HOST[:PORT] of a cache before the store, which
                                 the hosts of a site share
    DSERVER_CACHE_DIR            where blocks and manifests are kept
    DTOOL_CACHE_DIRECTORY        where dtool's commands get whole items (default ~/.cache/dtool)
    DTOOL_S3_PUBLISH_EXPIRY      for how many seconds `dtool publish` lets others read
    DSERVER_DATABASE             the PostgreSQL of `dserverfs serve`, with a password or without
    DSERVER_STAGING_DIR          where datasets are until they are frozen
    DSERVER_BLOCK_HASHES[_<SERVER>]  overlay: where the server keeps no block hashes, a freeze
                                 writes them as an overlay; none: it does not (default)
    DSERVER_EXCLUDE              patterns of names that never become items, as a shell's words, or
                                 a list in dtool.json; set to nothing: every file is an item
    DTOOL_README_TEMPLATE_FPATH  what README.yml begins as in an editor, a template of dtool's
    DTOOL_USER_FULL_NAME, DTOOL_USER_EMAIL  are filled into it
    DSERVER_DATA                 data directory of the embedded server
    DSERVER_BUCKET               bucket of its base URI, under gunicorn (default datasets)
    DSERVER_PUBLIC_URL           what clients reach it by, under gunicorn
    DSERVER_TRUSTED_PROXIES      addresses and networks of its proxies, under gunicorn; commas
    DSERVER_ACCESS_LOG           file for its access log; -: standard output
    DSERVER_CORE_DUMPS           true: the memory of the daemon and of `serve`, which has tokens
                                 and keys, may be read by debuggers (default false)
    DSERVER_LOG_STALLS_MS        a mount logs what holds it up for longer than that
    DSERVER_STARTED_IN           (environment only) from where relative paths count; a mount sets it
    DSERVER_TRACE_FILE           (environment only) where a program writes which items it reads
                                 without a mount; `dserverfs trace` sets it

A name with dots, hyphens or a colon cannot be exported by a shell; `env
NAME=VALUE command` or dtool.json take it.
"""

from __future__ import annotations

import os
import re
import shlex
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from dserverfs.base import excluded
from dserverfs.base.errors import ProtocolError, UsageError
from dserverfs.base.excluded import Excluded
from dserverfs.base.limits import parse_json
from dserverfs.base.printable import public_url
from dserverfs.base.relative_paths import counted_from
from dserverfs.remote.trust import Trust

TOKEN = "DSERVER_TOKEN"
TOKEN_FILE = "DSERVER_TOKEN_FILE"
TOKEN_COMMAND = "DSERVER_TOKEN_COMMAND"
PROTOCOL = "DSERVER_PROTOCOL"
URL = "DSERVER_URL"
TOKEN_GENERATOR_URL = "DSERVER_TOKEN_GENERATOR_URL"
USERNAME = "DSERVER_USERNAME"
CA_FILE = "DSERVER_CA_FILE"
VERIFY_SSL = "DSERVER_VERIFY_SSL"
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
SITE_CACHE = "DSERVER_SITE_CACHE"
CACHE_DIR = "DSERVER_CACHE_DIR"
DTOOL_CACHE_DIR = "DTOOL_CACHE_DIRECTORY"
PUBLISH_EXPIRY = "DTOOL_S3_PUBLISH_EXPIRY"
STAGING_DIR = "DSERVER_STAGING_DIR"
BLOCK_HASHES = "DSERVER_BLOCK_HASHES"
EXCLUDE = "DSERVER_EXCLUDE"
README_TEMPLATE = "DTOOL_README_TEMPLATE_FPATH"
USER_FULL_NAME = "DTOOL_USER_FULL_NAME"
USER_EMAIL = "DTOOL_USER_EMAIL"
DATA = "DSERVER_DATA"
BUCKET = "DSERVER_BUCKET"
PUBLIC_URL = "DSERVER_PUBLIC_URL"
TRUSTED_PROXIES = "DSERVER_TRUSTED_PROXIES"
ACCESS_LOG = "DSERVER_ACCESS_LOG"
CORE_DUMPS = "DSERVER_CORE_DUMPS"
STALL_MS = "DSERVER_LOG_STALLS_MS"
TRACE_FILE = "DSERVER_TRACE_FILE"
STARTED_IN = "DSERVER_STARTED_IN"
_PATHS = (
    *(TOKEN_FILE, CA_FILE, *BUNDLES, CACHE_DIR, DTOOL_CACHE_DIR, STAGING_DIR, README_TEMPLATE),
    *("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"),
)


class TokenSetting(NamedTuple):
    """The place of a token."""

    name: str | None  # of the setting; None: `login` has kept it
    token: str | None
    file: Path | None
    bound_to: str | None  # HOST:PORT of the only server that may get it
    command: tuple[str, ...] | None = None  # that prints it

    @property
    def goes_anywhere(self) -> bool:
        """Whether it is sent to any server that a URI names."""
        return self.name in (TOKEN, TOKEN_FILE, TOKEN_COMMAND) and self.bound_to is None


class Settings:
    """The user's configuration; a snapshot of the file, the environment wins."""

    def __init__(self, environment: Mapping[str, str], file_values: Mapping[str, object]) -> None:
        self._environment = environment
        self._file_values = file_values

    @classmethod
    def load(
        cls, environment: Mapping[str, str] | None = None, *, path: Path | None = None
    ) -> Settings:
        """Read dtool.json, or `path`; raises UsageError if it is there and is no JSON object."""
        environment = os.environ if environment is None else environment
        started_in = environment.get(STARTED_IN) or ""
        environment = counted_from(started_in, environment, _PATHS)
        path = path or _dtool_config(environment)
        try:
            values = parse_json(path.read_bytes(), "it")
        except FileNotFoundError:
            values = {}
        except (OSError, ProtocolError) as error:
            raise UsageError(f"{path}: cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise UsageError(f"{path}: is not a JSON object")
        return cls(environment, counted_from(started_in, values, _PATHS))

    def overridden(self, server: str, values: Mapping[str, str]) -> Settings:
        """Return these settings with `values`, which count before all others for `server`."""
        if not values:
            return self
        environment = {**self._environment}
        if TOKEN_FILE in values:  # which the token itself would go before
            environment.pop(f"{TOKEN}_{server}", None)
        for key, value in values.items():
            environment[key if key == PROTOCOL else f"{key}_{server}"] = value
        return Settings(environment, self._file_values)

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

    def base_url(self, server: str) -> str:
        """Return where the routes of `server` begin, without a slash at the end."""
        key, value = f"{URL}_{server}", self.get(f"{URL}_{server}")
        if value is None:
            common = self.get(URL)
            if common is not None and _split(URL, common).netloc == server:
                key, value = URL, common
            elif (kept := self._kept_address(server)) is not None:
                key, value = str(self.kept_address_file(server)), kept
            else:
                return f"{self.protocol()}://{server}"
        parts = _split(key, value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"{key}={public_url(value)}: must be http://... or https://...")
        if parts.query or parts.fragment or parts.username is not None:
            raise UsageError(f"{key}={public_url(value)}: must be without user, query and fragment")
        return value.rstrip("/")

    def token(self, server: str) -> TokenSetting | None:
        """Return where the token for `server` is; None if there is none for it.

        What this run was told goes before what was written down once: the
        environment, then a setting of dtool.json that names the server, then what
        `login` has kept for it, then a setting of dtool.json for all. Of each,
        one that names the server goes before one for all.
        """
        kept = self.kept_token_file(server)
        candidates = [
            *_tokens_in(self._environment, server, is_for_all=False),
            *_tokens_in(self._environment, server, is_for_all=True),
            *_tokens_in(self._file_values, server, is_for_all=False),
            *([TokenSetting(None, None, kept, None)] if kept.exists() else []),
            *_tokens_in(self._file_values, server, is_for_all=True),
        ]
        here = _origin(self.base_url(server))
        usable = [each for each in candidates if each.bound_to in (None, here)]
        return usable[0] if usable else None

    def token_file(self, server: str) -> Path | None:
        """Return the file that the token for `server` is read from, if it is."""
        setting = self.token(server)
        return None if setting is None else setting.file

    def withheld_token(self, server: str) -> TokenSetting | None:
        """Return a token that `server` does not get because DSERVER_URL says whose it is."""
        here = _origin(self.base_url(server))
        for values in (self._environment, self._file_values):
            for each in _tokens_in(values, server, is_for_all=True):
                if each.bound_to not in (None, here):
                    return each
        return None

    def kept_token_file(self, server: str) -> Path:
        """Return where `login` keeps the token for `server`."""
        tokens = _config_home(self._environment) / "dserverfs" / "tokens"
        return (tokens / _file_name(server)).absolute()

    def kept_token_files(self) -> dict[str, Path]:
        """Return where `login` has kept tokens, by server."""
        directory = self.kept_token_file("any").parent
        try:
            names = os.listdir(directory)
        except OSError:
            return {}
        return {
            urllib.parse.unquote(name): directory / name
            for name in sorted(names)
            if not name.startswith(".")
        }

    def servers(self) -> list[str]:
        """Return the servers that are known: that of DSERVER_URL, and those with a kept token."""
        url = self.get(URL)
        named = [] if url is None else [_split(URL, url).netloc]
        return list(dict.fromkeys([*named, *self.kept_token_files()]))

    def kept_address_file(self, server: str) -> Path:
        """Return where `login` keeps the address that it was given for `server`."""
        return self.kept_token_file(server).parent.with_name("addresses") / _file_name(server)

    def _kept_address(self, server: str) -> str | None:
        try:
            return self.kept_address_file(server).read_text("ascii").strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            path = self.kept_address_file(server)
            raise UsageError(f"{path}: cannot be read: {error}") from error

    def token_generator_url(self, server: str) -> str | None:
        """Return where passwords are exchanged for tokens, if not at the dserver itself."""
        value = self._for(TOKEN_GENERATOR_URL, server)
        if value is None:
            return None
        parts = _split(TOKEN_GENERATOR_URL, value)
        if parts.scheme not in ("http", "https"):
            raise UsageError(f"{TOKEN_GENERATOR_URL}={public_url(value)}: must be http(s)://...")
        if public_url(value) != value:  # it is named in messages
            raise UsageError(
                f"{TOKEN_GENERATOR_URL}={public_url(value)}: must be without user, query and"
                " fragment"
            )
        return value

    def username(self, server: str) -> str | None:
        """Return the user's name at `server`, if it is set."""
        return self._for(USERNAME, server)

    def trust(self, server: str) -> Trust:
        """Return whose certificates count, for `server` and the store behind it."""
        verify = _truth(VERIFY_SSL, self._for(VERIFY_SSL, server) or "true")
        ca_file = self._for(CA_FILE, server)
        bundle = next((self._environment[key] for key in BUNDLES if self._environment.get(key)), "")
        return Trust(
            bundle=Path(bundle).absolute() if bundle else None,
            ca_file=Path(ca_file).expanduser().absolute() if ca_file else None,
            verify=verify,
        )

    def site_cache(self, server: str) -> str | None:
        """Return where the site cache before the store of `server` is: scheme, host and port."""
        value = self._for(SITE_CACHE, server)
        if value is None or value == "none":
            return None
        parts = _split(SITE_CACHE, value)
        if (
            parts.scheme not in ("http", "https")
            or not re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", parts.netloc)
            or parts.path not in ("", "/")
            or public_url(value) != value
        ):
            raise UsageError(f"{SITE_CACHE}={public_url(value)}: must be http(s)://HOST[:PORT]")
        return value.rstrip("/")

    def cache_directory(self) -> Path:
        value = self.get(CACHE_DIR)
        if value:
            return Path(value).expanduser().absolute()
        home = self._environment.get("XDG_CACHE_HOME") or "~/.cache"
        return (Path(home).expanduser() / "dserverfs").absolute()

    def dtool_cache_directory(self) -> Path:
        """Return where dtool's brokers keep whole items."""
        value = self.get(DTOOL_CACHE_DIR) or "~/.cache/dtool"
        return Path(value).expanduser().absolute()

    def publish_expiry_s(self) -> int | None:
        """Return for how many seconds a published dataset can be read; None: the server says."""
        value = self.get(PUBLISH_EXPIRY)
        if value is not None and not value.isdecimal():
            raise UsageError(f"{PUBLISH_EXPIRY}={value}: must be a number of seconds")
        return None if value is None else int(value)

    def stall_s(self) -> float | None:
        """Return for how long a mount's event loop may be held up unlogged; None: for ever."""
        value = self.get(STALL_MS)
        if value is None:
            return None
        if not value.isdecimal() or not int(value):
            raise UsageError(f"{STALL_MS}={value}: must be a number of milliseconds")
        return int(value) / 1000

    def trace_file(self) -> Path | None:
        """Return where this process is to write what it reads; None if it is not traced."""
        path = self._environment.get(TRACE_FILE)
        return Path(path) if path else None

    def data_directory(self) -> Path:
        """Return where data of ours is kept that is nowhere else."""
        home = self._environment.get("XDG_DATA_HOME") or "~/.local/share"
        return (Path(home).expanduser() / "dserverfs").absolute()

    def server_directory(self) -> Path:
        """Return where the server keeps everything. A relative XDG_DATA_HOME counts for nothing."""
        if (value := self.get(DATA)) is not None:
            return Path(value).expanduser().absolute()
        home = Path(self._environment.get("XDG_DATA_HOME") or "")
        base = home if home.is_absolute() else Path.home() / ".local" / "share"
        return base / "dserverfs" / "server"

    def staging_directory(self) -> Path:
        """Return where datasets are until they are frozen; not to be lost."""
        value = self.get(STAGING_DIR)
        if value:
            return Path(value).expanduser().absolute()
        return self.data_directory() / "staging"

    def writes_hash_overlay(self, server: str) -> bool:
        """Return whether hashes are an overlay where `server` has no other place for them."""
        value = self._for(BLOCK_HASHES, server) or "none"
        if value not in ("overlay", "none"):
            raise UsageError(f"{BLOCK_HASHES}={value}: must be overlay or none")
        return value == "overlay"

    def excluded(self) -> Excluded:
        """Return the names that never become items; raises UsageError for what is no pattern."""
        value = self._environment.get(EXCLUDE, self._file_values.get(EXCLUDE))
        if value is None:
            return Excluded(excluded.DEFAULT)
        patterns = value if isinstance(value, list) else _words(EXCLUDE, str(value))
        for pattern in patterns:
            if not isinstance(pattern, str) or not pattern or "/" in pattern:
                raise UsageError(
                    f"{EXCLUDE}: {pattern!r} cannot be a name's pattern: it is text without /"
                )
        return Excluded(patterns)

    def readme_template(self) -> Path | None:
        """Return the file with the user's template of README.yml, if there is one."""
        value = self.get(README_TEMPLATE)
        return Path(value).expanduser().absolute() if value else None

    def user_full_name(self) -> str:
        return self.get(USER_FULL_NAME) or "Your Name"

    def user_email(self) -> str:
        return self.get(USER_EMAIL) or "you@example.com"

    def used_staging_directories(self) -> Path:
        """Return where it is kept which staging directories were ever used."""
        return self.data_directory() / "staging-directories"

    def state_directory(self) -> Path:
        """Return where logs go that the user did not name a file for."""
        home = self._environment.get("XDG_STATE_HOME") or "~/.local/state"
        return (Path(home).expanduser() / "dserverfs").absolute()

    def allows_core_dumps(self) -> bool:
        """Return whether the memory of long-lived processes may be read, to debug them."""
        return _truth(CORE_DUMPS, self._raw(CORE_DUMPS) or "false")

    def errors_directory(self) -> Path:
        """Return where the last errors of this user's mounts are kept."""
        return self.state_directory() / "errors"

    def control_directory(self) -> Path:
        """Return where the mounts of this user listen for commands."""
        return self.state_directory() / "control"

    def _for(self, key: str, server: str) -> str | None:
        """Return the value for `server`; what is set for all otherwise."""
        own = self._raw(f"{key}_{server}")
        return self._raw(key) if own is None else own

    def _raw(self, key: str) -> str | None:
        """As `get`, but a `false` of the JSON file is a value."""
        value = self._environment.get(key) or self._file_values.get(key)
        return None if value is None or value == "" else str(value)


def current(key: str) -> str | None:
    """Return the value of `key` as it is now; for a server, which outlives a snapshot."""
    return Settings.load().get(key)


def _truth(key: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise UsageError(f"{key}={value.lower()}: must be true or false")
    return value.lower() in ("true", "1", "yes")


def _split(key: str, url: str) -> urllib.parse.SplitResult:
    try:
        return urllib.parse.urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{key}={public_url(url)}: {error}") from error


def _tokens_in(
    values: Mapping[str, object], server: str, *, is_for_all: bool
) -> Iterator[TokenSetting]:
    """Yield the tokens that one place has: for all servers, or for this one."""
    url = str(values.get(URL) or "")
    bound_to = _origin(url) if is_for_all and url else None
    for kind in (TOKEN, TOKEN_FILE, TOKEN_COMMAND):
        name = kind if is_for_all else f"{kind}_{server}"
        value = values.get(name)
        if value and kind == TOKEN:
            yield TokenSetting(name, str(value), None, bound_to)
        elif value and kind == TOKEN_COMMAND:
            words = _words(name, str(value))
            if not words:
                raise UsageError(f"{name}: has no command")
            yield TokenSetting(name, None, None, bound_to, words)
        elif value:
            path = Path(str(value)).expanduser().absolute()
            yield TokenSetting(name, None, path, bound_to)


def _file_name(server: str) -> str:
    return urllib.parse.quote(server, safe="[]:")


def _words(name: str, text: str) -> tuple[str, ...]:
    """Return the words of a text, split as a shell does; no shell runs it."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{name}: {error}") from error


def _origin(url: str) -> str:
    """Return the host that a URL leads to, and its port, however they are written."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return url
    return f"{(parts.hostname or '').lower()}:{port}"


def _config_home(environment: Mapping[str, str]) -> Path:
    return Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser()


def _dtool_config(environment: Mapping[str, str]) -> Path:
    """Return the file with dtool's configuration."""
    wanted = _config_home(environment) / "dtool" / "dtool.json"
    # dtool's own commands write to ~/.config under any XDG_CONFIG_HOME.
    try:
        is_there = wanted.exists()
    except OSError:  # as of another user's directory: to read it says why
        is_there = True
    return wanted if is_there else Path("~/.config/dtool/dtool.json").expanduser()
