"""The site cache that the command prints: real nginx before the real store, and attacks on it."""

from __future__ import annotations

import random
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dserverfs.cli.main import main
from tests.support.aws_store import aws_store
from tests.support.front import Exchange, once, pass_on
from tests.support.local_web import Certificates
from tests.support.nginx import SiteCache, site_cache
from tests.support.servers import ServerHandle
from tests.support.signed_store import SignedStore, ask, signed_store
from tests.support.web_front import make_certificates

SLICE = 4 * 1024**2
CONTENT = random.Random("site cache").randbytes(2 * SLICE + 777)


@pytest.fixture(scope="module")
def store(server: ServerHandle) -> Iterator[SignedStore]:
    with signed_store(server) as running:
        yield running


@pytest.fixture(scope="module")
def cache(store: SignedStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SiteCache]:
    with site_cache(tmp_path_factory.mktemp("cache"), [store.storage.endpoint]) as running:
        yield running


@pytest.fixture(scope="module")
def kept(store: SignedStore, cache: SiteCache) -> str:
    """The key of an object that the cache has, all of it."""
    key = store.new_object(CONTENT)
    assert ask(cache.port, store.url(key)).body == CONTENT
    return key


@pytest.fixture(autouse=True)
def _nothing_asked(store: SignedStore) -> None:
    store.take_asked()


def judged(store: SignedStore) -> list[tuple[str, int, int]]:
    return [asked[1:] for asked in store.take_asked()]


# What it keeps


@pytest.mark.parametrize(
    ("first", "last"),
    [(0, 0), (0, SLICE - 1), (SLICE - 1, SLICE), (5, 2 * SLICE + 5), (SLICE, len(CONTENT) - 1)],
)
def test_ranges_are_right_and_cost_the_store_one_byte_each(
    store: SignedStore, cache: SiteCache, kept: str, first: int, last: int
) -> None:
    url = store.url(kept, age_s=first % 50 + 1)  # another user's, of another second

    reply = ask(cache.port, url, Range=f"bytes={first}-{last}")

    assert (reply.status, reply.said) == (206, "HIT")
    assert reply.body == CONTENT[first : last + 1]
    assert reply.headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"
    assert judged(store) == [("bytes=0-0", 206, 1)]


def test_connections_to_the_store_are_kept(store: SignedStore, cache: SiteCache, kept: str) -> None:
    ask(cache.port, store.url(kept))
    before = store.front.connections

    for _ in range(20):
        assert ask(cache.port, store.url(kept), Range="bytes=0-9").said == "HIT"

    assert store.front.connections - before <= 2


def test_headers_are_of_the_object_alone(store: SignedStore, cache: SiteCache, kept: str) -> None:
    first, again = (ask(cache.port, store.url(kept)).headers for _ in range(2))

    assert first["Etag"] == again["Etag"]
    assert len(first["Etag"]) == 34
    assert not {"set-cookie", "x-amz-request-id"} & {name.lower() for name in again}


def test_object_that_was_overwritten_is_another(store: SignedStore, cache: SiteCache) -> None:
    key = store.new_object(b"one")
    before = [ask(cache.port, store.url(key)) for _ in range(2)]
    store.put(key, b"two")
    after = ask(cache.port, store.url(key))

    assert [(each.said, each.body) for each in before] == [("MISS", b"one"), ("HIT", b"one")]
    assert (after.said, after.body) == ("MISS", b"two")


def test_object_overwritten_behind_the_judges_back_is_not_mixed_up(
    store: SignedStore, cache: SiteCache
) -> None:
    old, new = CONTENT, CONTENT[::-1]
    key = store.new_object(old)

    def overwrite(exchange: Exchange) -> None:
        answer = exchange.ask()
        store.put(key, new)
        exchange.answer(answer)

    with store.planned(once(overwrite), within=key):
        during = ask(cache.port, store.url(key))
    after = ask(cache.port, store.url(key))

    assert during.status == 412
    assert len(during.body) < 1000
    assert (after.status, after.body) == (200, new)


def test_empty_object_is_passed_on(store: SignedStore, cache: SiteCache) -> None:
    reply = ask(cache.port, store.url(store.new_object(b"")))

    assert (reply.status, reply.said, reply.body) == (200, "PASSED", b"")


def test_object_that_is_not_there_is_asked_for_again(store: SignedStore, cache: SiteCache) -> None:
    url = store.url("not-there-yet")
    before = ask(cache.port, url)
    store.put("not-there-yet", b"now")

    assert (before.status, before.said) == (404, "PASSED")
    assert b"<Code>NoSuchKey</Code>" in before.body
    assert ask(cache.port, url).body == b"now"


def busy(exchange: Exchange) -> None:
    body = b"<Error><Code>SlowDown</Code></Error>"
    answer = exchange.ask()._replace(status=503, headers=[("Retry-After", "7")], body=body)
    exchange.answer(answer)


