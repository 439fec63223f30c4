"""The steps of a request to complete an upload, at one of which its process is killed or held.

A step is a request to the store that is about to be sent, or a commit, before and after it.
`HERE` names a directory, in which the test says at which step what happens:

    kill   the number of a step: the file is deleted, then the process is killed
    hold   the number of a step: the file is deleted, then `reached` and `go`, two pipes, are
           opened, one after the other: the test has the request wait between them

Run as a program it is `dserverfs` with these steps.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Session

from dserverfs.server.store.bucket import ObjectStore

HERE = "DSERVERFS_TEST_STEPS"
_PATH = "/signed-urls/upload-complete"


class _Count(threading.local):
    step = -1  # of the request of this thread; below 0 if it is another request


_count = _Count()


def install() -> None:
    """Count the steps of this process."""
    plain = ObjectStore.__init__

    def with_steps(self: ObjectStore, *arguments: Any, **options: Any) -> None:
        plain(self, *arguments, **options)
        self.client.meta.events.register("before-call.s3", _step)

    ObjectStore.__init__ = with_steps  # type: ignore[method-assign]
    for name in ("before_commit", "after_commit"):
        event.listen(Session, name, _step)


def watched(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Return the app, whose requests to complete an upload are counted."""

    def call(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        _count.step = 0 if environ["PATH_INFO"] == _PATH else -1
        return app(environ, start_response)

    return call


def _step(*_: Any, **__: Any) -> None:
    if _count.step < 0:
        return
    _count.step += 1
    here = Path(os.environ[HERE])
    if _is_at(here / "kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if _is_at(here / "hold"):
        (here / "reached").write_bytes(b"x")
        (here / "go").read_bytes()


def _is_at(file: Path) -> bool:
    try:
        wanted = int(file.read_text())
    except (FileNotFoundError, ValueError):
        return False
    if wanted != _count.step:
        return False
    file.unlink()
    return True


def _main() -> int:
    from dserverfs.cli.main import main
    from dserverfs.server import app

    install()
    plain = app.create

    def create(*arguments: Any) -> Any:
        flask = plain(*arguments)
        flask.wsgi_app = watched(flask.wsgi_app)  # type: ignore[method-assign]
        return flask

    app.create = create  # type: ignore[assignment]
    return main()


if __name__ == "__main__":
    raise SystemExit(_main())
