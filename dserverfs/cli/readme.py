"""README.yml of a staged dataset, before it is frozen: of one sentence, or from an editor.

Used by `freeze`. It is written through the mount, as by any program, so a command that fails
later leaves it there.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dserverfs.base import child_processes
from dserverfs.base.dtool_layout import README
from dserverfs.base.errors import UsageError
from dserverfs.settings import Settings

# A JSON text is one of YAML, but for these, which YAML takes for line ends or for no letters.
_UNLIKE_JSON = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


# What `derive` writes, to which nothing was added.
_OF_DERIVE = re.compile('---\nderived_from: "[^"\n]*"\n')


def derived(uri: str) -> str:
    """Return a README that says which dataset another one was derived from."""
    return f"---\nderived_from: {json.dumps(uri)}\n"


def describe(directory: Path, text: str) -> None:
    """Write a README of a description, where there is none; raises UsageError if there is one.

    What `derive` has written stays before the description.
    """
    content, known = described(text), _known(directory)
    if (begun := _OF_DERIVE.match(known)) is not None:
        content = begun[0] + content.removeprefix("---\n")
    if known not in (content, begun[0] if begun else ""):
        raise UsageError(
            f"{directory / README}: is there, and stays as it is: freeze without --message, or"
            " write it there"
        )
    _write(directory, content)


def described(text: str) -> str:
    """Return a README as dtool's are, in YAML, with this description; raises UsageError."""
    if not text.strip():
        raise UsageError("--message: is empty")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UsageError("--message: is not UTF-8") from None
    quoted = json.dumps(text, ensure_ascii=False)
    quoted = _UNLIKE_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)
    return f"---\ndescription: {quoted}\n"


def edit(directory: Path, settings: Settings) -> None:
    """Have the user's editor change the README, made of dtool's template where there is none.

    Raises UsageError if the editor fails, or leaves the template as it was: then nothing is
    written. The editor gets a copy elsewhere, lest its own files become items; the copy is kept
    if it cannot be written back.
    """
    known = _known(directory)
    template = known or from_template(settings)
    with tempfile.TemporaryDirectory(prefix="dserverfs-") as scratch:
        path = Path(scratch) / README
        path.write_text(template, "utf-8")
        try:
            _run_editor(path)
            edited = _read(path)
            if not edited or (edited == template and not known):
                raise _NothingWritten(f"{README}: nothing was written, so nothing is frozen")
            if _known(directory) != known:
                raise UsageError(f"{directory / README}: was changed meanwhile, and stays so")
            _write(directory, edited)
        except _NothingWritten:
            raise
        except UsageError as error:
            if _is_as_before(path, template):
                raise
            raise UsageError(f"{error}; what you wrote is in {_kept(path)}") from error


def from_template(settings: Settings) -> str:
    """Return dtool's template with its names filled in; raises UsageError."""
    path = settings.readme_template()
    names = {
        "username": getpass.getuser(),
        "DTOOL_USER_FULL_NAME": settings.user_full_name(),
        "DTOOL_USER_EMAIL": settings.user_email(),
        "date": datetime.date.today().isoformat(),
    }
    try:
        text = _TEMPLATE if path is None else path.read_text("utf-8")
        return text.format(**names)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: the template of README.yml cannot be read: {error}") from error
    except (LookupError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: is no template of README.yml: {error}; names in braces are"
            f" {', '.join(names)}, and a brace is written twice"
        ) from error


_TEMPLATE = """---
description:
project:
confidential: False
personally_identifiable_information: False
owners:
  - name: {DTOOL_USER_FULL_NAME}
    email: {DTOOL_USER_EMAIL}
    username: {username}
creation_date: {date}
"""


class _NothingWritten(UsageError):
    """The user left the editor without having written anything."""


def _known(directory: Path) -> str:
    """Return the README that is there; nothing if it is blank. Raises UsageError."""
    return _read(directory / README)


def _read(path: Path) -> str:
    """Return the text of a file; nothing if it is blank, or not there. Raises UsageError."""
    with _told(path):
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return ""
    return text if text.strip() else ""


def _is_as_before(path: Path, template: str) -> bool:
    try:
        return path.read_bytes() == template.encode()
    except OSError:
        return True  # the editor took it away


def _kept(path: Path) -> Path:
    """Move a file to where nobody deletes it; return its place."""
    kept = Path(tempfile.mkdtemp(prefix="dserverfs-")) / path.name
    shutil.move(path, kept)
    return kept


def _write(directory: Path, content: str) -> None:
    if _known(directory) != content:
        with _told(directory / README):
            (directory / README).write_text(content, "utf-8")


def _run_editor(path: Path) -> None:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "--edit: there is no terminal for vi, and neither VISUAL nor EDITOR names an editor"
            " that needs none; --message TEXT describes a dataset as well"
        )
    editor = editor or "vi"
    # Ctrl-C is for the editor, whose text would be lost with us.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        command = [*shlex.split(editor), str(path)]
        status = subprocess.run(command, env=child_processes.environment(), check=False).returncode
    except (OSError, ValueError) as error:
        raise UsageError(f"{editor}: cannot be started to edit {README}: {error}") from error
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        raise UsageError(f"{editor}: ended with status {status}, so nothing is written or frozen")


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is no text in UTF-8: {error}") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
