"""One parser, given bytes by atheris, which looks for those that reach more of the code.

A program: `python -m tests.support.guided PARSER CORPUS OPTION...`, options being libFuzzer's.
It ends with a status other than 0 at the first fault, and leaves the bytes in a file.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> None:
    atheris: Any = importlib.import_module("atheris")  # no Python has to have it
    with atheris.instrument_imports(include=["dserverfs", "json"]):
        from tests.support.parsers import read_mutated

    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, lambda content: read_mutated(name, content))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
