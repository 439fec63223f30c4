"""Becoming another user, as root does for a mount at the start of the machine.

Used by the command `mount`, before it reads settings or makes files. Only for a process
with one thread.
"""

from __future__ import annotations

import os
import pwd
import re

from dserverfs.base.errors import UsageError

# Where programs, certificates, proxies and the manager of services are, and the language: nothing
# with a secret of root.
_KEPT = re.compile(
    "PATH|LANG|LC_[A-Z]+|TZ|PYTHON[A-Z]+|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
    "|NOTIFY_SOCKET|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy"
)


def become(username: str) -> None:
    """Make this process one of that user, with that user's home; raises UsageError."""
    try:
        user = pwd.getpwnam(username)
    except KeyError:
        raise UsageError(f"-o setuid={username}: there is no such user") from None
    if user.pw_uid == os.geteuid():
        return
    if os.geteuid() != 0:
        raise UsageError(f"-o setuid={username}: only root can mount as another user")
    kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
    os.environ.clear()
    os.environ.update(kept, HOME=user.pw_dir, USER=username, LOGNAME=username)
    os.initgroups(username, user.pw_gid)
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    if not os.access(__file__, os.R_OK):
        raise UsageError(
            f"-o setuid={username}: {os.path.dirname(__file__)} is not readable for {username}:"
            " install dserverfs where all users can read it"
        )
