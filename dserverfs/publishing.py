"""Links by which others can read a dataset without a token, through dserver.

Used by the broker. Only a server with the extension `dserverfs.server.publication`
makes them. Blocking and thread-safe.
"""

from __future__ import annotations

from dserverfs.errors import (
    NotAuthenticated,
    NotFound,
    PermissionDenied,
    ProtocolError,
    Unsupported,
    UsageError,
)
from dserverfs.model import Dataset
from dserverfs.routes import Routes, json_of


class Publishing:
    """Links to the datasets of one dserver."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes

    def publish(self, dataset: Dataset, expiry_s: int) -> str:
        """Return a link that dtool-http can read for `expiry_s` seconds.

        Raises Unsupported if the server makes none, PermissionDenied without the
        right to register, UsageError for a time it does not sign for, NotFound.
        """
        if not self._routes.capabilities().publishes:
            raise Unsupported(
                f"{self._routes.server_url} has no route to publish a dataset: {dataset.uri}",
                uri=dataset.uri,
            )
        try:
            response = self._routes.change(
                "POST", "publications", dataset.uri, json={"expiry_seconds": expiry_s}
            )
        except NotFound as error:
            raise self._routes.explained(error, dataset.uri) from error
        except NotAuthenticated:
            raise
        except PermissionDenied as error:
            raise PermissionDenied(
                f"{self._routes.server_url}: {dataset.uri} cannot be published without the right"
                f" to register in {dataset.base_uri}",
                uri=dataset.uri,
                status=error.status,
            ) from error
        except ProtocolError as error:
            if error.status in (400, 422):
                raise UsageError(str(error), uri=dataset.uri, status=error.status) from error
            raise
        answer = json_of(response)
        url = answer.get("url") if isinstance(answer, dict) else None
        if not isinstance(url, str):
            raise ProtocolError(f"{self._routes.server_url}: no link to {dataset.uri}")
        return url
