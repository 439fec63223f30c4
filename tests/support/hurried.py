"""The program with other constants: what waits for half a minute waits for a second.

`python -m tests.support.hurried FILE ARGUMENTS...` is `dserverfs ARGUMENTS...` with the
constants of a JSON file: {module: {name: value}}. They are changed in the source as it is
imported, so that what other modules and defaults take from them changes as well. A name that
a module does not have is an error, so a table of them cannot rot.

With `jobs` for ARGUMENTS it is a process that forks one for each command that it is told on
its standard input, a JSON line each: [number, environment, arguments], where the first of
these is `dserverfs` or `dtool`. It answers with a line [number, status, what was said].

As long as there is a file `names-fail` beside FILE no name is found; if there is a byte in
it, it is removed when that has happened once. A JSON file `names` there gives names other
addresses: {"HOST:PORT": [[address, port], ...]}.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

Constants = Mapping[str, Mapping[str, Any]]

_OF_ALL = (
    "dtool_cli.cli",
    "dtool_create.dataset",
    "dserverfs.broker.storage_broker",
    "dserverfs.cli.main",
    "dserverfs.client",
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module with other values of its constants."""

    constants: Mapping[str, Any]

    def get_code(self, fullname: str) -> Any:
        path = self.get_filename(fullname)
        tree = ast.parse(self.get_data(path), path)
        missing = dict(self.constants)
        for statement in tree.body:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                name = statement.targets[0].id
                if name in missing:
                    value = ast.parse(repr(missing.pop(name)), mode="eval").body
                    statement.value = ast.copy_location(value, statement.value)
        if missing:
            raise ImportError(f"{fullname} has no {', '.join(missing)}")
        return compile(ast.fix_missing_locations(tree), path, "exec")


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules that have other constants."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in self._constants:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = loader = _Loader(fullname, spec.origin)
        loader.constants = self._constants[fullname]
        return spec


def main(file: str, *arguments: str) -> int:
    with open(file) as constants:
        sys.meta_path.insert(0, Finder(json.load(constants)))
    _have_names_fail(Path(file).with_name("names-fail"))
    with contextlib.suppress(FileNotFoundError):
        _give_addresses(json.loads(Path(file).with_name("names").read_text()))
    if arguments[0] == "jobs":
        _serve()
        return 0
    from dserverfs.cli.main import main as dserverfs

    return dserverfs(arguments)


def _have_names_fail(flag: Path) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(*arguments: Any, **options: Any) -> Any:
        with contextlib.suppress(FileNotFoundError):
            is_once = flag.stat().st_size
            if is_once:
                flag.unlink()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return look_up(*arguments, **options)

    socket.getaddrinfo = getaddrinfo


def _give_addresses(places: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        found = [
            look_up(*place, *arguments, **options)
            for place in places.get(f"{host}:{port}", [(host, port)])
        ]
        return [entry for entries in found for entry in entries]

    socket.getaddrinfo = getaddrinfo


def _serve() -> None:
    # What all of them need is imported once.
    for name in _OF_ALL:
        importlib.import_module(name)

    for line in sys.stdin:
        number, environment, arguments = json.loads(line)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.environ.update(environment)
            _work(number, arguments)


def _work(number: int, arguments: list[str]) -> None:
    """Run a command, say what came of it and end."""
    said = io.StringIO()
    status: Any = 1
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = _run(arguments)
            except SystemExit as ended:
                status = ended.code or 0
            except BaseException:  # noqa: BLE001 - the top of a process
                traceback.print_exc()
    finally:
        line = json.dumps([number, status, said.getvalue()[-2000:]]) + "\n"
        os.write(1, line.encode())
        os._exit(0)


def _run(arguments: list[str]) -> Any:
    if arguments[0] == "dserverfs":
        from dserverfs.cli.main import main as dserverfs

        return dserverfs(arguments[1:])
    return importlib.import_module("dtool_cli.cli").dtool(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
