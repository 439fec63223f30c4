"""dserverfs: the dtool datasets of a dserver as files."""

__version__ = "0.1.0"
