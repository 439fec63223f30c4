"""What the programs that dserverfs starts are given: no secrets, and no modules of others.

Used wherever a program is started. Reads the environment at each call; no state.
"""

from __future__ import annotations

import os
import sys

from dserverfs.base import utf8_names
from dserverfs.base.local_files import call_libc

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
# Of settings with tokens, of dtool's with the keys of stores, and of what would configure
# `weed` in the place of its files.
_WITH_SECRETS = ("DSERVER_", "DTOOL_", "WEED_", "AWS_", "S3_")
# `python -m` and `-c` look for modules in the current directory first, where a `json.py` may
# be anybody's: that of a dataset, or of /tmp.
_RUN_MODULE = (
    "import sys; sys.path[:1] == [''] and sys.path.pop(0); import runpy;"
    " runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def environment(**others: str) -> dict[str, str]:
    """Return this process's environment without what may hold secrets, and with `others`."""
    kept = {name: os.environ[name] for name in os.environ if not name.startswith(_WITH_SECRETS)}
    return {**kept, **others}


def module_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this package, as `python -m` does elsewhere."""
    return [sys.executable, *utf8_names.OPTIONS, "-c", _RUN_MODULE, module, *arguments]


def begin_anew_with_utf8_names() -> None:
    """Have this process run its command from the beginning, in UTF-8 mode; raises OSError."""
    os.execv(sys.executable, [sys.executable, *utf8_names.OPTIONS, *sys.orig_argv[1:]])


def adopt_orphans() -> None:
    """Become the parent of each process below this one whose own parent ends; raises OSError."""
    call_libc("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0, path="prctl")
