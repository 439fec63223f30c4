"""`dserverfs find`: what it prints, for people and for programs, and its exit status."""

from __future__ import annotations

import datetime
import json
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dserverfs.base.conditions import Found
from dserverfs.base.limits import LAST_DATE_S
from dserverfs.base.model import UUID, BackendURI, Dataset, DserverURI
from dserverfs.cli.find import EXIT_NOTHING, EXIT_TROUBLE
from dserverfs.cli.found_datasets import MAX_CREATOR_WIDTH, MIN_NAME_WIDTH, Hit, table, text_width
from tests.support.accounts import Account
from tests.support.findable import ALPHA, BETA, GAMMA, md5, put_on
from tests.support.logins import Run
from tests.support.quirky_server import BASE_URI, TOKEN, QuirkyServer, says
from tests.support.servers import ServerHandle, new_uuid, upload

pytest_plugins = ["tests.support.login_fixtures", "tests.support.resolver_fixtures"]

Find = Callable[..., Any]  # its arguments; returns its status, output and errors


@pytest.fixture
def find(run: Run, quirky: QuirkyServer, tmp_path: Path) -> Find:
    """The command, with a server that it finds by DSERVER_URL."""
    put_on(quirky)
    environment = {
        "DSERVER_URL": quirky.url,
        "DSERVER_TOKEN": TOKEN,
        "DSERVER_CACHE_DIR": str(tmp_path / "cache"),
    }
    return lambda *arguments: run("find", *arguments, **environment)


def uris(quirky: QuirkyServer, *names: str) -> list[str]:
    """Return the URIs of datasets by their names."""
    by_name = {entry["name"]: entry["uuid"] for entry in quirky.entries}
    base = DserverURI(quirky.url.removeprefix("http://"), BASE_URI)
    return [f"{base}/{by_name[name]}" for name in names]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ((), [ALPHA, BETA, GAMMA]),
        (("--tag", "x"), [ALPHA, BETA]),
        (("--tag", "x", "--tag", "y"), [ALPHA]),
        (("--creator", "grumpy"), [ALPHA, GAMMA]),
        (("--creator", "grumpy", "--creator", "happy"), []),
        (("--text", "yeast annotated"), [ALPHA, BETA]),
        (("--text", "found", "--text", "grumpy"), [ALPHA, GAMMA]),
        (("--annotation", "scope"), [ALPHA, BETA]),
        (("--annotation", "scope=big", "--annotation", "number=5"), [ALPHA]),
        (("--annotation", "scope="), []),
        (("--name", "found-[ab]*", "--name", "*a"), [ALPHA, BETA]),
        (("--hash", md5(b"x").upper(), "--hash", md5(b"beta")), [BETA]),
        (("--newer", "1970-01-24T00:00Z"), [ALPHA, BETA]),
        (("--newer", "1970-01-24T00:00Z", "--newer", "1970-02-04 00:00:00+00:00"), [ALPHA]),
        (("--older", "1970-01-24", "--older", "1970-02-04"), [GAMMA]),
        (("--tag", "x", "--older", "1970-02-02"), [BETA]),
    ],
)
def test_all_options_have_to_hold(
    find: Find, quirky: QuirkyServer, options: tuple[str, ...], names: list[str]
) -> None:
    found = "".join(f"{uri}\n" for uri in uris(quirky, *names))

    assert find("--uri", *options) == (0 if names else EXIT_NOTHING, found, "")
    assert find("-0", *options)[1] == found.replace("\n", "\0")


def test_uuid_finds_one(find: Find, quirky: QuirkyServer) -> None:
    (uri,) = uris(quirky, BETA)

    assert find("--uri", "--uuid", uri[-36:].upper()) == (0, f"{uri}\n", "")


def test_json_has_the_keys_that_the_page_tells(find: Find, quirky: QuirkyServer) -> None:
    (uri,) = uris(quirky, BETA)
    listed = {key: value for key, value in quirky.entries[1].items() if key != "base_uri"}
    facts = {**listed, "uri": uri, "base_uri": uri[:-37]}

    status, out, _ = find("--json", "--creator", "happy")
    assert (status, json.loads(out)) == (0, [facts])
    _, out, _ = find("--json", "--hash", md5(b"beta"))
    assert json.loads(out) == [{**facts, "relpaths": ["image.tif"]}]
    assert find("--json", "--creator", "nobody") == (EXIT_NOTHING, "[]\n", "")


