"""`dserverfs serve user|token|base-uri|permission`: while the server runs, and without it."""

from __future__ import annotations

import io
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import jwt
import pytest

from dserverfs.base.model import identifier_of
from dserverfs.cli.main import main
from tests.support.servers import ServerHandle, encoded, new_uuid, running_server, upload

Manage = Callable[..., tuple[int, str, str]]


@pytest.fixture
def manage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], Manage]:
    """Makes a function that runs `dserverfs serve ARGUMENTS` on a data directory."""

    def on(data: Path) -> Manage:
        def run(*arguments: str, stdin: str = "") -> tuple[int, str, str]:
            monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
            status = main(["serve", "--data", str(data), *arguments])
            return (status, *capsys.readouterr())

        return run

    return on


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerHandle]:
    """A server of its own, whose users these tests may change."""
    with running_server(tmp_path_factory.mktemp("management") / "data") as server:
        yield server


@pytest.fixture
def name() -> str:
    return f"user-{new_uuid()[:8]}"


def test_user_logs_in_while_the_server_runs(
    served: ServerHandle, manage: Callable[[Path], Manage], name: str
) -> None:
    run = manage(served.data)
    login = {"username": name, "password": "correct horse"}

    assert run("user", "add", name) == (0, "", "")
    assert served.post("/token", login, token="").status_code == 401
    assert run("user", "password", name, stdin="correct horse\n") == (0, "", "")
    answer = served.post("/token", login, token="")
    assert served.get("/me", token=answer.json()["token"]).json()["username"] == name
    assert f"{name} - password\n" in run("user", "list")[1]
    assert f"{served.username} admin password\n" in run("user", "list")[1]
    for kept in served.data.glob("dserver.sqlite*"):
        assert b"correct horse" not in kept.read_bytes()

    assert run("user", "remove", name) == (0, "", "")
    assert served.post("/token", login, token="").status_code == 401
    assert served.get("/me", token=answer.json()["token"]).status_code == 401
    assert run("user", "add", name, "--admin")[0] == 0  # another one of that name
    assert served.post("/token", login, token="").status_code == 401
    assert f"{name} admin -\n" in run("user", "list")[1]


def test_password_goes_with_a_user_who_is_deleted_over_the_network(
    served: ServerHandle, manage: Callable[[Path], Manage], name: str
) -> None:
    run = manage(served.data)
    run("user", "add", name)
    run("user", "password", name, stdin="secret\n")

    served.request("DELETE", f"/users/{name}").raise_for_status()
    served.request("PUT", f"/users/{name}", {}).raise_for_status()

    assert f"{name} - -\n" in run("user", "list")[1]


def test_rights_on_a_new_base_uri_count_at_once(
    served: ServerHandle, manage: Callable[[Path], Manage], name: str, tmp_path: Path
) -> None:
    run, base_uri, file = manage(served.data), f"s3://bucket-{name}", tmp_path / "token"
    status, said, _ = run("base-uri", "add", base_uri)
    assert status == 0
    assert said.startswith(f"{served.username} may search and register in {base_uri}; others")
    upload(served, {"a": b"a"}, base_uri=base_uri)  # whom it belongs to may use it at once
    run("user", "add", name)
    assert run("token", name, "--days", "2", "--output", str(file)) == (0, "", "")
    token = file.read_text().strip()

    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 2 * 86400
    path = f"/signed-urls/upload/{encoded(base_uri)}"
    assert served.post(path, {}, token=token).status_code == 403

    run("permission", "grant", name, base_uri, "--register")
    assert served.post(path, {}, token=token).status_code == 422  # an empty announcement
    assert f"-w {name} {base_uri}\n" in run("permission", "list")[1]
    run("permission", "grant", name, base_uri, "--search")
    uri = upload(served, {"a": b"a"}, base_uri=base_uri)
    assert served.get(f"/readmes/{encoded(uri)}", token=token).status_code == 200
    assert f"rw {name} {base_uri}\n" in run("permission", "list")[1]

    run("permission", "revoke", name, base_uri, "--search", "--register")
    assert served.get(f"/readmes/{encoded(uri)}", token=token).status_code == 403
    assert f"{name} {base_uri}\n" not in run("permission", "list")[1]

    status, _, said = run("base-uri", "remove", base_uri)
    assert status == 1
    assert "2 datasets and 0 pending uploads" in said
    for each in served.post("/uris", {"base_uris": [base_uri]}).json():
        served.request("DELETE", f"/uris/{encoded(each['uri'])}").raise_for_status()
    assert run("base-uri", "remove", base_uri) == (0, "", "")
    assert base_uri not in run("base-uri", "list")[1]


def test_all_is_prepared_before_the_first_start(
    tmp_path: Path, manage: Callable[[Path], Manage]
) -> None:
    run = manage(tmp_path / "data")
    run("user", "add", "doc")
    run("base-uri", "add", "s3://second")
    run("permission", "grant", "doc", "s3://second", "--search", "--register")
    _, token, _ = run("token", "doc")

    with running_server(tmp_path / "data") as server:
        me = server.get("/me", token=token.strip()).json()
        assert me["register_permissions_on_base_uris"] == ["s3://second"]
        assert server.get("/me").json()["register_permissions_on_base_uris"] == ["s3://datasets"]
        server.token_file.write_text(token)
        assert upload(server, {"a": b"a"}, base_uri="s3://second").startswith("s3://second/")


