"""The application of gunicorn whose requests to complete an upload go by `steps`."""

from __future__ import annotations

from dserverfs.server import wsgi
from tests.support import steps

steps.install()
application = steps.watched(wsgi.create())
