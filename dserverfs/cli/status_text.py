"""What `dserverfs status` prints: lines of text, of the facts that it has gathered. Pure."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from dserverfs.base.printable import counted
from dserverfs.base.progress import Progress
from dserverfs.cli.arguments import moment
from dserverfs.cli.progress import size, text_of

_SHOWN_ERRORS = 10


def of_path(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on one path."""
    for key, value in facts.items():
        if key == "errors":
            yield from _errors(value)
        elif key == "notes":
            yield from (f"note: {note}" for note in value)
        elif key == "refused":
            pass  # the notes tell of them
        elif value is not None:
            yield f"{key}: {_value(key, value)}"


def _value(key: str, value: Any) -> str:
    if key.endswith("_at") and isinstance(value, (int, float)):
        return moment(value)
    if key == "progress":
        return _progress(value)
    if key == "cached":
        return _cached(value)
    if key == "server":
        return _server(value)
    if key == "size_in_bytes":
        return f"{size(value)} ({counted(value, 'byte')})"
    return value if isinstance(value, str) else json.dumps(value)


def _server(server: Mapping[str, Any]) -> str:
    """Return whether the server answers."""
    if server["answers"]:
        return "answers"
    return f"has not answered since {moment(server['since_at'])}: {server['reason']}"


def _cached(held: Mapping[str, int]) -> str:
    """Return how much of an item or a dataset is in the cache."""
    pinned = f"; {held['pinned_items']} pinned" if held["pinned_items"] else ""
    return (
        f"{held['items']} of {counted(held['of_items'], 'item')}, {size(held['size_in_bytes'])} of"
        f" {size(held['of_size_in_bytes'])}{pinned}"
    )


def _progress(progress: Mapping[str, Any]) -> str:
    """Return how far a freeze is."""
    counts = Progress(*(progress[name] for name in Progress._fields))
    told = text_of(counts, progress.get("bytes_per_s"), progress.get("left_s"))
    return f"{progress.get('phase', 'uploading')}: {told}"  # 0.1.0 tells of uploads alone


def _errors(errors: list[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines on the last errors, the last one first."""
    if not errors:
        return
    yield "errors that programs were given:"
    for error in errors[: -_SHOWN_ERRORS - 1 : -1]:
        since = f", {error['times']} times since {moment(error['first_at'])}"
        again = since if error["times"] > 1 else ""
        yield f"    {moment(error['last_at'])}{again}:"
        yield f"        {error['tried']} {error['path']} ({error['errno']})"
        yield f"        {error['reason']}"
        if error["remedy"]:
            yield f"        {error['remedy']}"
    if len(errors) > _SHOWN_ERRORS:
        yield f"    {len(errors) - _SHOWN_ERRORS} earlier ones: --json has them"


def of_all(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on all that this user has."""
    for mount in found["mounts"]:
        yield from _mount(mount)
    for ended in found["ended"]:
        yield f"not mounted any more: {ended['uri']} at {ended['path']}"
        yield from _last_error(ended)
    for directory in found["staging_directories"]:
        if directory["problem"]:
            yield f"staging directory {directory['path']}: {directory['problem']}"
    for staged in found["staged"]:
        yield from _staged(staged)
    for kept in found["kept"]:
        yield (
            f"left out of a frozen dataset, and kept until you delete it: {kept['directory']}:"
            f" {counted(kept['number_of_files'], 'file')}, {size(kept['size_in_bytes'])}"
        )
    for change in found["unsent"]:
        where = f"{change['dataset']} ({change['name']})"
        yield f"not sent: {where}: {change['path']}, in {change['file']}"
        if change["reason"]:
            yield f"    {change['reason']}"
    for login in found["logins"]:
        user = f" as {login['user']}" if login.get("user") else ""
        yield f"logged in: {login['server']}{user}: {_until(login)}"
    if not found["mounts"]:
        yield "nothing is mounted"


def _mount(mount: Mapping[str, Any]) -> Iterator[str]:
    silent = "" if mount["answers"] else " (does not answer)"
    yield f"mounted: {mount['uri']} at {mount['path']}{silent}"
    if problem := mount.get("problem"):
        yield f"    {problem}"
    if token := mount.get("token"):
        user = f", of {token['user']}" if token.get("user") else ""
        yield f"    {token['source']}{user}: {_until(token)}"
    if (server := mount.get("server")) and not server["answers"]:
        yield f"    the server {_server(server)}"
    counts = mount.get("compared") or {}
    if counts.get("received"):
        yield (
            f"    {size(counts['received'])} fetched: {size(counts['by_block'])} compared block"
            f" by block, {size(counts['as_files'])} as whole files"
        )
    reading = mount.get("reading") or {}
    if cache := reading.get("cache"):
        held, limit = size(cache["size_in_bytes"]), size(cache["limit_in_bytes"])
        yield f"    cache: {held} of at most {limit}, in {cache['directory']}"
    if near := reading.get("site_cache"):
        yield f"    site cache: {near['url']}: {_site_cache(near)}"
        for store in near["unknown_stores"]:
            yield f"        does not know the store {store}"
    if reading.get("bytes_per_s"):
        yield f"    fetching: {size(reading['bytes_per_s'])}/s"
    if mount.get("errors"):
        yield from _last_error(mount)


def _last_error(mount: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines on the last error of a mount."""
    errors = mount["errors"]
    last, number = errors[-1], counted(len(errors), "error")
    yield f"    {number}, the last {moment(last['last_at'])}: {last['reason']}"
    yield f"    dserverfs status {shlex.quote(mount['path'])} shows all"


def _site_cache(near: Mapping[str, Any]) -> str:
    """Return whether a site cache is of use."""
    if near["reason"] is not None:
        return f"passed over: {near['reason']}"
    if not near["requests"]:
        return "not asked yet"
    return f"had {near['hits']} of {near['requests']} answers"


def _staged(staged: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{staged['state']}: {staged['base_uri']} {staged['name']}:"
        f" {amount_of_staged(staged)}, in {os.path.join(staged['directory'], 'tree')}"
    )
    if progress := staged.get("progress"):
        yield f"    {_progress(progress)}"
    if staged["state"] == "open" and not staged["armed"]:
        yield "    waits for dserverfs freeze"
    problem = staged.get("not_counted")
    for why in (staged["reason"], staged["waits_for"], problem, *staged.get("notes", ())):
        if why:
            yield f"    {why}"
    if staged.get("excluded"):  # not of a mount of an earlier version
        yield f"    excluded: {staged['excluded']}"


def amount_of_staged(staged: Mapping[str, Any]) -> str:
    """Return how much there is in a staged dataset."""
    if staged["number_of_items"] is None:
        return "items that cannot be counted"
    return f"{counted(staged['number_of_items'], 'item')}, {size(staged['size_in_bytes'])}"


def _until(token: Mapping[str, Any]) -> str:
    if "reason" in token:
        return str(token["reason"])
    return f"expires {moment(token['expires_at'])}"
