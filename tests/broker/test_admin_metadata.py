"""Administrative metadata is a dictionary whose last value is asked for when it is wanted."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from dserverfs.base.errors import Unreachable
from dserverfs.broker.admin_metadata import VERSION, AdminMetadata

KNOWN = {"name": "n", "uuid": "u"}
WHOLE = {**KNOWN, VERSION: "3.18"}


class Manifest:
    """Where the version comes from."""

    def __init__(self, version: str | None = "3.18") -> None:
        self.version = version
        self.asked = 0

    def __call__(self) -> str | None:
        self.asked += 1
        return self.version


@pytest.mark.parametrize(
    "look",
    [
        lambda admin: admin["name"],
        lambda admin: admin.get("name"),
        lambda admin: admin.get("other"),
        lambda admin: "name" in admin,
        lambda admin: "other" in admin,
        repr,
        "{}".format,
        lambda admin: admin.update(type="dataset"),
        lambda admin: admin.__setitem__("type", "dataset"),
    ],
)
def test_what_is_known_is_told_without_asking(look: Callable[[Any], Any]) -> None:
    manifest = Manifest()

    look(AdminMetadata(KNOWN, manifest))

    assert manifest.asked == 0


@pytest.mark.parametrize(
    "look",
    [
        lambda admin: {**KNOWN, VERSION: admin[VERSION]},
        lambda admin: {**KNOWN, VERSION: admin.get(VERSION)},
        lambda admin: WHOLE if VERSION in admin else None,
        lambda admin: admin if len(admin) == 3 else None,
        dict,
        lambda admin: {**admin},
        lambda admin: admin.copy(),
        lambda admin: admin | {},
        lambda admin: {} | admin,
        lambda admin: dict(admin.items()),
        lambda admin: dict(zip(admin.keys(), admin.values(), strict=True)),
        lambda admin: {key: admin[key] for key in admin},
        lambda admin: json.loads(json.dumps(admin)),
        lambda admin: json.loads(json.dumps(admin, indent=2)),
        copy.copy,
        copy.deepcopy,
        lambda admin: pickle.loads(pickle.dumps(admin)),  # noqa: S301 - our own
        lambda admin: {**KNOWN, VERSION: admin.pop(VERSION)},
        lambda admin: {**KNOWN, VERSION: admin.setdefault(VERSION, "other")},
        lambda admin: WHOLE if admin == WHOLE else None,
        lambda admin: None if admin != WHOLE else WHOLE,
    ],
)
def test_the_whole_has_the_version_asked_for_once(look: Callable[[Any], Any]) -> None:
    manifest = Manifest()
    admin = AdminMetadata(KNOWN, manifest)

    assert look(admin) == WHOLE
    look(AdminMetadata(WHOLE, manifest))

    assert manifest.asked == 1


def test_version_that_nobody_knows_is_left_out_and_a_given_one_stays() -> None:
    assert dict(AdminMetadata(KNOWN, Manifest(None))) == KNOWN
    with pytest.raises(KeyError):
        AdminMetadata(KNOWN, Manifest(None))[VERSION]
    given = AdminMetadata(KNOWN, Manifest())
    given[VERSION] = "mine"
    assert dict(given) == {**KNOWN, VERSION: "mine"}


def test_version_that_cannot_be_had_now_is_asked_for_again() -> None:
    manifest = Manifest()

    def find() -> str | None:
        if manifest() and manifest.asked == 1:
            raise Unreachable("away")
        return "3.18"

    admin = AdminMetadata(KNOWN, find)

    with pytest.raises(Unreachable):
        dict(admin)
    assert dict(admin) == WHOLE
