"""How long a test waits for what has to come: one limit, for a machine on which much else runs.

Whoever waits for a condition, a thread, a process or an answer, and fails without it, waits this
long: a test that passes does not. It is shorter than the 300 s after which pytest ends a test
(setup.cfg), so that the wait says itself what did not come. Only a test whose subject is the time
has a limit of its own, or the one below.
"""

from __future__ import annotations

LATE_S = 120.0
# What takes a second, and minutes if it waits for what it shall not wait for.
SOON_S = 30.0
