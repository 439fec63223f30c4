"""A SeaweedFS cluster on one machine: for tests, and as an example for administrators.

    parts.py        each program's command line and ports: what to run on which host
    settings.py     the files that these programs read
    database.py     PostgreSQL, which has the names of the filers' files
    running.py      the programs as children that are started again when they end
    __main__.py     `scripts/cluster`

On hosts of their own, each program of `parts.py` is a unit of systemd; the files of
`config/` and `tls/` and `s3.json` are the same on all of them.
"""
