"""A real HTTP server with files and batches like OpenAI's, which misbehaves as told and counts what is paid."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import BodyPartReader, web

from support.api_server import Answer, completion, error, listening, respond

Hook = Callable[[str, int], Answer | None]  # the call's name, and how many of its kind came before


@dataclass(frozen=True)
class Ending:
    """How a batch ends. answered: the share of its requests that are answered, and paid for, until then."""

    status: str = "completed"
    answered: float = 1.0
    errors: tuple[dict[str, Any], ...] = ()


@dataclass
class BatchServer:
    """What batches give, and what was asked, answered and paid for."""

    answer: Callable[[str, dict[str, Any], int], Answer] = lambda *_: Answer(200, completion())
    """What a request gets: its custom id, its body and its batch's number, from 0."""
    ending: Callable[[int], Ending] = lambda _: Ending()
    """How a batch ends, by its number."""
    instead: Hook = lambda *_: None
    """What a call gets in place of being served, if anything."""
    after: Hook = lambda *_: None
    """What a call gets once it was served, if not its answer."""
    seconds: float = 0.0
    """From a batch's creation to its end."""
    shown: Callable[[dict[str, Any], int], dict[str, Any]] = lambda batch, _: batch
    """How a batch looks to who retrieves it, the so manieth time."""
    url: str = ""
    page: int = 100
    """Batches that are listed at once."""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: list[dict[str, Any]] = field(default_factory=list)
    lines: list[list[dict[str, Any]]] = field(default_factory=list)
    """What each batch asked."""
    born: list[float] = field(default_factory=list)
    paid: Counter[str] = field(default_factory=Counter)
    """How often each custom id was answered."""
    calls: Counter[str] = field(default_factory=Counter)
    keys: set[str] = field(default_factory=set)
    most_under_way: int = 0

    def asked(self) -> list[list[str]]:
        """The custom ids of each batch."""
        return [[line["custom_id"] for line in lines] for lines in self.lines]

    def usd(self, each: float) -> float:
        """What the bill says, at so much an answer."""
        return each * self.paid.total()

    def paid_once(self, count: int) -> bool:
        """Whether each of the first so many series was answered exactly once."""
        return self.paid == {str(one): 1 for one in range(count)}

    def routes(self) -> list[web.RouteDef]:
        """What the server serves."""
        return [
            web.post("/v1/files", self._handler("upload", self._upload)),
            web.get("/v1/files/{id}/content", self._handler("download", self._download)),
            web.get("/v1/files/{id}", self._handler("file", self._file)),
            web.delete("/v1/files/{id}", self._handler("delete", self._delete)),
            web.post("/v1/batches", self._handler("create", self._create)),
            web.get("/v1/batches", self._handler("list", self._list)),
            web.get("/v1/batches/{id}", self._handler("poll", self._poll)),
        ]

    def _handler(self, name: str, serve: Callable[[web.Request], Any]) -> Any:
        async def handle(request: web.Request) -> web.StreamResponse:
            number = self.calls[name]
            self.calls[name] += 1
            self.keys.add(request.headers["Authorization"])
            if (answer := self.instead(name, number)) is None:
                served = await serve(request)
                answer = self.after(name, number) or served
            return await respond(request, answer)

        return handle

    def _keep(self, content: bytes) -> str:
        name = f"file-{sum(self.calls.values())}-{len(self.files)}"
        self.files[name] = content
        return name

    async def _upload(self, request: web.Request) -> Answer:
        form = {}  # request.post() would leave a file open where an upload is cut short
        async for part in await request.multipart():
            assert isinstance(part, BodyPartReader)
            form[part.name] = bytes(await part.read())
        assert form["purpose"] == b"batch"
        content = form["file"]
        name = self._keep(content)
        return Answer(200, {"id": name, "object": "file", "bytes": len(content), "purpose": "batch"})

    async def _file(self, request: web.Request) -> Answer:
        name = request.match_info["id"]
        return Answer(200, {"id": name, "object": "file"}) if name in self.files else error(404, "No such File")

    async def _download(self, request: web.Request) -> Answer:
        content = self.files.get(request.match_info["id"])
        return error(404, "No such File object") if content is None else Answer(200, content)

    async def _delete(self, request: web.Request) -> Answer:
        known = self.files.pop(request.match_info["id"], None) is not None
        return (
            Answer(200, {"id": request.match_info["id"], "deleted": True}) if known else error(404, "No such File")
        )

    async def _create(self, request: web.Request) -> Answer:
        body = await request.json()
        if "input_file_id" not in body:
            return error(400, "Missing required parameter: 'input_file_id'.")
        if body["input_file_id"] not in self.files:
            return error(400, f"No such File object: {body['input_file_id']}")
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        lines = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert len({line["custom_id"] for line in lines}) == len(lines)
        batch = {
            "id": f"batch_{len(self.batches)}",
            "object": "batch",
            "endpoint": body["endpoint"],
            "completion_window": "24h",
            "created_at": int(time.time()),
            "input_file_id": body["input_file_id"],
            "metadata": body.get("metadata"),
            "status": "validating",
            "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
        }
        self.batches.append(batch)
        self.lines.append(lines)
        self.born.append(time.monotonic())
        under_way = sum(one["status"] in ("validating", "in_progress") for one in self.batches)
        self.most_under_way = max(self.most_under_way, under_way)
        return Answer(200, batch)

    async def _poll(self, request: web.Request) -> Answer:
        for number, batch in enumerate(self.batches):
            if batch["id"] == request.match_info["id"]:
                self._go_on(number)
                return Answer(200, self.shown(batch, self.calls["poll"] - 1))
        return error(404, "No batch found")

    async def _list(self, request: web.Request) -> Answer:
        newest = self.batches[::-1]
        first = next((i + 1 for i, one in enumerate(newest) if one["id"] == request.query.get("after")), 0)
        page = newest[first : first + self.page]
        more = first + self.page < len(newest)
        return Answer(200, {"object": "list", "data": page, "has_more": more, "last_id": page and page[-1]["id"]})

    def _go_on(self, number: int) -> None:
        batch, lines = self.batches[number], self.lines[number]
        if batch["status"] not in ("validating", "in_progress"):
            return
        share = (time.monotonic() - self.born[number]) / self.seconds if self.seconds else 1.0
        if share < 1:
            batch["status"] = "in_progress"
            batch["request_counts"]["completed"] = int(share * len(lines))
            return
        ending = self.ending(number)
        batch["status"] = ending.status
        if ending.status == "failed":
            batch["errors"] = {"object": "list", "data": list(ending.errors)}
            return
        mixed = random.Random(lines[0]["custom_id"]).sample(lines, len(lines))
        answered = mixed[: int(ending.answered * len(lines))]
        good, bad = [], []
        for line in answered:
            given = self.answer(line["custom_id"], line["body"], number)
            response = {"status_code": given.status, "request_id": "r", "body": given.body}
            row = {"id": "x", "custom_id": line["custom_id"], "response": response, "error": None}
            (good if given.status == 200 else bad).append(row)
            self.paid[line["custom_id"]] += given.status == 200
        late = {"code": "batch_expired", "message": "This request could not be executed in time."}
        for line in mixed[len(answered) :]:
            bad.append({"id": "x", "custom_id": line["custom_id"], "response": None, "error": late})
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[name] = self._keep(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}


@contextmanager
def serving_batches() -> Iterator[BatchServer]:
    """A server on a free port, for as long as the context lasts."""
    state = BatchServer()
    with listening(state.routes()) as state.url:
        yield state
