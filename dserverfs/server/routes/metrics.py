"""Figures of the server, for a Prometheus that asks.

    GET /metrics   with the operator's token, see `operator`

    dserverfs_requests_total{method, route, status}
    dserverfs_request_seconds{route}    a histogram: from the first byte to the end of the answer
    dserverfs_signed_urls_total{of}     that were given out: to "read", to "upload"
    dserverfs_open_uploads              announced and not complete; if the database answers

Routes are named as in the table of routes, so the figures have no names of datasets. Under
gunicorn the processes write theirs to files, and whichever is asked adds them up: so does
prometheus_client where PROMETHEUS_MULTIPROC_DIR is set before it is imported. It comes with the
extra `production`; without it nothing is counted. Safe to share between threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, g
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from dserverfs.base.errors import Unsupported
from dserverfs.server.database import sql
from dserverfs.server.database.tables import upload
from dserverfs.server.routes import operator
from dserverfs.server.routes.routing import Asked

try:
    import prometheus_client
    from prometheus_client import multiprocess
    from prometheus_client.core import GaugeMetricFamily
except ModuleNotFoundError:
    prometheus_client = None  # type: ignore[assignment]

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client's
NO_ROUTE = "none"  # there is no such address
_EXTENSION = "dserverfs_metrics"
_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """The figures of one app, and the handler that shows them."""

    def __init__(self, token: str) -> None:
        self._token = token
        if prometheus_client is None:
            return
        self._own = prometheus_client.CollectorRegistry()
        self._requests = prometheus_client.Counter(
            "dserverfs_requests",
            "Requests that were answered.",
            ["method", "route", "status"],
            registry=self._own,
        )
        self._seconds = prometheus_client.Histogram(
            "dserverfs_request_seconds",
            "Time from the request to the end of its answer.",
            ["route"],
            buckets=_BOUNDS_S,
            registry=self._own,
        )
        self._signed = prometheus_client.Counter(
            "dserverfs_signed_urls", "Signed URLs that were given out.", ["of"], registry=self._own
        )

    def install(self, app: Flask) -> None:
        """Count the signed URLs of each answer that an app gives."""
        app.extensions[_EXTENSION] = self
        if prometheus_client is not None:
            app.after_request(self._count_signed)

    @staticmethod
    def of(app: Flask) -> Metrics:
        """Return those that an app has."""
        metrics: Metrics = app.extensions[_EXTENSION]
        return metrics

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        if prometheus_client is not None:
            self._requests.labels(method, route, str(status)).inc()
            self._seconds.labels(route).observe(seconds)

    def get_metrics(self, asked: Asked) -> Response:
        """Show the figures of all processes."""
        operator.require(self._token)
        if prometheus_client is None:
            raise Unsupported("figures need prometheus_client: pip install 'dserverfs[production]'")
        registry: Any = prometheus_client.CollectorRegistry()
        if MULTIPROCESS in os.environ:
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        else:
            registry.register(self._own)
        registry.register(_OpenUploads())
        content = prometheus_client.generate_latest(registry)
        return Response(content, content_type=prometheus_client.CONTENT_TYPE_LATEST)

    def _count_signed(self, response: Response) -> Response:
        for purpose, number in g.get("signed_urls", {}).items():
            self._signed.labels(purpose).inc(number)
        return response


def count_signed_urls(purpose: str, number: int) -> None:
    """Count signed URLs that the answer to this request has: to "read" or to "upload"."""
    counted = g.setdefault("signed_urls", {})
    counted[purpose] = counted.get(purpose, 0) + number


class _OpenUploads:
    """What the database knows about uploads, asked when the figures are."""

    def collect(self) -> Iterator[Any]:
        try:
            number = sql.value(select(func.count()).select_from(upload))
        except SQLAlchemyError:
            return
        yield GaugeMetricFamily(
            "dserverfs_open_uploads", "Uploads that were begun and are not complete.", number
        )
