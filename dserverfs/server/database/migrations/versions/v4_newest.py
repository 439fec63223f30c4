"""An index of each base URI's datasets by date: pages are merged of it, without reading rows."""

from __future__ import annotations

from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    op.create_index(
        "dserverfs_search_newest",
        "dserverfs_search",
        ["base_uri", "frozen_at", "uri"],
        postgresql_include=["id"],
    )
