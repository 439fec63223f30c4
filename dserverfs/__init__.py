"""dserverfs: the dtool datasets of a dserver as files, and as Python objects.

What programs use is in `dserverfs.python.api`, imported when it is first used: no command needs it.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False  # but for type checkers; `typing` takes 5 ms
if TYPE_CHECKING:
    from dserverfs.python.api import *  # noqa: F403
    from dserverfs.python.api import __all__ as __all__
else:

    def __getattr__(name):
        if not name.startswith("_"):
            from dserverfs.python import api

            if name in api.__all__:
                return getattr(api, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
