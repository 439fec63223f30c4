"""dtool's storage broker for `dserver://` URIs: every dtool command on a dserver's datasets.

dtoolcore loads every installed broker whenever it makes one, so importing this
has to be quick, to need nothing but dtoolcore, and never to fail. What works for
a broker is imported when it is first asked for something.
"""

from __future__ import annotations

from dserverfs.broker.storage_broker import DserverStorageBroker

__all__ = ["DserverStorageBroker"]
