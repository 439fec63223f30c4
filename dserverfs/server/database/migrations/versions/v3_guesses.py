"""Wrong passwords, counted for all processes."""

from __future__ import annotations

from alembic import op

from dserverfs.server.database.tables import guess

revision = "3"
down_revision = "2"


def upgrade() -> None:
    guess.create(op.get_bind(), checkfirst=True)