def test_table_is_printed_whole_where_there_is_no_terminal(
    find: Find, quirky: QuirkyServer
) -> None:
    quirky.add(new_uuid(), {}, name="long" * 60, creator_username="\x1b[31m", tags=["t"])

    status, out, _ = find("--tag", "t")

    heading, line = out.splitlines()
    assert (status, heading.split()) == (0, ["FROZEN", "SIZE", "ITEMS", "CREATOR", "NAME", "URI"])
    assert line.split()[1:] == [
        *("0", "B", "0", r"\x1b[31m", "long" * 60),
        *uris(quirky, "long" * 60),
    ]


def test_terminal_gets_a_table_of_its_width_and_is_told_of_nothing(
    find: Find, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dserverfs.cli.main._Output.isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", "80")
    (beta,) = uris(quirky, BETA)

    assert find("--creator", "happy")[1].splitlines()[1:] == [
        f"1970-01-24   5 B      2  happy    {BETA}",
        f"    {beta}",
    ]
    assert find("--creator", "nobody") == (EXIT_NOTHING, "", "no dataset is like that\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--newer", "yesterday"),
        ("--older", "0000-01-01"),
        ("--newer", "9999-99-99"),
        ("--uuid", "7"),
        ("--hash", "x" * 32),
        ("--hash", "1" * 40),
        ("--json", "--uri"),
        ("--colour", "blue"),
    ],
)
def test_wrong_arguments_are_refused(find: Find, arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        find(*arguments)

    assert ended.value.code == EXIT_TROUBLE


# Where it looks


def test_server_is_named_in_every_form(find: Find, quirky: QuirkyServer) -> None:
    host = quirky.url.removeprefix("http://")
    everything = (0, "".join(f"{uri}\n" for uri in uris(quirky, ALPHA, BETA, GAMMA)), "")

    for place in (f"dserver://{host}", f"dserver://{host}/s3/bucket"):
        assert find("--uri", place) == everything
    for server in (host, f"dserver://{host}", quirky.url):
        assert find("--uri", "--server", server) == everything
    assert find("--uri", f"dserver://{host}", "--server", host) == everything
    (beta,) = uris(quirky, BETA)
    assert find("--uri", beta) == (0, f"{beta}\n", "")
    assert find("--uri", beta, "--tag", "y") == (EXIT_NOTHING, "", "")


def test_real_server_is_searched(run: Run, server: ServerHandle, tmp_path: Path) -> None:
    host = DserverURI.parse(server.base_uri).server
    tag, contents = new_uuid(), {"run/plate.csv": b"content"}
    for name in ("searched-one", "searched-two"):
        upload(server, contents, readme=name.encode(), name=name, tags=[tag], annotations={"n": 5})
    options = ("--tag", tag, "--text", "two", "--annotation", "n=5", "--hash", md5(b"content"))
    environment = {"DSERVER_TOKEN": server.token, "DSERVER_CACHE_DIR": str(tmp_path)}

    status, out, err = run("find", "--json", "--server", host, *options, **environment)

    (facts,) = json.loads(out)
    assert (status, err, facts["name"]) == (0, "", "searched-two")
    assert facts["relpaths"] == ["run/plate.csv"]


def test_without_a_server_it_says_how_to_name_one(run: Run) -> None:
    status, out, err = run("find")

    assert (status, out) == (EXIT_TROUBLE, "")
    assert "dserverfs login" in err


def test_path_that_is_in_no_mount_is_refused(find: Find, tmp_path: Path) -> None:
    status, out, err = find(str(tmp_path))

    assert (status, out) == (EXIT_TROUBLE, "")
    assert err == f"dserverfs: {tmp_path}: is not in a mount of dserverfs\n"


# Trouble


def test_server_that_is_away_does_not_hide_what_others_have(
    no_waits: None, find: Find, quirky: QuirkyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DSERVER_TOKEN_127.0.0.1:1", TOKEN)
    servers = ("--server", "127.0.0.1:1", "--server", quirky.url.removeprefix("http://"))

    status, out, err = find("--uri", *servers, "--tag", "y")
    nothing = find("--uri", *servers, "--tag", "nobodys")

    assert (status, out) == (EXIT_TROUBLE, f"{uris(quirky, ALPHA)[0]}\n")
    assert "127.0.0.1:1 cannot be reached" in err
    assert len(err.splitlines()) == 1
    assert nothing[:2] == (EXIT_TROUBLE, "")


def test_what_cannot_be_looked_into_is_one_line_and_trouble(
    find: Find, quirky: QuirkyServer
) -> None:
    quirky.broken[f"/manifests/.*{quirky.entries[0]['uuid']}"] = says(200, {"items": []})

    status, out, err = find("--uri", "--hash", md5(b"x"))

    assert (status, out) == (EXIT_TROUBLE, f"{uris(quirky, BETA)[0]}\n")
    (line,) = err.splitlines()
    assert line.startswith(f"dserverfs: {quirky.entries[0]['uri']}: cannot be looked into: ")


def test_interrupt_does_not_wait_for_a_server_that_hangs(
    find: Find, quirky: QuirkyServer, current_user: Account
) -> None:
    reached, is_over = threading.Event(), threading.Event()

    def hang(handler: Any) -> None:
        reached.set()
        is_over.wait(60)

    quirky.broken["GET /manifests/"] = hang
    host = quirky.url.removeprefix("http://")
    options = ("--name", BETA, "--hash", "0" * 32)
    command = current_user.dserverfs_command("find", "--server", host, *options)
    try:
        with current_user.spawn(*command, env={"DSERVER_TOKEN": TOKEN}) as process:
            assert reached.wait(60)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
    finally:
        is_over.set()

    assert (process.returncode, said) == (130, b"")
    assert quirky.asked("GET /manifests/") == 1  # it was not given up, and tried again


# The table


def hit(
    name: str,
    creator: str = "grumpy",
    size: int | None = 5,
    *relpaths: str,
    frozen_at: float = datetime.datetime(2026, 2, 3, 12).timestamp(),
) -> Hit:
    uuid = UUID("00000001-2222-3333-4444-555555555555")
    uri = BackendURI(f"s3://b/{uuid}")
    dataset = Dataset(uuid, uri, "s3://b", name, creator, 0.0, frozen_at, size, size)
    return Hit(DserverURI("host", "s3://b", uuid), Found(dataset, relpaths))


URI = "dserver://host/s3/b/00000001-2222-3333-4444-555555555555"


def test_table_has_a_line_for_each_where_it_fits() -> None:
    hits = [hit("one"), hit("two\nlines", "ü", None), hit("three", "g", 5, "a/b", "c")]

    assert list(table(hits, 120)) == [
        "FROZEN      SIZE  ITEMS  CREATOR  NAME        URI",
        f"2026-02-03   5 B      5  grumpy   one         {URI}",
        f"2026-02-03     ?      ?  ü        two\\nlines  {URI}",
        f"2026-02-03   5 B      5  g        three       {URI}",
        "    a/b, c",
    ]


def test_table_has_uris_on_lines_of_their_own_where_they_do_not_fit() -> None:
    hits = [hit("one"), hit("a-name-that-is-longer-than-this-terminal-can-show", "文字")]

    assert list(table(hits, 60)) == [
        "FROZEN      SIZE  ITEMS  CREATOR  NAME",
        "2026-02-03   5 B      5  grumpy   one",
        f"    {URI}",
        "2026-02-03   5 B      5  文字     a-name-that-is-longer-t...",
        f"    {URI}",
    ]


def test_table_has_one_line_for_each_up_to_the_last_column() -> None:
    hits = [hit("e\u0301" * 4, "文"), hit("four")]
    lines = list(table(hits, 1000))
    width = text_width(lines[-1])

    assert {text_width(line) for line in lines[1:]} == {width}
    assert list(table(hits, width)) == lines
    assert len(list(table(hits, width - 1))) == 5


def test_day_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "there-9")
        time.tzset()
        cells = [hit("one", frozen_at=moment_s).cells()[0] for moment_s in (54_000.0, LAST_DATE_S)]
    time.tzset()

    assert cells == ["1970-01-02", "?"]


@pytest.mark.parametrize("width", [20, 54, 60, 80, 110, 200])
def test_table_is_as_wide_as_the_terminal_at_most(width: int) -> None:
    chance = random.Random(width)

    def text() -> str:
        return "".join(chance.choices("ab ü文e\u0301\n\x1b\u202e", k=chance.randrange(50)))

    hits = [hit(text(), text()) for _ in range(20)]
    lines = list(table(hits, width))

    least = 10 + 4 + 5 + MAX_CREATOR_WIDTH + MIN_NAME_WIDTH + 4 * 2
    for line in lines:
        assert line.isprintable()
        assert text_width(line) <= max(width, least) or line.strip() == URI
    assert sum(line.endswith(URI) for line in lines) == len(hits)
