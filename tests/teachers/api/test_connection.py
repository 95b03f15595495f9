"""Who is asked, and by which key: failed connections, addresses, and the model that answers."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import Answer, Server, completion
from support.asked import KEY, Asked, api

from tsd.errors import InputError, RecipeError
from tsd.recipe import load
from tsd.teachers.api.connection import require_key
from tsd.teachers.api.messages import MODEL, UNCONFIRMED

pytestmark = pytest.mark.usefixtures("quick")


@contextmanager
def speaking_no_tls() -> Iterator[int]:
    """A port on which something answers that is not TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=work, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("url", "cause"),
    [("http://127.0.0.1:9/v1", "connection refused"), ("http://no-such-host.invalid/v1", "unknown host"),
     ("https://127.0.0.1:{port}/v1", "TLS")],
)  # fmt: skip
def test_the_innermost_cause_of_a_failed_connection_is_said_soon(
    series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, cause: str
) -> None:
    monkeypatch.setenv(KEY, "k")
    monkeypatch.setattr("tsd.teachers.api.limits.UNREACHED_SECONDS", 1.0)
    with speaking_no_tls() as port:
        started = time.monotonic()
        asked = Asked(api(url.format(port=port), idle_timeout=60), series.slice(0, 5), tmp_path)
    assert cause in asked.stopped
    assert "cannot be reached" in asked.stopped
    assert time.monotonic() - started < 20
    assert asked.counts[UNCONFIRMED] == 0


def test_a_certificate_that_nobody_signed_is_named() -> None:
    from tsd.teachers.api.connection import cause_of, never_sent

    inner = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    inner.verify_message = "self-signed certificate"
    outer = OSError("cannot connect")
    outer.__cause__ = inner
    assert cause_of(outer) == "TLS: self-signed certificate"
    assert never_sent(outer)


def test_the_model_that_answers_and_its_fingerprint_are_kept(server: Server, ask: Any, series: pa.Table) -> None:
    def answer(n: int, _: Any) -> Answer:
        version = "seer-2025" if n < 3 else "seer-2026"
        return Answer(200, {**completion(), "model": version, "system_fingerprint": "fp_1"})

    server.answer = answer
    asked = ask(series.slice(0, 6), in_flight=1)
    assert asked.table["model"].to_pylist() == ["seer-2025"] * 3 + ["seer-2026"] * 3
    assert set(asked.table["fingerprint"].to_pylist()) == {"fp_1"}
    assert asked.counts[f"{MODEL}seer-2025 (fp_1)"] == 3


def test_another_address_does_not_ask_again(server: Server, ask: Any, series: pa.Table, tmp_path: Path) -> None:
    ask(series.slice(0, 10), tmp_path / "one")
    again = ask(series.slice(0, 10), tmp_path / "one", base_url=server.url.replace("127.0.0.1", "localhost"))
    assert len(again.table) == 10
    assert server.asked == 10


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" https://api.example.com/v1 ", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        (
            "https://x.openai.azure.com/openai/v1?api-version=preview",
            "https://x.openai.azure.com/openai/v1?api-version=preview",
        ),
    ],
)
def test_an_address_loses_what_was_copied_with_it(given: str, wanted: str) -> None:
    assert api(given).base_url == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com:99999/v1", "port"),
        ("https://api.example.com/v1?key=abc", "teacher.key_env"),
        ("ftp://api.example.com/v1", "https://host/v1"),
        ("https:///v1", "https://host/v1"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_in_one_line(given: str, words: str) -> None:
    with pytest.raises(RecipeError, match="base_url") as caught:
        load("laptop", ["teacher={kind: openai, model: seer}", f"teacher.base_url={json.dumps(given)}"])
    assert words in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [("sk-1\n", "line break"), ("sk-1\r\n", "line break"), ("\u201csk-1\u201d", "curly quote"), ("sk 1", "space"),
     ("sk-\u00e9", "U+00E9"), ("   ", "holds no key"), ("\ufeffsk-1", "byte order mark")],
)  # fmt: skip
def test_a_key_that_can_be_none_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str, words: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(InputError, match=KEY) as caught:
        require_key(api("http://127.0.0.1:9/v1"))
    assert words in str(caught.value)
    assert "sk" not in str(caught.value)
