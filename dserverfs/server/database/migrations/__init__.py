"""The tables of a server's database, made and changed step by step, by alembic.

`versions/` has the steps, in their order, each with its tables as they were then: a step that
was released is not changed. `tables` has them as they are now. dservercore's tables are made
by its own models; which step a database is at is in a table of ours, for dservercore has one
of its own for its steps. See `upgrading` for when they are run.
"""
