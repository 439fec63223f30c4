"""Fixtures for the whole suite, and the safety net below it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis.configuration import set_hypothesis_home_dir

from tests.support import accounts, fuse_device, leftovers, pace, postgresql
from tests.support.accounts import Account
from tests.support.dtool_commands import warm_dtool
from tests.support.names import Names
from tests.support.servers import ServerHandle, running_server
from tests.support.unexpected_log import WarningCollector, complaint

_RUN = pytest.StashKey[leftovers.Run]()
_FOUND = pytest.StashKey[list[str]]()
_NAMES = pytest.StashKey[Names]()
_WARNINGS = pytest.StashKey[WarningCollector]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "expects_log(*patterns): the test makes dserverfs log these warnings"
    )
    for signal_number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signal_number, signal.default_int_handler)  # fixtures end as on Ctrl-C
    for left in leftovers.clean_dead_runs():
        print(f"left by an earlier run, now removed: {left}")
    config.stash[_NAMES] = Names()
    run = config.stash[_RUN] = leftovers.Run.start()
    os.environ[leftovers.ROOT_VARIABLE] = str(run.root)
    if config.option.basetemp is None:
        config.option.basetemp = str(run.root / "pytest")
    collector = config.stash[_WARNINGS] = WarningCollector()
    collector.install()
    if config.getoption("numprocesses", None):
        config.option.loadscopereorder = False  # xdist keeps the order of `longest_first`
        config.pluginmanager.register(pace.Seconds())


def pytest_sessionstart(session: pytest.Session) -> None:
    # Else it makes a directory in the checkout. What it finds in the code it keeps there: 2 s of
    # each worker.
    cache = getattr(session.config, "cache", None)
    home = cache.mkdir("hypothesis") if cache else session.config.stash[_RUN].root / "hypothesis"
    set_hypothesis_home_dir(home)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # alone, a run has the order in which its files are named
        items[:] = pace.longest_first(items)


@pytest.hookimpl(trylast=True)  # after an interrupt it is pytest's own that ends the fixtures
def pytest_sessionfinish(session: pytest.Session) -> None:
    warm_dtool.close()
    postgresql.shared.close()
    config = session.config
    config.stash[_FOUND] = config.stash[_RUN].end()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for left in config.stash.get(_FOUND, []):
        terminalreporter.write_line(f"left by this run, now removed: {left}", yellow=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_WARNINGS].remove()
    if _FOUND not in config.stash:  # no session: --help, or arguments that are wrong
        config.stash[_RUN].end()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, Any, Any]:
    item.config.stash[_WARNINGS].records.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    result = yield
    patterns = [p for mark in item.iter_markers("expects_log") for p in mark.args]
    if wrong := complaint(item.config.stash[_WARNINGS].records, patterns):
        pytest.fail(wrong, pytrace=False)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, Any, Any]:
    records = item.config.stash[_WARNINGS].records
    records.clear()  # those of the call were judged there
    result = yield
    root = item.config.stash[_RUN].root
    wrong = complaint(records, []) or accounts.logged_in(root)
    if nextitem is None or nextitem.path != item.path:
        names, file = item.config.stash[_NAMES], item.nodeid.partition("::")[0]
        wrong = wrong or names.taken_twice(_registry(item.config), root / "server", file)
    if wrong:
        pytest.fail(wrong, pytrace=False)
    return result


def _registry(config: pytest.Config) -> Path:
    """Return the directory of names that all processes of the run have."""
    base: Path = config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
    return (base.parent if hasattr(config, "workerinput") else base) / "names"


@pytest.fixture(scope="session")
def test_root(pytestconfig: pytest.Config) -> Path:
    """The run's own directory, which every user may pass."""
    return pytestconfig.stash[_RUN].root


@pytest.fixture(scope="session")
def fuse(pytestconfig: pytest.Config) -> Iterator[None]:
    """/dev/fuse, usable by everybody."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(fuse_device.usable_by_all())
        except OSError as error:
            pytest.fail(str(error), pytrace=False)
        yield


@pytest.fixture(scope="session")
def current_user(test_root: Path) -> Account:
    """Whoever runs the tests, with an empty home."""
    return accounts.current(test_root)


@pytest.fixture(scope="session")
def ordinary_user(request: pytest.FixtureRequest, test_root: Path) -> Iterator[Account]:
    """A user who is not root: whoever runs the tests, or one made for them."""
    if os.geteuid() != 0:
        yield request.getfixturevalue("current_user")
        return
    with contextlib.ExitStack() as stack:
        try:
            account = stack.enter_context(accounts.ordinary(test_root))
        except PermissionError as error:  # a Python in root's home
            pytest.skip(str(error))
        yield account


@pytest.fixture(scope="module", params=["current", "ordinary"])
def account(request: pytest.FixtureRequest) -> Account:
    """Each user a mount must work for: root, if that runs the tests, and an ordinary one."""
    if request.param == "ordinary" and os.geteuid() != 0:
        pytest.skip("the tests run as an ordinary user already")
    account: Account = request.getfixturevalue(f"{request.param}_user")
    return account


@pytest.fixture(scope="session")
def server(test_root: Path) -> Iterator[ServerHandle]:
    """One real dserver with its store, for all tests."""
    # At DEBUG, the level of the tests, they fill the report of a failure with a page per request.
    for name in ("botocore", "boto3", "dtoolcore", "dtool_s3"):
        logging.getLogger(name).setLevel(logging.INFO)
    with running_server(test_root / "server") as handle:
        yield handle


@pytest.fixture(scope="session")
def token(server: ServerHandle) -> str:
    """The token of the server's first user."""
    return server.token
