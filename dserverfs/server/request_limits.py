"""The limit of a request's body, by its head: before anything of the body is read.

Pure. JSON takes up to 25 times its bytes in memory, so each route has a limit of its
own, some times the size of a real body; without a token of this server it is the size that
a login needs.
"""

from __future__ import annotations

from collections.abc import Callable

import jwt

from dserverfs.base.limits import MAX_METADATA_BYTES

KIB = 1024
MIB = 1024**2

WITHOUT_TOKEN_BYTES = 64 * KIB
DEFAULT_BYTES = MIB  # 1,000 identifiers, 10,000 parts of an item
LARGEST_BYTES = 512 * MIB  # two million items with their relpaths
_BY_ROUTE = (
    ("POST", "/signed-urls/upload/", LARGEST_BYTES),
    ("PUT", "/uris/", LARGEST_BYTES),
    ("PUT", "/overlays/", MAX_METADATA_BYTES),
    ("PUT", "/readmes/", 64 * MIB),  # 16 MiB of text, a part of it escaped
    ("PUT", "/annotations/", 16 * MIB),
)


def signed_by(public_key_pem: str) -> Callable[[str], bool]:
    """Return the function that says whether a token is one that the key's owner has signed."""

    def is_signed(token: str) -> bool:
        try:
            jwt.decode(token, public_key_pem, algorithms=["RS256"])
        except jwt.PyJWTError:
            return False
        return True

    return is_signed


def max_body_bytes(method: str, path: str, *, has_token: bool) -> int:
    """Return the most bytes that the body of a request may have."""
    if not has_token:
        return WITHOUT_TOKEN_BYTES
    for known, prefix, limit in _BY_ROUTE:
        if method == known and path.startswith(prefix):
            return limit
    return DEFAULT_BYTES
