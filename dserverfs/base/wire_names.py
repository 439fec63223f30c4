"""The names of a server's abilities: a wire protocol, which no module's name changes.

Used by both sides. A server publishes them as the keys of `/config/versions`, and as the
list `dserverfs_abilities` of `/config/info`. Names are only ever added; those of 0.1.0
were paths of modules, and are published and understood beside the others. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

# Upstream's routes that sign URLs. Its web application offers downloads where it sees this name.
SIGNED_URLS = "dserver_signed_url_plugin"
# Those that dserverfs adds: many URLs at a time, small answers, uploads that are checked.
SIGNED_URLS_EXTENDED = "dserverfs_signed_urls"
MULTIPART = "dserverfs_multipart"  # items in parts
METADATA = "dserverfs_metadata"  # changes of frozen datasets
PUBLICATIONS = "dserverfs_publications"
ACCOUNTS = "dserverfs_accounts"  # tokens for passwords
BLOCK_HASHES = "dserverfs_block_hashes"  # of a dataset's blocks, as one object beside its items
SEARCH = "dserverfs_search"
RETRIEVE = "dserverfs_retrieve"

NAMES = (
    *(SIGNED_URLS, SIGNED_URLS_EXTENDED, MULTIPART, METADATA, PUBLICATIONS, ACCOUNTS),
    *(SEARCH, RETRIEVE, BLOCK_HASHES),
)
OF_0_1_0 = {
    "dserverfs.server.signed_urls": SIGNED_URLS_EXTENDED,
    "dserverfs.server.multipart": MULTIPART,
    "dserverfs.server.metadata": METADATA,
    "dserverfs.server.publications": PUBLICATIONS,
    "dserverfs.server.accounts": ACCOUNTS,
    "dserverfs.server.search": SEARCH,
    "dserverfs.server.retrieve": RETRIEVE,
}


def published(version: str) -> dict[str, str]:
    """Return what `/config/versions` lists beside dservercore: every name with our version."""
    return dict.fromkeys((*NAMES, *OF_0_1_0), version)


def understood(names: Iterable[object]) -> frozenset[str]:
    """Return the names that a server lists, those of 0.1.0 by what they are called now."""
    listed = {str(name) for name in names}
    return frozenset(OF_0_1_0.get(name, name.replace("-", "_")) for name in listed)
