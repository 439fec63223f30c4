"""Whose token goes where: the order of its settings, and which server may get it."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from dserverfs.base.errors import DserverfsError, NotAuthenticated, Unreachable, UsageError
from dserverfs.base.excluded import DEFAULT
from dserverfs.client import whoami
from dserverfs.settings import Settings
from tests.support.accounts import Account
from tests.support.quirky_server import TOKEN, quirky_server

SERVER = "data.example:5000"
# In the order in which they count.
PLACES = [
    ("environment", f"DSERVER_TOKEN_{SERVER}"),
    ("environment", f"DSERVER_TOKEN_FILE_{SERVER}"),
    ("environment", f"DSERVER_TOKEN_COMMAND_{SERVER}"),
    ("environment", "DSERVER_TOKEN"),
    ("environment", "DSERVER_TOKEN_FILE"),
    ("environment", "DSERVER_TOKEN_COMMAND"),
    ("dtool.json", f"DSERVER_TOKEN_{SERVER}"),
    ("dtool.json", f"DSERVER_TOKEN_FILE_{SERVER}"),
    ("dtool.json", f"DSERVER_TOKEN_COMMAND_{SERVER}"),
    ("login", ""),
    ("dtool.json", "DSERVER_TOKEN"),
    ("dtool.json", "DSERVER_TOKEN_FILE"),
    ("dtool.json", "DSERVER_TOKEN_COMMAND"),
]


def settings_with(places: list[tuple[str, str]], home: Path) -> Settings:
    """Return settings that have a token, told by its place, in each of these places."""
    environment = {"XDG_CONFIG_HOME": str(home)}
    file_values: dict[str, object] = {}
    for place, name in places:
        if place == "login":
            path = Settings(environment, {}).kept_token_file(SERVER)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        elif place == "environment":
            environment[name] = f"/{place}/{name}"
        else:
            file_values[name] = f"/{place}/{name}"
    return Settings(environment, file_values)


@pytest.mark.parametrize(("first", "second"), itertools.combinations(PLACES, 2))
def test_token_of_the_earlier_place_counts(
    first: tuple[str, str], second: tuple[str, str], tmp_path: Path
) -> None:
    settings = settings_with([second, first], tmp_path)

    found = settings.token(SERVER)

    assert found is not None
    place, name = first
    assert found.name == (name or None)
    expected = f"/{place}/{name}" if name else str(settings.kept_token_file(SERVER))
    assert (found.token or (found.command or [str(found.file)])[0]) == expected


@pytest.mark.parametrize(
    ("url", "gets_it"),
    [
        ("", True),
        ("http://data.example:5000", True),
        ("http://DATA.example:5000/lookup/", True),
        ("https://data.example:5000", True),
        ("http://data.example", False),
        ("http://data.example:5001", False),
        ("http://evil.example:5000", False),
        ("http://data.example:5000@evil.example", False),
    ],
)
@pytest.mark.parametrize("name", ["DSERVER_TOKEN", "DSERVER_TOKEN_FILE"])
@pytest.mark.parametrize("place", ["environment", "dtool.json"])
def test_token_for_all_goes_only_where_the_url_beside_it_leads(
    place: str, name: str, url: str, gets_it: bool, tmp_path: Path
) -> None:
    values = {name: "/token", "DSERVER_URL": url, "XDG_CONFIG_HOME": str(tmp_path)}
    home = {"XDG_CONFIG_HOME": str(tmp_path)}
    settings = Settings(values, {}) if place == "environment" else Settings(home, dict(values))

    assert (settings.token(SERVER) is not None) == gets_it
    assert (settings.withheld_token(SERVER) is None) == gets_it


def test_token_that_names_the_server_is_not_bound(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "DSERVER_URL": "http://evil.example"}

    found = Settings({**environment, f"DSERVER_TOKEN_{SERVER}": "t"}, {}).token(SERVER)

    assert found is not None
    assert found.token == "t"
    assert not found.goes_anywhere


def test_configuration_in_a_directory_that_is_closed_is_one_line(
    ordinary_user: Account, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)

    said = ordinary_user.dserverfs("whoami", "127.0.0.1", env={"XDG_CONFIG_HOME": str(closed)})

    closed.chmod(0o700)
    assert said.returncode == 1
    assert "dtool.json: cannot be read: " in said.stderr
    assert said.stderr.count("\n") == 1


def test_url_that_is_none_is_told() -> None:
    with pytest.raises(UsageError, match=r"DSERVER_URL=http://\[: Invalid"):
        Settings({"DSERVER_TOKEN": TOKEN, "DSERVER_URL": "http://["}, {}).token(SERVER)


def test_server_that_the_token_is_not_for_never_sees_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {
        "XDG_CONFIG_HOME": str(tmp_path),
        "DSERVER_TOKEN": TOKEN,
        "DSERVER_URL": "http://data.example",
    }
    with quirky_server() as other:
        server = other.url.removeprefix("http://")
        with pytest.raises(NotAuthenticated, match=f"^{server}: DSERVER_TOKEN is not .*:80 as"):
            whoami(server, Settings(environment, {}))

        assert other.asked("/me") == 0
    assert TOKEN not in caplog.text


@pytest.mark.expects_log("DSERVER_TOKEN is sent to nowhere.invalid", "sent unencrypted")
def test_token_that_any_server_gets_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "DSERVER_TOKEN": TOKEN}
    with quirky_server() as stand_in:
        monkeypatch.setenv("http_proxy", stand_in.url)
        stand_in.permissions = []

        assert whoami("nowhere.invalid", Settings(environment, {})).username == "grumpy"

    assert caplog.text.count("every server that a URI names") == 1
    assert TOKEN not in caplog.text


def test_redirect_takes_no_token_elsewhere(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path), "DSERVER_TOKEN": TOKEN}
    with quirky_server() as first, quirky_server() as second:
        to_second = {"Location": f"{second.url}/me"}
        first.faults = [lambda handler: handler.answer(307, b"", to_second)] * 10

        with pytest.raises(DserverfsError) as refusal:
            whoami(first.url.removeprefix("http://"), Settings(environment, {}))

        assert isinstance(refusal.value, Unreachable)
        assert second.requests == []


def test_core_dumps_are_for_who_asks_for_them() -> None:
    assert not Settings({}, {}).allows_core_dumps()
    assert Settings({"DSERVER_CORE_DUMPS": "TRUE"}, {}).allows_core_dumps()
    assert not Settings({"DSERVER_CORE_DUMPS": "0"}, {}).allows_core_dumps()
    with pytest.raises(UsageError, match="must be true or false"):
        Settings({"DSERVER_CORE_DUMPS": "maybe"}, {}).allows_core_dumps()


def test_settings_of_a_mount_count_before_all_others() -> None:
    environment = {
        f"DSERVER_TOKEN_{SERVER}": "of the environment",
        f"DSERVER_TOKEN_FILE_{SERVER}": "/environment",
        "DSERVER_PROTOCOL": "http",
    }
    own = {"DSERVER_TOKEN_FILE": "/mount", "DSERVER_PROTOCOL": "https", "DSERVER_CA_FILE": "/ca"}

    settings = Settings(environment, {"DSERVER_CA_FILE": "/file"}).overridden(SERVER, own)

    assert settings.token_file(SERVER) == Path("/mount")
    assert settings.base_url(SERVER) == f"https://{SERVER}"
    assert settings.trust(SERVER).ca_file == Path("/ca")
    assert settings.trust("another").ca_file == Path("/file")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (None, "", "https://kept.example/lookup"),
        ("DSERVER_PROTOCOL", "http", "https://kept.example/lookup"),
        ("DSERVER_URL", f"http://{SERVER}/here", f"http://{SERVER}/here"),
        ("DSERVER_URL", "http://another/here", "https://kept.example/lookup"),
        (f"DSERVER_URL_{SERVER}", "http://there", "http://there"),
    ],
)
def test_address_of_the_login_counts_after_those_that_are_set(
    tmp_path: Path, name: str | None, value: str, expected: str
) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    kept = Settings(environment, {}).kept_address_file(SERVER)
    kept.parent.mkdir(parents=True)
    kept.write_text("https://kept.example/lookup\n")
    if name is not None:
        environment[name] = value

    assert Settings(environment, {}).base_url(SERVER) == expected
    assert Settings(environment, {}).base_url("another") in (
        "http://another",
        "http://another/here",
    )


@pytest.mark.parametrize("content", ["\xff", "no address", "ftp://x"])
def test_kept_address_that_is_none_is_told_with_its_file(tmp_path: Path, content: str) -> None:
    settings = Settings({"XDG_CONFIG_HOME": str(tmp_path)}, {})
    kept = settings.kept_address_file(SERVER)
    kept.parent.mkdir(parents=True)
    kept.write_text(content, "latin-1")

    with pytest.raises(UsageError, match=str(kept)):
        settings.base_url(SERVER)


@pytest.mark.parametrize(
    ("environment", "file_values", "patterns"),
    [
        ({}, {}, DEFAULT),
        ({"DSERVER_EXCLUDE": "*.tmp 'a b' .x"}, {}, ("*.tmp", "a b", ".x")),
        ({"DSERVER_EXCLUDE": ""}, {}, ()),
        ({"DSERVER_EXCLUDE": ""}, {"DSERVER_EXCLUDE": "*.tmp"}, ()),
        ({}, {"DSERVER_EXCLUDE": "*.tmp .x"}, ("*.tmp", ".x")),
        ({}, {"DSERVER_EXCLUDE": ["*.tmp", "a b"]}, ("*.tmp", "a b")),
        ({}, {"DSERVER_EXCLUDE": []}, ()),
        ({}, {"DSERVER_EXCLUDE": ""}, ()),
    ],
)
def test_patterns_of_what_is_excluded_are_words_or_a_list(
    environment: dict[str, str], file_values: dict[str, object], patterns: tuple[str, ...]
) -> None:
    assert Settings(environment, file_values).excluded().patterns == patterns


@pytest.mark.parametrize("value", ["a/b", "/a", "'", "''", ["a", 1], [""], ["a/"]])
def test_what_cannot_be_the_pattern_of_a_name_is_refused(value: object) -> None:
    with pytest.raises(UsageError, match="DSERVER_EXCLUDE: "):
        Settings({}, {"DSERVER_EXCLUDE": value}).excluded()


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({}, None),
        ({"DSERVER_SITE_CACHE": "http://cache:8470"}, "http://cache:8470"),
        ({"DSERVER_SITE_CACHE": "https://[::1]/"}, "https://[::1]"),
        (
            {"DSERVER_SITE_CACHE": "http://a", f"DSERVER_SITE_CACHE_{SERVER}": "http://b"},
            "http://b",
        ),
        ({"DSERVER_SITE_CACHE": "http://a", f"DSERVER_SITE_CACHE_{SERVER}": "none"}, None),
    ],
)
def test_site_cache_is_that_of_the_server_or_of_all(
    values: dict[str, str], found: str | None
) -> None:
    assert Settings(values, {}).site_cache(SERVER) == found


@pytest.mark.parametrize(
    "value",
    [
        "cache:8470",
        "ftp://cache",
        "http://",
        "http://u:p@cache",
        "http://c/x",
        "http://c?q",
        "http://a b",
    ],
)
def test_site_cache_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="DSERVER_SITE_CACHE="):
        Settings({"DSERVER_SITE_CACHE": value}, {}).site_cache(SERVER)
