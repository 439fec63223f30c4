"""The daemon that takes the place of one that has died: no command, but what a channel starts."""

from __future__ import annotations

import argparse
import gc
import os
import sys

from dserverfs.base.errors import DserverfsError
from dserverfs.cli import mount
from dserverfs.mount.channel.succession import Heritage


def main(heritage: str, *words: str) -> int:
    """Serve on until told to end; return the exit status. `words` are those of `mount`."""
    gc.disable()  # until the mount answers, as `mount` does
    parser = argparse.ArgumentParser(prog="dserverfs mount")
    mount.define(parser)
    try:
        return mount.serve_on(parser.parse_args(words), Heritage.of(heritage))
    except DserverfsError as error:
        print(f"dserverfs: {error}", file=sys.stderr)  # which is the log
        return 1


if __name__ == "__main__":
    _, _heritage, _mount, *_words = sys.argv
    os._exit(main(_heritage, *_words))
