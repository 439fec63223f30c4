"""`dserverfs login`: gets a token by a password or in a browser, and keeps it for this user."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from dserverfs.base.errors import UsageError
from dserverfs.cli.arguments import (
    Commands,
    example,
    is_web_address,
    moment,
    read_password,
    read_pasted,
    say,
    server_of,
)

if TYPE_CHECKING:
    from dserverfs.remote.login import Approval
    from dserverfs.settings import Settings


def add(commands: Commands) -> None:
    parser = commands.add_parser("login", help="get and keep a token")
    parser.description = (
        "Get a token and keep it in a file that dserverfs uses where neither DSERVER_TOKEN nor"
        " DSERVER_TOKEN_FILE is set. The server says how: by a password, which is typed or read"
        " from standard input, or by an approval in a browser, after which the token is pasted."
    )
    parser.add_argument(
        "server", metavar="SERVER", help="HOST[:PORT], dserver://HOST[:PORT] or https://..."
    )
    parser.add_argument(
        "--username",
        metavar="NAME",
        help="log in by a password; default: DSERVER_USERNAME, or yours on this machine",
    )
    parser.add_argument(
        "--token-stdin", action="store_true", help="keep the token in standard input, or pasted"
    )
    parser.add_argument(
        "--no-browser", action="store_true", help="only say which page is to be opened"
    )
    parser.add_argument(
        "--insecure", action="store_true", help="send the password to another machine unencrypted"
    )
    parser.epilog = example("dserverfs login https://data.example.org")
    parser.set_defaults(command=_run)


def _run(arguments: argparse.Namespace) -> int:
    from dserverfs.remote import login
    from dserverfs.remote.tokens import expires_at
    from dserverfs.settings import URL, Settings

    server = server_of(arguments.server)
    settings = Settings.load()
    if is_web_address(arguments.server):
        settings = settings.overridden(server, {URL: arguments.server.rstrip("/")})
    base_url, trust = settings.base_url(server), settings.trust(server)
    token = _token(arguments, settings, server)
    user = login.user_of(base_url, token, trust)
    path = settings.kept_token_file(server)
    login.keep_token(path, token)
    if is_web_address(arguments.server):
        _keep_address(settings, server)
    say(f"user: {user.username}")
    say(f"expires: {moment(expires_at(token))}")
    say(f"token file: {path}")
    setting = settings.token(server)
    if setting is not None and setting.name is not None:
        say(f"dserverfs: {setting.name} is set, and counts before this token", file=sys.stderr)
    return 0


def _keep_address(settings: Settings, server: str) -> None:
    """Keep the address that the user gave, for all commands to come."""
    from dserverfs.remote import login

    path, address = settings.kept_address_file(server), settings.base_url(server)
    if address == f"http://{server}":  # so it is by itself, or as DSERVER_PROTOCOL says
        login.forget(path)
    else:
        login.keep_address(path, address)


def _token(arguments: argparse.Namespace, settings: Settings, server: str) -> str:
    """Return a token, in the way that the arguments, the settings or the server say."""
    from dserverfs.remote import login

    if arguments.token_stdin:
        return login.token_in(read_pasted(f"Token for {server}: "))
    base_url, trust = settings.base_url(server), settings.trust(server)
    generator_url = settings.token_generator_url(server)
    username = arguments.username or settings.username(server)
    if username is None and generator_url is None:
        approval = login.approval_page(base_url, trust)
        if approval is not None:
            if not arguments.insecure:
                login.require_private_way(base_url, "token")
            _tell_page(approval, server)
            if not arguments.no_browser:
                _open_browser(approval.url)
            return login.token_in(read_pasted("Token, which is not shown: "))
    username = username or _login_name()
    if not arguments.insecure:  # before anybody types a password
        for url in filter(None, (generator_url, base_url)):
            login.require_private_way(url)
    password = read_password(f"Password of {username} at {server}: ")
    credentials = login.Credentials(username, password)
    return login.fetch_token(base_url, generator_url, credentials, trust)


def _tell_page(approval: Approval, server: str) -> None:
    """Say where the user approves; raises UsageError without a terminal to paste the token."""
    if not sys.stdin.isatty():
        raise UsageError(
            f"{server}: one logs in by {approval.provider} in a browser: run this on a terminal,"
            " or pipe a token into dserverfs login --token-stdin; --username NAME asks for a"
            " password"
        )
    say(f"Log in by {approval.provider}, in a browser on any machine:")
    say("")
    say(f"  {approval.url}")
    say("")
    say("Then copy what the page shows (it has the token), and paste it here.")


def _open_browser(url: str) -> None:
    """Show a page to the user, if this machine can."""
    from dserverfs.base import child_processes

    program = shutil.which("xdg-open")
    if program is None or not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        return  # not one of a terminal, which would be in the way of the question
    with contextlib.suppress(OSError):
        subprocess.Popen(
            [program, url],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=child_processes.environment(),
            start_new_session=True,  # Ctrl-C is for the question here
        )


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a user id without a name, as in containers
        raise UsageError("name the user to log in: --username NAME") from error
