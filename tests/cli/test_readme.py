"""README.yml before the freeze: a description that dtool reads as it was given, or an editor's."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from dserverfs.base.errors import UsageError
from dserverfs.cli import readme
from dserverfs.settings import Settings

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
STRANGE = [
    "key: value",
    "- a",
    "# no comment",
    "{x}",
    "a\n\nb ",
    "'\"\\",
    "yes",
    "\x85\u2028\ufeff\x00",
]


def parsed(text: str) -> Any:
    """Return what dtool reads."""
    return YAML(typ="safe").load(text)


def editor(tmp_path: Path, script: str) -> str:
    """Return the command of an editor that does that to the file."""
    path = tmp_path / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@given(TEXT)
def test_description_is_read_as_it_was_given(text: str) -> None:
    assert parsed(readme.described(text)) == {"description": text}


@pytest.mark.parametrize("text", STRANGE)
def test_strange_description_is_read_as_it_was_given(text: str) -> None:
    assert parsed(readme.described(text)) == {"description": text}


@pytest.mark.parametrize("text", ["", " \n", "\udcff"])
def test_what_is_no_description_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--message: is "):
        readme.described(text)


@pytest.mark.parametrize("before", [None, "", "\n", '---\ndescription: "mine"\n'])
def test_description_takes_the_place_of_nothing_or_of_itself(
    tmp_path: Path, before: str | None
) -> None:
    if before is not None:
        (tmp_path / "README.yml").write_text(before)

    readme.describe(tmp_path, "mine")

    assert (tmp_path / "README.yml").read_text() == readme.described("mine")


def test_description_follows_what_derive_has_written(tmp_path: Path) -> None:
    path = tmp_path / "README.yml"
    path.write_text(readme.derived("dserver://here/s3/b/u"))

    readme.describe(tmp_path, "mine")
    os.utime(path, ns=(0, 0))
    readme.describe(tmp_path, "mine")

    assert parsed(path.read_text()) == {
        "derived_from": "dserver://here/s3/b/u",
        "description": "mine",
    }
    assert path.stat().st_mtime_ns == 0  # it is not written again
    with pytest.raises(UsageError, match="is there, and stays as it is"):
        readme.describe(tmp_path, "other")


@pytest.mark.parametrize("before", [b"description: other\n", b"x", b"\xff"])
def test_message_is_not_written_over_a_readme(tmp_path: Path, before: bytes) -> None:
    (tmp_path / "README.yml").write_bytes(before)

    with pytest.raises(UsageError, match=r"README\.yml: is "):
        readme.describe(tmp_path, "mine")

    assert (tmp_path / "README.yml").read_bytes() == before


def test_template_is_dtools_with_its_names_filled_in(tmp_path: Path) -> None:
    (tmp_path / "template").write_text("a: {DTOOL_USER_FULL_NAME} {{x}} {date} {username}\n")
    names = {"DTOOL_USER_FULL_NAME": "Ada", "DTOOL_USER_EMAIL": "ada@example.org"}

    own = readme.from_template(Settings({}, names))
    theirs = readme.from_template(
        Settings({"DTOOL_README_TEMPLATE_FPATH": str(tmp_path / "template"), **names}, {})
    )

    (owner,) = parsed(own)["owners"]
    assert (owner["name"], owner["email"]) == ("Ada", "ada@example.org")
    assert theirs.startswith("a: Ada {x} 20")


@pytest.mark.parametrize("template", ["{unknown}", "{0}", "{", "{date.nothing}", None])
def test_template_that_is_none_is_named(tmp_path: Path, template: str | None) -> None:
    path = tmp_path / "template"
    if template is not None:
        path.write_text(template)

    with pytest.raises(UsageError, match=f"^{path}: .*template"):
        readme.from_template(Settings({"DTOOL_README_TEMPLATE_FPATH": str(path)}, {}))


@pytest.mark.parametrize(
    ("before", "script", "after"),
    [
        (None, "sed -i 's/^description:/description: mine/' $1", "description: mine\n"),
        ("a: 1\n", "echo b: 2 >> $1", "a: 1\nb: 2\n"),
        ("a: 1\n", "true", "a: 1\n"),
        ("\n", "echo b: 2 > $1; touch $1~", "b: 2\n"),
    ],
)
def test_readme_is_written_in_an_editor(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    script: str,
    after: str,
) -> None:
    directory = tmp_path / "dataset"
    directory.mkdir()
    if before is not None:
        (directory / "README.yml").write_text(before)
    monkeypatch.setenv("EDITOR", editor(tmp_path, script))
    monkeypatch.delenv("VISUAL", raising=False)

    readme.edit(directory, Settings({}, {}))

    assert after in (directory / "README.yml").read_text()
    assert [path.name for path in directory.iterdir()] == ["README.yml"]


@pytest.mark.parametrize("before", [None, "a: 1\n"])
@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo x >> $1; exit 3", "ended with status 3"),
        (": > $1", "nothing was written"),
        ("rm $1", "nothing was written"),
        (None, "cannot be started"),
    ],
)
def test_editor_that_writes_nothing_leaves_the_readme(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    script: str | None,
    said: str,
) -> None:
    directory = tmp_path / "dataset"
    directory.mkdir()
    if before is not None:
        (directory / "README.yml").write_text(before)
    monkeypatch.setenv("VISUAL", "/nowhere/vi" if script is None else editor(tmp_path, script))

    with pytest.raises(UsageError, match=said):
        readme.edit(directory, Settings({}, {}))

    path = directory / "README.yml"
    assert (path.read_text() if path.exists() else None) == before


def test_template_that_is_left_as_it_was_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "true")

    with pytest.raises(UsageError, match="nothing was written"):
        readme.edit(tmp_path, Settings({}, {}))

    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("printf 'b: \\377' > $1", "is no text in UTF-8"),
        ("echo b: 2 > $1; echo a: 2 > {readme}", "was changed meanwhile, and stays so"),
        ("echo b: 2 > $1; rm {readme}; mkdir {readme}", "Is a directory"),
        ("echo b: 2 > $1; exit 3", "ended with status 3"),
    ],
)
def test_what_cannot_be_written_back_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    path = tmp_path / "README.yml"
    path.write_text("a: 1\n")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setenv("VISUAL", editor(tmp_path, script.format(readme=path)))

    with pytest.raises(UsageError, match=f"{said}.*; what you wrote is in ") as failed:
        readme.edit(tmp_path, Settings({}, {}))

    kept = Path(str(failed.value).rpartition(" is in ")[2])
    assert kept.read_bytes().startswith(b"b: ")
    assert kept.parent.parent == tmp_path


def test_control_c_is_for_the_editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor(tmp_path, "kill -INT $PPID; echo a: 1 > $1"))

    readme.edit(tmp_path, Settings({}, {}))

    assert (tmp_path / "README.yml").read_text() == "a: 1\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