def test_store_that_cannot_now_says_so_itself(store: SignedStore, cache: SiteCache) -> None:
    url = store.url(store.new_object(b"busy"))

    with store.planned([busy, busy]):
        reply = ask(cache.port, url)

    assert (reply.status, reply.said, reply.headers["Retry-After"]) == (503, "PASSED", "7")
    assert b"SlowDown" in reply.body
    assert ask(cache.port, url).body == b"busy"


def break_off(exchange: Exchange) -> None:
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body)))
    exchange.say(exchange.head(answer, length) + b"\r\n" + answer.body[: len(answer.body) // 2])
    exchange.reset()


def test_half_a_slice_is_not_kept(store: SignedStore, cache: SiteCache) -> None:
    url = store.url(store.new_object(CONTENT))

    with store.planned([pass_on, break_off]):
        broken = ask(cache.port, url)
    whole = ask(cache.port, url)

    assert broken.body == CONTENT[: len(broken.body)]
    assert len(broken.body) < len(CONTENT)
    assert (whole.said, whole.body) == ("MISS", CONTENT)


# Who may not have it


Spoil = Callable[[str], str]

FORGED: dict[str, Spoil] = {
    "another signature": lambda url: url[:-8] + "deadbeef",
    "no signature": lambda url: url.partition("&X-Amz-Signature")[0],
    "nothing": lambda url: url.partition("?")[0],
    "another path": lambda url: url.replace("/datasets/", "/datasets/x/"),
    "longer life": lambda url: url.replace("Expires=300", "Expires=900"),
}
SMUGGLED: dict[str, Spoil] = {
    "another name of the path": lambda url: _with_path(url, lambda path: path + "%3F"),
    "an encoded question mark": lambda url: url.replace("?", "%3F", 1),
    "encoded twice": lambda url: _with_path(url, lambda path: path.replace("-", "%252D")),
    "two question marks": lambda url: url.replace("?", "?x?", 1),
    "a semicolon": lambda url: url + ";response-content-type=text/html",
    "an encoded name": lambda url: url + "&response%2Dcontent%2Dtype=text/html",
    "a header to answer": lambda url: url + "&response-content-disposition=attachment",
    "a version": lambda url: url + "&versionId=null",
    "a part": lambda url: url + "&partNumber=1",
    "an ampersand": lambda url: url + "&",
    "a fragment": lambda url: url.replace("?", "#?", 1),
    "signed headers": lambda url: url.replace("=host&", "=host%3Brange&"),
    "a path above": lambda url: _with_path(url, lambda path: path.replace("/d", "/x/../d", 1)),
    "encoded dots": lambda url: _with_path(url, lambda path: path.replace("/d", "/x/%2e%2e/d", 1)),
    "an encoded path above": lambda url: _with_path(url, lambda path: "/o/..%2F..%2F" + path[1:]),
    "the judge": lambda url: _with_path(url, lambda path: "/.dserverfs-site-cache/judge"),
    "above all": lambda url: _with_path(url, lambda path: "/../../etc/passwd"),
}


def _with_path(url: str, change: Spoil) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{change(parts.path)}?{parts.query}"


@pytest.mark.parametrize("spoil", [*FORGED.values(), *SMUGGLED.values()], ids=[*FORGED, *SMUGGLED])
def test_who_has_no_right_gets_no_byte_of_what_is_kept(
    store: SignedStore, cache: SiteCache, kept: str, spoil: Spoil
) -> None:
    url = store.url(kept)
    reply = ask(cache.port, spoil(url))
    ranged = ask(cache.port, spoil(url), Range="bytes=0-99")

    for each in (reply, ranged):
        assert each.status in (400, 403, 404), each
        assert each.said not in ("HIT", "MISS")
        assert CONTENT[:16] not in each.body
    assert all(asked.length < 1000 for asked in store.take_asked())
    assert ask(cache.port, url).body == CONTENT


def test_expired_url_is_refused_in_the_stores_words(
    store: SignedStore, cache: SiteCache, kept: str
) -> None:
    reply = ask(cache.port, store.url(kept, age_s=400), Range="bytes=0-99")

    assert (reply.status, reply.said) == (403, "PASSED")
    assert b"<Code>AccessDenied</Code>" in reply.body


def test_url_of_another_bucket_does_not_open_this_one(
    store: SignedStore, cache: SiteCache, kept: str
) -> None:
    other = store.url(kept, bucket="another-bucket")
    stolen = other.replace("/another-bucket/", f"/{store.storage.bucket}/")

    assert ask(cache.port, other).status in (403, 404)
    assert ask(cache.port, stolen).status == 403


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "HEAD", "OPTIONS"])
def test_only_gets_are_answered(
    store: SignedStore, cache: SiteCache, kept: str, method: str
) -> None:
    reply = ask(cache.port, store.url(kept), method=method)

    assert (reply.status, reply.said) == (403, "DECLINED")
    assert CONTENT[:16] not in reply.body
    assert store.take_asked() == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:1", "localhost", "x.127.0.0.1", "a b"])
