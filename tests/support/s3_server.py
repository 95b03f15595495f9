"""A real S3 server in a process of its own, for tests of what lies in an object store."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

BUCKET = "studies"
SECONDS = 60.0  # until it must answer
# moto checks the condition of a write and then writes: of two threads both may win. S3 lets one win.
SERVER = """
import functools, threading
from moto import server
from moto.s3.responses import S3Response

put, one_at_a_time = S3Response.put_object, threading.Lock()


@functools.wraps(put)
def put_object(self):
    with one_at_a_time:
        return put(self)


S3Response.put_object = put_object
server.main()
"""
# A server that knows no conditions of writes, as those of some years ago, and one that only creates under one.
WITHOUT_CONDITIONS = """
from moto import server
from moto.s3.responses import S3Response

put = S3Response.put_object


def put_object(self):
    self.headers = {name: value for name, value in self.headers.items() if name.lower() not in SKIPPED}
    return put(self)


SKIPPED = ("if-match", "if-none-match")
S3Response.put_object = put_object
server.main()
"""
WITHOUT_IF_MATCH = WITHOUT_CONDITIONS.replace('("if-match", "if-none-match")', '("if-match",)')


@dataclass(frozen=True)
class S3:
    """A server that runs. environment: what a process must have in its own to reach it."""

    endpoint: str
    environment: dict[str, str]

    def uri(self, path: str = "") -> str:
        """An address in the server's bucket."""
        return f"s3://{BUCKET}/{path}".rstrip("/")


@contextmanager
def serving_s3(program: str = SERVER) -> Iterator[S3]:
    """An S3 server with one empty bucket, for as long as the context lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
    )
    try:
        _make_bucket(process, f"{endpoint}/{BUCKET}")
        yield S3(
            endpoint,
            {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "test",
                "AWS_SECRET_ACCESS_KEY": "test",
                "AWS_DEFAULT_REGION": "us-east-1",
                "AWS_REGION": "us-east-1",
                "AWS_EC2_METADATA_DISABLED": "true",
            },
        )
    finally:
        process.kill()
        process.wait(30)


def _make_bucket(process: "subprocess.Popen[bytes]", address: str) -> None:
    until = time.monotonic() + SECONDS
    while not _put(address):
        assert process.poll() is None, "the S3 server ended: is moto[server] installed?"
        assert time.monotonic() < until, "the S3 server does not answer"
        time.sleep(0.1)


def _put(address: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="PUT"), timeout=10):
            return True
    except OSError:
        return False
