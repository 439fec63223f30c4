"""What a network, a proxy, a busy server or a store does wrong: the faults of a front."""

from __future__ import annotations

import json
import time
from email.utils import formatdate

from tests.support.front import Answer, Exchange, Fault

PAGE = b"<!DOCTYPE html><html><title>not now</title></html>"
XML = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ELSEWHERE = "http://elsewhere.invalid/login?next=secret"


def says(status: int, body: bytes = PAGE, **headers: str) -> Fault:
    """Answer that without asking the server behind; a page unless it is something else."""

    def fault(exchange: Exchange) -> None:
        exchange.content  # noqa: B018 - it is read first
        named = {"Content-Type": "text/html"}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        exchange.answer(Answer(status, list(named.items()), body))

    return fault


def refuses(status: int, code: str, message: str = "", **headers: str) -> Fault:
    """Answer as a store does."""
    body = XML.format(code, message).encode()
    return says(status, body, Content_Type="application/xml", **headers)


def refuses_unread(status: int, code: str) -> Fault:
    """Answer as a store does before the body has come, and hang up."""

    def fault(exchange: Exchange) -> None:
        answer = Answer(status, [("Connection", "close")], XML.format(code, "").encode())
        exchange.answer(answer)
        exchange.close_connection = True

    return fault


def errs(status: int, /, **said: object) -> Fault:
    """Answer with JSON, as a dserver does."""
    body = json.dumps(said or {"code": status, "status": "Said"}).encode()
    return says(status, body, Content_Type="application/json")


def in_an_hour(status: int) -> Fault:
    """Answer that it is busy until a date."""
    return lambda exchange: says(status, Retry_After=formatdate(4e9, usegmt=True))(exchange)


def stall(exchange: Exchange) -> None:
    """Answer nothing."""
    exchange.hold()


def stall_in_body(exchange: Exchange) -> None:
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body) + 1))
    exchange.say(exchange.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    exchange.hold()


def reset(exchange: Exchange) -> None:
    """Reset the connection in place of an answer."""
    exchange.reset()


def reset_after(count: int) -> Fault:
    """Reset the connection after so much of the request's body."""

    def fault(exchange: Exchange) -> None:
        exchange.rfile.read(count)
        exchange.reset()

    return fault


def lose_answer(exchange: Exchange) -> None:
    """Have it done, and reset the connection."""
    exchange.ask()
    exchange.reset()


def cut(exchange: Exchange) -> None:
    """Send half of the body."""
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body) + 1))
    exchange.say(exchange.head(answer, length) + b"\r\n", answer.body[: len(answer.body) // 2])
    exchange.close_connection = True


def too_short(exchange: Exchange) -> None:
    """Send a Content-Length, and a body, that lack the last byte: of JSON more than a newline."""
    answer = exchange.ask()
    exchange.answer(answer._replace(body=answer.body.rstrip(b"\n")[:-1]))
    exchange.close_connection = True


def too_long(exchange: Exchange) -> None:
    """Send more bytes than the Content-Length says: another answer, on a kept connection."""
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body)))
    foreign = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nforeign"
    exchange.say(exchange.head(answer, length) + b"\r\n" + answer.body + foreign)


def says_more(exchange: Exchange) -> None:
    """Send a Content-Length, and a body, that have a byte too many."""
    answer = exchange.ask()
    exchange.answer(answer._replace(body=answer.body + b"x"))


def trickled_head(exchange: Exchange) -> None:
    """Send one header that does not end."""
    exchange.drip(b"HTTP/1.1 200 OK\r\nX: " if not count else b"1" for count in range(10**6))


def trickled_body(exchange: Exchange) -> None:
    answer = exchange.ask()
    length = ("Content-Length", str(len(answer.body) + 10**6))
    exchange.say(exchange.head(answer, length) + b"\r\n")
    exchange.drip(b" " for _ in range(10**6))


def endless_continue(exchange: Exchange) -> None:
    exchange.drip(b"HTTP/1.1 100 Continue\r\n\r\n" for _ in range(10**6))


def trickled_trailers(exchange: Exchange) -> None:
    answer = exchange.ask()
    chunk = b"%x\r\n%s\r\n0\r\n" % (len(answer.body), answer.body)
    exchange.say(exchange.head(answer, ("Transfer-Encoding", "chunked")) + b"\r\n", chunk)
    exchange.drip(b"X-%d: 1\r\n" % count for count in range(10**6))


def says_encoded(exchange: Exchange) -> None:
    """Answer rightly but for a Content-Encoding that it does not have."""
    exchange.answer(exchange.ask(), ("Content-Encoding", "gzip"))


def ignore_range(exchange: Exchange) -> None:
    """Answer 200 with everything."""
    exchange.answer(exchange.ask(Range=None))


def other_bytes(exchange: Exchange) -> None:
    """Change the first byte of the body, and so the whole of what is put and its answer."""
    if exchange.command == "PUT":
        exchange.answer(exchange.ask(_flipped(exchange.content)))
    else:
        answer = exchange.ask()
        exchange.answer(answer._replace(body=_flipped(answer.body)))


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:] if content else content


def another_date(seconds: float) -> Fault:
    """Answer rightly with a clock that is wrong by so much."""

    def fault(exchange: Exchange) -> None:
        answer = exchange.ask()
        exchange.answer(answer, ("Date", formatdate(time.time() + seconds, usegmt=True)))

    return fault