def test_no_host_is_asked_that_was_not_named(
    store: SignedStore, cache: SiteCache, kept: str, host: str
) -> None:
    reply = ask(cache.port, store.url(kept), host=host)

    assert reply.status in (400, 403)
    assert reply.said in ("UNKNOWN-STORE", None)
    assert store.take_asked() == []


def test_url_of_another_host_as_the_path_is_not_followed(
    store: SignedStore, cache: SiteCache, kept: str
) -> None:
    query = store.url(kept).partition("?")[2]

    for path in (f"http://127.0.0.1:{cache.port}/x?{query}", f"http://[::1]/x?{query}"):
        reply = ask(cache.port, f"http://{store.storage.endpoint[7:]}{path}")
        assert reply.status in (400, 403)
        assert CONTENT[:16] not in reply.body


def test_client_headers_do_not_reach_the_store(
    store: SignedStore, cache: SiteCache, kept: str
) -> None:
    with store.planned([pass_on] * 9, within=kept) as plan:
        forged = ask(cache.port, store.url(kept)[:-8] + "deadbeef", Authorization="AWS x:y")
        ask(cache.port, store.url(kept), Cookie="a=b", x_amz_checksum_mode="ENABLED")

    assert forged.status == 403
    sent = {name.lower() for request in plan.requests for name in request.headers}
    assert sent == {"host", "range"}


@pytest.mark.parametrize("range_", ["bytes=0-1,5-6", "bytes=-5", "lines=1-2", "bytes=0x1-5"])
def test_odd_ranges_are_left_to_the_store(
    store: SignedStore, cache: SiteCache, kept: str, range_: str
) -> None:
    reply = ask(cache.port, store.url(kept), Range=range_)

    assert (reply.status, reply.said) == (403, "DECLINED")


def test_log_has_no_signatures(store: SignedStore, cache: SiteCache, kept: str) -> None:
    ask(cache.port, store.url(kept))
    ask(cache.port, store.url(kept) + "&x=y")

    assert any(kept in line for line in cache.log())
    assert not any("X-Amz" in line for line in cache.log())


# A store like AWS's, by TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_buckets_in_the_hosts_name_are_signed_and_kept_apart(
    certificates: Certificates, tmp_path: Path
) -> None:
    options = ["--ca-file", str(certificates.authority)]
    with aws_store(certificates) as aws:
        named = [aws.url.replace("://", "://*.")]
        aws.put("alice", "item", b"of alice")
        aws.put("bob", "item", b"of bob")
        with site_cache(tmp_path / "cache", named, *options) as cache:
            alice, bob = aws.signed("alice", "item"), aws.signed("bob", "item")
            replies = [ask(cache.port, url) for url in (alice, bob, alice, bob)]
            bobs_host = urllib.parse.urlsplit(bob).netloc
            stolen = ask(cache.port, alice, host=bobs_host)
            disposed = ask(cache.port, aws.signed("bob", "item", ResponseContentType="text/html"))
            unnamed = ask(cache.port, alice, host=aws.url.partition("://")[2])

    assert [each.body for each in replies] == [b"of alice", b"of bob"] * 2
    assert [each.said for each in replies] == ["MISS", "MISS", "HIT", "HIT"]
    assert (stolen.status, stolen.said) == (403, "PASSED")
    assert (disposed.status, disposed.said) == (403, "DECLINED")
    assert (unnamed.status, unnamed.said) == (403, "UNKNOWN-STORE")
    assert sum(length for _, length in aws.sent) < 200 + len(b"of aliceof bob")


def test_store_whose_certificate_is_anothers_is_not_asked(
    certificates: Certificates, tmp_path: Path
) -> None:
    with aws_store(certificates) as aws:
        aws.put("alice", "item", b"of alice")
        # The machine's authorities have not signed for it.
        with site_cache(tmp_path / "cache", [aws.url.replace("://", "://*.")]) as cache:
            reply = ask(cache.port, aws.signed("alice", "item"))

    assert reply.status == 502
    assert aws.sent == []


# Its command


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--store", "store.example.org"],
        ["--store", "ftp://store.example.org"],
        ["--store", "https://store.example.org/path"],
        ["--store", "https://user@store.example.org"],
        ["--store", "https://store.example.org:99999"],
        ["--store", "https://10.0.0.1"],  # nginx compares certificates with names
        ["--store", "https://a;b"],
        ["--store", "https://a.b", "--directory", "relative"],
        ["--store", "https://a.b", "--directory", '/x"; evil'],
        ["--store", "https://a.b", "--listen", "80; evil"],
        ["--store", "https://a.b", "--listen", "0"],
        ["--store", "https://a.b", "--listen", "65535"],
        ["--store", "https://a.b", "--inner-port", "8470"],
        ["--store", "https://a.b", "--size", "much"],
    ],
)
def test_what_cannot_be_configured_is_refused_in_one_line(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["site-cache", *options])
    except SystemExit as ended:
        status = ended.code  # type: ignore[assignment]

    said = capsys.readouterr()
    assert status not in (0, None)
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
