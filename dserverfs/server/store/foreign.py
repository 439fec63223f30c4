"""Buckets of other S3 servers, by the settings that dtool-s3 has for them.

From the environment or `~/.config/dtool/dtool.json`:

    DTOOL_S3_ENDPOINT_<bucket>
    DTOOL_S3_ACCESS_KEY_ID_<bucket>
    DTOOL_S3_SECRET_ACCESS_KEY_<bucket>
    DTOOL_S3_DATASET_PREFIX_<bucket>     for new datasets; as it is, so end it with a slash

The region is that of AWS's settings, or what the endpoint's name says.
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from dtoolcore.utils import get_config_value

from dserverfs.base.errors import UsageError
from dserverfs.server.store.signing import Storage

_AWS_HOST = re.compile(r"s3[.-]([a-z]{2}(?:-[a-z]+)+-\d)\.amazonaws\.com")
_DEFAULT_REGION = "us-east-1"


def find_storage(bucket: str) -> Storage | None:
    """Return where a bucket is, None if it is not configured; raises UsageError if half of it is.

    Without an endpoint dtool-s3 would go to AWS with credentials of the
    machine's; here such a bucket is the embedded store's.
    """
    endpoint = _setting("ENDPOINT", bucket)
    access_key = _setting("ACCESS_KEY_ID", bucket)
    secret_key = _setting("SECRET_ACCESS_KEY", bucket)
    if endpoint is None and access_key is None and secret_key is None:
        return None
    if endpoint is None or access_key is None or secret_key is None:
        raise UsageError(
            f"bucket {bucket}: DTOOL_S3_ENDPOINT_{bucket}, DTOOL_S3_ACCESS_KEY_ID_{bucket} and"
            f" DTOOL_S3_SECRET_ACCESS_KEY_{bucket} must be set together"
        )
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise UsageError(f"DTOOL_S3_ENDPOINT_{bucket}: must be http://... or https://...")
    return Storage(
        endpoint=endpoint,
        access_key=access_key,
        secret_key=secret_key,
        bucket=bucket,
        prefix=_setting("DATASET_PREFIX", bucket) or "",
        region=_region(parts.hostname),
    )


def _region(host: str) -> str:
    match = _AWS_HOST.search(host)
    if match is not None:
        return match[1]
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        if os.environ.get(name):
            return os.environ[name]
    return _DEFAULT_REGION


def _setting(name: str, bucket: str) -> str | None:
    value = get_config_value(f"DTOOL_S3_{name}_{bucket}")
    return str(value) if value else None
