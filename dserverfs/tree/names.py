"""Names as the kernel gives them: bytes, and text here. No state."""

from __future__ import annotations

from dserverfs.base.errors import NotFound, NotUTF8


def utf8(name: bytes) -> str:
    """Return the text of a name to be made or changed; raises NotUTF8."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise NotUTF8(f"{name!r}: names in datasets are UTF-8") from None


def looked_up(name: bytes) -> str:
    """Return the text of a name to be looked up; raises NotFound, for no other is here."""
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        raise NotFound(f"{name!r} is not UTF-8, as every name here is") from None