@pytest.mark.parametrize("how", ["password", "revoke-tokens", "remove", "removed over the network"])
def test_tokens_are_revoked(
    served: ServerHandle, manage: Callable[[Path], Manage], name: str, how: str
) -> None:
    run = manage(served.data)
    run("user", "add", name)
    run("user", "password", name, stdin="first\n")
    login = {"username": name, "password": "first"}
    old = [run("token", name)[1].strip(), served.post("/token", login, token="").json()["token"]]
    # As version 0.1.0 made them: good until now.
    old.append(served.token_for(name, iat=1, jti="x", nbf=1, type="access", fresh=False))
    assert [served.get("/me", token=token).status_code for token in old] == [200] * 3

    if how == "password":
        assert run("user", "password", name, stdin="second\n") == (0, "", "")
    elif how == "revoke-tokens":
        assert run("user", "revoke-tokens", name) == (0, "", "")
    elif how == "remove":
        run("user", "remove", name)
        run("user", "add", name)
    else:
        served.request("DELETE", f"/users/{name}").raise_for_status()
        served.request("PUT", f"/users/{name}", {}).raise_for_status()

    answers = [served.get("/me", token=token) for token in old]
    assert [answer.status_code for answer in answers] == [401] * 3
    new = run("token", name)[1].strip()
    assert served.get("/me", token=new).status_code == 200
    assert served.get("/signed-urls/uploads", token=new).status_code == 200
    assert served.get("/signed-urls/uploads", token=old[0]).status_code == 401


def test_tokens_of_others_stay_good(
    served: ServerHandle, manage: Callable[[Path], Manage], name: str
) -> None:
    run = manage(served.data)
    run("user", "add", name)
    token = run("token", name)[1].strip()

    assert run("user", "revoke-tokens", served.username) == (0, "", "")

    assert served.get("/me", token=token).status_code == 200
    assert served.get("/me").status_code == 200  # of the token file, which was renewed


@pytest.mark.parametrize("action", ["credentials", "s3"])
def test_s3_clients_are_told_the_way(
    served: ServerHandle,
    manage: Callable[[Path], Manage],
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    uri = upload(served, {"a": b"through S3"})

    status, out, _ = manage(served.data)(action)

    told = dict(line.split(": ", 1) for line in out.splitlines())
    file = Path(told["credentials file"])
    assert status == 0
    assert told["buckets"].split() == ["datasets"]
    assert "endpoint for other machines" not in told
    assert told["access key"] in file.read_text()
    assert told["secret key"] in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    client = boto3.session.Session().client(
        "s3", endpoint_url=told["endpoint"], region_name=told["region"]
    )
    key = f"{uri.rpartition('/')[2]}/data/{identifier_of('a')}"
    assert client.get_object(Bucket="datasets", Key=key)["Body"].read() == b"through S3"
    client.close()


def test_store_that_does_not_run_is_one_line(
    tmp_path: Path, manage: Callable[[Path], Manage]
) -> None:
    run = manage(tmp_path / "data")
    run("user", "list")

    status, out, error = run("s3")

    assert (status, out) == (1, "")
    assert "no store was ever started there" in error


def test_new_password_of_the_first_user_is_in_its_file(
    served: ServerHandle, manage: Callable[[Path], Manage]
) -> None:
    assert manage(served.data)("user", "password", served.username, stdin="another\n")[0] == 0

    assert (served.data / "password").read_text() == "another\n"
    login = {"username": served.username, "password": "another"}
    assert served.post("/token", login, token="").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["user", "add", "a b"], "not 1 to 64 characters"),
        (["user", "add", "FIRST"], "exists already"),
        (["user", "remove", "nobody"], "there is no user nobody"),
        (["user", "remove", "FIRST"], "makes it at every start"),
        (["user", "password", "nobody"], "there is no user nobody"),
        (["user", "password", "FIRST"], "no password was given"),
        (["token", "nobody"], "there is no user nobody"),
        (["user", "revoke-tokens", "nobody"], "there is no user nobody"),
        (["token", "FIRST", "--days", "0"], "--days 0: not between"),
        (["token", "FIRST", "--output", "/nowhere/token"], "No such file"),
        (["base-uri", "add", "s3://a/b"], "s3://BUCKET only"),
        (["base-uri", "add", "s3://A_B"], "not 3 to 63 characters"),
        (["base-uri", "add", "s3://datasets"], "exists already"),
        (["base-uri", "remove", "s3://none"], "there is no base URI s3://none"),
        (["permission", "grant", "FIRST", "s3://datasets"], "--search, --register or both"),
        (["permission", "grant", "nobody", "s3://datasets", "--search"], "no user nobody"),
        (["permission", "revoke", "FIRST", "s3://none", "--search"], "no base URI s3://none"),
    ],
)
def test_mistake_is_one_line_and_changes_nothing(
    served: ServerHandle, manage: Callable[[Path], Manage], arguments: list[str], said: str
) -> None:
    run = manage(served.data)
    before = run("permission", "list"), run("user", "list"), run("base-uri", "list")

    given = [served.username if each == "FIRST" else each for each in arguments]
    status, out, error = run(*given)

    assert (status, out, error.count("\n")) == (1, "", 1)
    assert said in error
    assert (run("permission", "list"), run("user", "list"), run("base-uri", "list")) == before


def test_directory_that_is_no_servers_is_refused(
    tmp_path: Path, manage: Callable[[Path], Manage]
) -> None:
    (tmp_path / "thesis.tex").touch()

    assert "holds no dserverfs server" in manage(tmp_path)("user", "list")[2]


def test_data_can_be_given_after_the_action(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "user", "add", "doc", "--data", str(tmp_path)]) == 0
    assert main(["serve", "--data", str(tmp_path), "user", "list"]) == 0

    assert capsys.readouterr().out == "doc - -\n"
