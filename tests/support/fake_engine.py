"""A program that stands where an engine's Python would: a small server of OpenAI's API, with a process below it.

Run as `fake_engine.py -m … --port=N --served-model-name=NAME`. The environment variable FAKE_ENGINE holds what
it does, as JSON. It keeps one line for each request that it begins and that it answers in `FOLDER/PID.jsonl`.
"""

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import psutil

SETTINGS = "FAKE_ENGINE"
# Like vLLM's own child: it has the server's work, and does not end when it is asked to.
CORE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
ASKED, ANSWERED = "asked", "answered"


def settings(folder: Path, **more: Any) -> dict[str, str]:
    """Environment variables of an engine that keeps its lines in a folder.

    seconds: of an answer. fail: what it says before it ends at once. lives: seconds until it ends by itself.
    limit: characters of a request's messages, above which it is refused. deadly: requests that end it (`named`).
    loads: seconds until it listens. freezes, stalls: number of answers after which the first engine stands still,
    and after which it answers nothing but the list of models. forks: its core shares its socket, as vLLM's does.
    """
    from support.api_server import SOUND

    return {SETTINGS: json.dumps({"folder": str(folder), "reply": SOUND, **more})}


def program(folder: Path) -> Path:
    """An executable file that is this program, to be named as `teacher.engine_python`."""
    path = folder / "engine-python"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" "$@"\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def named(messages: list[dict[str, Any]]) -> str:
    """The name of a request in an engine's lines."""
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


def lines(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The lines of each engine that was started, by its process id."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(folder.glob("*.jsonl"))
    }


def counted(folder: Path, word: str) -> Counter[str]:
    """How often each request was asked or answered, over all engines."""
    return Counter(line["request"] for each in lines(folder).values() for line in each if line["word"] == word)


def alive(processes: Iterable[psutil.Process], seconds: float = 0.0) -> list[psutil.Process]:
    """Those that still run after at most so many seconds. One that has ended and waits for its parent does not."""
    end = time.monotonic() + seconds
    while left := [process for process in processes if _runs(process)]:
        if time.monotonic() > end:
            return left
        time.sleep(0.05)
    return []


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Engine(ThreadingHTTPServer):
    """The server, and what it was told."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, model: str, told: dict[str, Any]) -> None:
        self.model, self.told, self.token = model, told, os.environ["VLLM_API_KEY"]
        self.log = Path(told["folder"], f"{os.getpid()}.jsonl")
        self.first, self.answered = not lines(self.log.parent), 0
        self.log.touch()
        self.writing = Lock()
        super().__init__(("127.0.0.1", port), Handler)

    def note(self, word: str, request: str) -> None:
        """Keep a line."""
        with self.writing, self.log.open("a") as log:
            log.write(json.dumps({"word": word, "request": request}) + "\n")


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    protocol_version = "HTTP/1.1"
    server: Engine

    def do_GET(self) -> None:
        """The list of models."""
        if self.may():
            self.send({"object": "list", "data": [{"id": self.server.model, "object": "model"}]})

    def do_POST(self) -> None:
        """A chat completion."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.may():
            return
        if body["model"] != self.server.model or "json_schema" not in body["response_format"]:
            self.send({"error": {"message": f"no model {body['model']}, or no schema"}}, 404)
            return
        request, told = named(body["messages"]), self.server.told
        if len(json.dumps(body["messages"])) > told.get("limit", 1e9):
            self.send({"error": {"message": "This model's maximum context length is less", "code": 400}}, 400)
            return
        row = isinstance(body["messages"][0]["content"], list)  # else a test request of the client
        if row:
            self.server.note(ASKED, request)
        if request in told.get("deadly", ()):
            os._exit(9)
        if self.server.answered >= told.get("freezes", 1e9) and self.server.first:
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.server.answered >= told.get("stalls", 1e9) and self.server.first:
            time.sleep(600)
        time.sleep(told.get("seconds", 0.0))
        message = {"role": "assistant", "content": told["reply"]}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        self.server.answered += 1
        if row:
            self.server.note(ANSWERED, request)
        self.send({"object": "chat.completion", "model": body["model"], "choices": choices, "usage": usage})

    def may(self) -> bool:
        """Whether the request has the token; if not, it is refused."""
        known = self.headers["Authorization"] == f"Bearer {self.server.token}"
        if not known:
            self.send({"error": "Unauthorized"}, 401)
        return known

    def send(self, answer: dict[str, Any], status: int = 200) -> None:
        """Send an answer."""
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing: requests are kept elsewhere."""


def main() -> None:
    """Do what the environment says."""
    told = json.loads(os.environ[SETTINGS])
    flags = dict(word.partition("=")[::2] for word in sys.argv if word.startswith("--"))
    print("(APIServer pid=1) INFO 11-29 21:45:42 [entry.py:99] arguments", *sys.argv[1:], flush=True)
    port, name = int(flags["--port"]), flags["--served-model-name"]
    shared = Engine(port, name, told) if "forks" in told else None
    subprocess.Popen([sys.executable, "-c", CORE, "engine-core"], pass_fds=[shared.fileno()] if shared else [])
    if "fail" in told:
        print(told["fail"], file=sys.stderr, flush=True)
        raise SystemExit(1)
    time.sleep(told.get("loads", 0.0))
    engine = shared or Engine(port, name, told)
    if "lives" in told:
        Thread(target=lambda: (time.sleep(told["lives"]), os._exit(3)), daemon=True).start()
    engine.serve_forever()


if __name__ == "__main__":
    main()
