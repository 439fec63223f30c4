"""`python -m dserverfs`."""

from __future__ import annotations

import sys

from dserverfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
