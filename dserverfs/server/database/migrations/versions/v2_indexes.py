"""Indexes for hundreds of thousands of datasets: ours, and those that dservercore's tables lack.

dservercore finds the datasets of a base URI, and the users of one, by columns without an index.
"""

from __future__ import annotations

from alembic import op

revision = "2"
down_revision = "1"

INDEXES = (
    ("dserverfs_dataset_base_uri", "dataset", ["base_uri_id", "uri"]),
    ("dserverfs_search_permissions_base_uri", "search_permissions", ["base_uri_id"]),
    ("dserverfs_register_permissions_base_uri", "register_permissions", ["base_uri_id"]),
    ("dserverfs_search_base_uri", "dserverfs_search", ["base_uri", "uri"]),
    ("dserverfs_search_frozen_at", "dserverfs_search", ["frozen_at", "uri"]),
    ("dserverfs_search_creator", "dserverfs_search", ["creator_username", "uri"]),
    ("dserverfs_upload_username", "dserverfs_upload", ["username"]),
    ("dserverfs_upload_base_uri", "dserverfs_upload", ["base_uri"]),
)


def upgrade() -> None:
    for name, table, columns in INDEXES:
        op.create_index(name, table, columns)
