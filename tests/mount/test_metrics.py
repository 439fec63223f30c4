"""The figures of a mount, as Prometheus reads them."""

from __future__ import annotations

import math
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from dserverfs.base.mountinfo import find_mounted
from dserverfs.mount import metrics_page
from dserverfs.mount.metrics import Family, _durations, _lines
from dserverfs.mount.request_counts import BOUNDS_S, RequestCounts
from tests.support.accounts import Account
from tests.support.mount_daemons import wait_for
from tests.support.mounts import mounted
from tests.support.servers import ServerHandle, upload
from tests.support.staged_datasets import freeze

SIZE = 3 * 1024**2 + 5
Figures = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Figures:
    """Return the value of each sample, by its name and labels."""
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    found = {(each.name, frozenset(each.labels.items())): each.value for each in samples}
    assert len(found) == len(samples)
    return found


def value(figures: Figures, name: str, **labels: str) -> float:
    return figures.get((f"dserverfs_{name}", frozenset(labels.items())), 0.0)


@pytest.fixture(scope="module")
def uri(server: ServerHandle) -> str:
    contents = {"large.bin": bytes(range(251)) * (SIZE // 251 + 1)}
    contents["large.bin"] = contents["large.bin"][:SIZE]
    return upload(server, contents, name="counted-dataset")


@pytest.fixture(scope="module")
def top(
    fuse: None, current_user: Account, server: ServerHandle, token: str, uri: str
) -> Iterator[Path]:
    options = ("--metrics", "0", "--freeze-delay", "manual", "--cache-dir")
    cache = str(cache_of(current_user))
    with mounted(current_user, server.base_uri, token, *options, cache) as path:
        yield path


def cache_of(account: Account) -> Path:
    return account.home / "counted-cache"


@pytest.fixture(scope="module")
def address(top: Path, current_user: Account) -> str:
    log = current_user.home / ".local/state/dserverfs" / f"mount{str(top).replace('/', '-')}.log"
    found = re.findall(r"figures are at (http://127\.0\.0\.1:\d+/metrics)", log.read_text())
    return str(found[-1])


def stats(top: Path) -> Figures:
    return parsed((top / ".dserverfs" / "stats").read_text())


def test_reads_are_counted_with_where_they_came_from(top: Path, address: str) -> None:
    before = parsed(requests.get(address, timeout=30).text)
    path = top / "counted-dataset" / "data" / "large.bin"

    with open(path, "rb", buffering=0) as file:
        content = file.read(SIZE + 1)
        assert len(content) == SIZE
    after = parsed(requests.get(address, timeout=30).text)

    def more(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert more("read_bytes_total") == SIZE
    assert more("fetched_bytes_total", source="store") == SIZE
    assert (
        more("verified_bytes_total", by="item") + more("verified_bytes_total", by="block") == SIZE
    )
    reads = more("request_duration_seconds_count", request="read")
    items = more("item_reads_total", found="memory") + more("item_reads_total", found="elsewhere")
    assert items == reads > 0
    assert more("request_duration_seconds_bucket", request="read", le="+Inf") == reads
    assert more("request_duration_seconds_sum", request="read") > 0
    assert value(after, "cache_bytes") <= value(after, "cache_limit_bytes")


def test_what_is_staged_and_uploaded_and_errors_are_counted(
    top: Path, current_user: Account
) -> None:
    before = stats(top)
    dataset = top / "counted-while-staged"
    dataset.mkdir()
    (dataset / "a").write_bytes(b"x" * 1000)
    with pytest.raises(FileNotFoundError):
        (top / "missing").stat()
    # It is looked for a twentieth of the time.
    wait_for(lambda: value(stats(top), "staged_bytes") > value(before, "staged_bytes"), "its bytes")
    staged = stats(top)
    freeze(current_user, dataset)
    after = stats(top)

    assert value(staged, "staged_bytes") == value(before, "staged_bytes") + 1000
    assert value(staged, "written_bytes_total") == value(before, "written_bytes_total") + 1000
    errors = [
        value(each, "request_errors_total", request="lookup", errno="ENOENT")
        for each in (before, after)
    ]
    assert errors[1] > errors[0]
    assert value(after, "uploaded_bytes_total") >= value(before, "uploaded_bytes_total") + 1000
    assert value(after, "unsent_edits") == 0


def test_figures_can_be_asked_for_while_programs_read_and_write(top: Path, address: str) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            (top / "counted-dataset" / "README.yml").read_bytes()
            list(top.iterdir())

    worker = threading.Thread(target=work)
    worker.start()
    try:
        last = 0.0
        for _ in range(20):
            answer = requests.get(address, timeout=30)
            count = value(parsed(answer.text), "request_duration_seconds_count", request="lookup")
            assert count >= last
            last = count
    finally:
        stop.set()
        worker.join()

    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert requests.get(address.removesuffix("/metrics") + "/x", timeout=30).status_code == 404


def test_file_of_figures_is_found_by_its_name_alone_and_cannot_be_changed(top: Path) -> None:
    own = top / ".dserverfs"

    assert ".dserverfs" not in [entry.name for entry in top.iterdir()]
    assert [entry.name for entry in own.iterdir()] == ["stats"]
    assert own.is_dir()
    assert (own / "stats").is_file()
    for change in (
        lambda: (own / "stats").write_text("x"),
        lambda: (own / "stats").unlink(),
        lambda: (own / "other").touch(),
        lambda: (own / "other").mkdir(),
        lambda: own.rmdir(),
        lambda: own.rename(top / "other"),
        lambda: (own / "stats").chmod(0o600),
    ):
        with pytest.raises(OSError, match=r"Read-only file system|cross-device"):
            change()
    with pytest.raises(FileNotFoundError):
        (own / "other").stat()
    assert stats(top)


def test_mount_of_one_dataset_has_the_file_too_and_counts_what_the_cache_has(
    top: Path, current_user: Account, server: ServerHandle, token: str, uri: str
) -> None:
    dataset = f"{server.base_uri}/{uri.rpartition('/')[2]}"
    content = (top / "counted-dataset" / "data" / "large.bin").read_bytes()
    wait_for(lambda: value(stats(top), "cache_bytes") > SIZE, "its blocks in the cache")

    with mounted(current_user, dataset, token, "--cache-dir", str(cache_of(current_user))) as path:
        assert (path / "data" / "large.bin").read_bytes() == content
        figures = stats(path)

    assert value(figures, "fetched_bytes_total", source="cache") == SIZE
    assert value(figures, "fetched_bytes_total", source="store") == 0
    assert value(figures, "verified_bytes_total", by="item") == 0


def test_address_that_is_taken_is_one_line_and_no_mount(
    fuse: None, current_user: Account, server: ServerHandle, token: str
) -> None:
    path = current_user.home / "not-mounted"
    path.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        done = current_user.dserverfs(
            *("mount", server.base_uri, path, "--metrics", address), env={"DSERVER_TOKEN": token}
        )

    assert done.returncode == 1
    assert done.stderr == (
        f"dserverfs: --metrics {address}: Address already in use; give another address\n"
    )
    assert find_mounted(path) is None


def test_slow_client_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_page._Handler, "timeout", 0.05)
    with metrics_page.serving("127.0.0.1", 0, lambda: "text") as address:
        with socket.create_connection(address) as slow:
            slow.sendall(b"GET /met")
            assert slow.recv(100) == b""
        assert requests.get(f"http://127.0.0.1:{address[1]}/metrics", timeout=30).text == "text"


SECONDS = st.floats(0, 1000) | st.sampled_from(BOUNDS_S)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["read", "lookup", "open"]), SECONDS)))
def test_durations_are_in_the_bucket_of_their_bound(requests: list[tuple[str, float]]) -> None:
    counts = RequestCounts()
    for request, duration_s in requests:
        counts.done(request, duration_s)

    family = Family("dserverfs_x", "histogram", "X.", list(_durations(counts)))
    found = parsed("".join(_lines(iter([family]))))

    for request in ("read", "lookup", "open"):
        durations = [duration_s for each, duration_s in requests if each == request]
        assert value(found, "x_count", request=request) == len(durations)
        assert math.isclose(value(found, "x_sum", request=request), sum(durations), rel_tol=1e-9)
        for bound_s in (*BOUNDS_S, math.inf):
            le = "+Inf" if bound_s == math.inf else str(bound_s)
            within = sum(duration_s <= bound_s for duration_s in durations)
            assert value(found, "x_bucket", request=request, le=le) == within


def test_figures_keep_to_the_names_that_prometheus_wants(top: Path) -> None:
    text = (top / ".dserverfs" / "stats").read_text()
    families = list(text_string_to_metric_families(text))

    assert len(families) > 10
    for family in families:
        assert family.documentation.endswith("."), family.name
        assert (family.type == "counter") == (f"# TYPE {family.name}_total counter" in text)
        assert re.fullmatch(r"dserverfs_[a-z]+(_[a-z]+)*", family.name)
