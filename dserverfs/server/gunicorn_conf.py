"""Settings of gunicorn for this server, as an example that works.

    gunicorn --config python:dserverfs.server.gunicorn_conf

Options of the command line count before these, so that `--workers 8 --bind unix:/run/x.sock`
needs no file of one's own. Of a name here gunicorn's documentation says what it is.
"""

from __future__ import annotations

import os
import signal

from dserverfs.base.local_files import call_libc
from dserverfs.server.store.die_with_parent import PR_SET_PDEATHSIG

wsgi_app = "dserverfs.server.wsgi:application"
bind = "127.0.0.1:5000"  # a proxy that ends TLS, and takes in slow clients' requests, is before it
workers = max(2, os.cpu_count() or 2)
worker_class = "gthread"
threads = 8  # requests wait for the store and the database, mostly
# The database is prepared once, and a worker that has died is replaced within a second.
preload_app = True
timeout = 60  # for which a worker may be stuck as a whole; a long request does not count
graceful_timeout = 90  # clients wait for 60 s
keepalive = 65  # longer than nginx's 60 s, so that the proxy closes first
control_socket_disable = True  # gunicorn's own, which would be in the home directory


def post_fork(server: object, worker: object) -> None:
    """Have a worker end with the process above it, also where that is killed and no systemd is.

    gunicorn's workers end by themselves then, but after requests that are under way: until then a
    gunicorn that is started anew finds the address in use, and connections to it are not answered.
    """
    call_libc("prctl", PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0, path="prctl")
