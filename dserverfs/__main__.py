"""`python -m dserverfs`."""

import sys

from dserverfs.cli import main

if __name__ == "__main__":
    sys.exit(main())
