"""A store that judges signatures as AWS S3 does, by botocore, with the bucket in the Host."""

from __future__ import annotations

import contextlib
import datetime
import hmac
import re
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import boto3
from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials

from tests.support.local_web import Certificates, serving

KEYS = ("AKIDEXAMPLE", "secret")
REGION = "eu-central-1"


class AwsStore:
    """Objects by Host and path, and which hosts were asked for how many bytes."""

    def __init__(self) -> None:
        self.url = ""  # of the endpoint, without a bucket
        self.objects: dict[tuple[str, str], bytes] = {}
        self.sent: list[tuple[str, int]] = []

    def signed(self, bucket: str, key: str, **parameters: str) -> str:
        """Return a URL that boto3 has signed, with the bucket in the host's name."""
        config = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})
        session = boto3.session.Session(*KEYS, region_name=REGION)
        client = session.client("s3", endpoint_url=self.url, config=config)
        with contextlib.closing(client):
            wanted = {"Bucket": bucket, "Key": key, **parameters}
            url: str = client.generate_presigned_url("get_object", wanted, ExpiresIn=60)
        return url

    def put(self, bucket: str, key: str, content: bytes) -> None:
        host = self.url.partition("://")[2]
        self.objects[f"{bucket}.{host}", f"/{key}"] = content


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: AwsStore

    def do_GET(self) -> None:
        host, path = self.headers["Host"], self.path.partition("?")[0]
        content = self.store.objects.get((host, path))
        if not self._is_signed(host):
            self._answer(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        elif content is None:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = int(match[1]), min(int(match[2]), len(content) - 1)
            where = f"bytes {first}-{last}/{len(content)}"
            self._answer(206, content[first : last + 1], where)
        else:
            self._answer(200, content)

    def _is_signed(self, host: str) -> bool:
        """Sign again what has come, with the Host that has come, and compare."""
        path, _, query = self.path.partition("?")
        values = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        signature, date = values.pop("X-Amz-Signature", ""), values.get("X-Amz-Date", "")
        try:
            begin = datetime.datetime.strptime(date, "%Y%m%dT%H%M%SZ")
            age = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) - begin
            is_over = age.total_seconds() > int(values["X-Amz-Expires"])
        except (ValueError, KeyError):
            return False
        rest = "&".join(part for part in query.split("&") if not part.startswith("X-Amz-Signature"))
        request = AWSRequest("GET", url=f"https://{host}{path}?{rest}")
        for name in values.get("X-Amz-SignedHeaders", "").split(";"):
            if name != "host":
                request.headers[name] = self.headers.get(name, "")
        request.context["timestamp"] = date
        signer = S3SigV4QueryAuth(Credentials(*KEYS), "s3", REGION)
        to_sign = signer.string_to_sign(request, signer.canonical_request(request))
        return not is_over and hmac.compare_digest(signer.signature(to_sign, request), signature)

    def _answer(self, status: int, body: bytes, where: str = "") -> None:
        self.store.sent.append((self.headers["Host"], len(body)))
        self.send_response(status)
        self.send_header("ETag", '"0123456789abcdef-2"')
        self.send_header("Content-Length", str(len(body)))
        if where:
            self.send_header("Content-Range", where)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def aws_store(certificates: Certificates) -> Iterator[AwsStore]:
    """Run one on a free port of this machine, as localhost."""
    store = AwsStore()
    with serving(_Handler, certificates, store=store) as url:
        store.url = url.replace("127.0.0.1", "localhost")
        yield store
