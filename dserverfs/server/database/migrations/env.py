"""Run by alembic: on the connection of `upgrading`, in the transaction that it has begun."""

from alembic import context

from dserverfs.server.database.upgrading import VERSION_TABLE

if hasattr(context, "config"):  # else it is imported, by whoever looks at all modules
    context.configure(
        connection=context.config.attributes["connection"],
        version_table=VERSION_TABLE,
        transactional_ddl=True,
    )
    context.run_migrations()
