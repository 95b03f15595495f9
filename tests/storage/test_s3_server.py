"""The tests' own S3 server keeps S3's promise that of conditional writes at once one wins."""

import http.client
import threading
from urllib.parse import urlsplit

from support.s3_server import BUCKET, SERVER, serving_s3

SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
# A write takes a while after its condition was checked, so that threads without a lock would all pass the check.
SLOW = """
import time
from moto.s3.models import S3Backend

write = S3Backend.put_object


def put_slowly(self, *arguments, **named):
    time.sleep(0.2)
    return write(self, *arguments, **named)


S3Backend.put_object = put_slowly
"""


def test_of_conditional_writes_at_once_one_wins() -> None:
    with serving_s3(SLOW + SERVER) as server:
        found: list[int] = []

        def create() -> None:
            connection = http.client.HTTPConnection(urlsplit(server.endpoint).netloc, timeout=60)
            # Without credentials, an object that exists is not the writer's: 403.
            headers = {"If-None-Match": "*", "Authorization": SIGNED}
            connection.request("PUT", f"/{BUCKET}/lock", b"mine", headers)
            found.append(connection.getresponse().status)
            connection.close()

        writers = [threading.Thread(target=create) for _ in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert sorted(found) == [200, 412, 412, 412]
