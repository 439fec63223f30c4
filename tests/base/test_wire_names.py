"""Names of abilities: those of 0.1.0 stay as they were."""

from __future__ import annotations

from dserverfs.base import wire_names


def test_what_0_1_0_looks_for_is_published() -> None:
    published = wire_names.published("9")

    for name in ("signed_urls", "multipart", "metadata", "publications"):
        assert published[f"dserverfs.server.{name}"] == "9"


def test_every_name_is_understood_by_itself_and_the_old_ones_by_the_new() -> None:
    assert wire_names.understood(wire_names.NAMES) == set(wire_names.NAMES)
    since = {wire_names.SIGNED_URLS, wire_names.BLOCK_HASHES}
    assert wire_names.understood(wire_names.OF_0_1_0) == {*wire_names.NAMES} - since
    assert wire_names.understood(["dserver-signed-url-plugin"]) == {wire_names.SIGNED_URLS}
