"""Why a certificate is not accepted, and what to do about it, by what OpenSSL says.

Used for dservers and stores alike. Pure, but for the clock, which it tells: of an expired
certificate and a clock that is wrong only the date is to be seen.
"""

from __future__ import annotations

import datetime

_MARKS = ("CERTIFICATE_VERIFY_FAILED", "certificate verify failed", "doesn't match", "mismatch")


def certificate_fault(reason: str) -> str | None:
    """Return what is wrong and what to do; None if an error is not about a certificate."""
    if not any(mark in reason for mark in _MARKS):
        return None
    now = f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%d %H:%M} UTC"
    if "has expired" in reason:
        return (
            "it has expired: the server's operator has to renew it; or this machine's clock is"
            f" wrong, which says {now}"
        )
    if "not yet valid" in reason:
        return f"it is not valid yet by this machine's clock, which says {now}: set the clock"
    if "match" in reason:
        return "it is for another name: name the server as its certificate does"
    return (
        f"{reason.partition(' (_ssl')[0]}; a certificate authority of your own is named by"
        " DSERVER_CA_FILE"
    )
