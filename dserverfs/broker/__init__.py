"""dtool's storage broker for `dserver://` URIs: every dtool command on a dserver's datasets.

dtoolcore loads every installed broker whenever it makes one, so this import is quick,
needs nothing but dtoolcore, and never fails. A broker imports the rest at its first
question.
"""

from __future__ import annotations

from dserverfs.broker.storage_broker import DserverStorageBroker

__all__ = ["DserverStorageBroker"]
