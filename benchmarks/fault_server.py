"""A server, in a process of its own, that bills and misbehaves: every kind under an address of its own.

    http://127.0.0.1:PORT/k/KIND/v1          chat completions, models, files and batches
    http://127.0.0.1:PORT/k/KIND/ledger      what was asked, billed and delivered, as JSON
    http://127.0.0.1:PORT/k/KIND/heal        from now on it behaves
    http://127.0.0.1:PORT/k/KIND/abort       from now on it refuses the key, which ends any stage

An answer is billed when the model has worked for it, whether it arrives or not. It counts as delivered when all of
it was written to a connection that was still open. Prints its address once it listens.

    python benchmarks/fault_server.py
"""

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import replace
from typing import Any

from aiohttp import web
from fault_answers import MODEL, Answer, row_of
from fault_batches import Call, Ending
from fault_books import BOOKS, KINDS, NO_KEY, Book, book_of

PIECES = 24  # that a dripping body comes in
PAGE = 20  # batches that are listed at once


# ---- Live


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer one chat request."""
    book = book_of(request)
    content = await request.read()
    book.longest_request = max(book.longest_request, len(content))
    body = json.loads(content)
    answer, row = book.ask(body), row_of(body)
    book.in_flight += 1
    book.most_in_flight = max(book.most_in_flight, book.in_flight)
    try:
        await asyncio.sleep(book.kind.latency)
        response = await respond(request, answer)
        if answer.acceptable and still_open(request):
            book.delivered[row] += 1
        return response
    finally:
        book.in_flight -= 1


def still_open(request: web.Request) -> bool:
    """Whether the client is there."""
    return request.transport is not None and not request.transport.is_closing()


async def respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send an answer, or as much of it as there is to be."""
    await asyncio.sleep(answer.hang)
    payload = answer.payload
    if answer.cut is None and not answer.drip:
        response = web.Response(status=answer.status, body=payload, headers=headed(answer))
        await response.prepare(request)
        await response.write_eof()
        return response
    if answer.cut == -1:
        assert request.transport
        request.transport.abort()
        return web.Response()
    slow = web.StreamResponse(status=answer.status, headers=headed(answer) | {"Content-Length": str(len(payload))})
    await slow.prepare(request)
    if answer.cut is not None:
        await slow.write(payload[: answer.cut])
        await asyncio.sleep(0.02)
        assert request.transport
        request.transport.abort()
        return slow
    piece = max(1, len(payload) // PIECES)
    for at in range(0, len(payload), piece):
        await asyncio.sleep(answer.drip)  # before it: whoever has the last piece has all, and may delete the file
        await slow.write(payload[at : at + piece])
    await slow.write_eof()
    return slow


def headed(answer: Answer) -> dict[str, str]:
    """An answer's headers."""
    return {"Content-Type": "application/json", **answer.headers}


async def models(request: web.Request) -> web.StreamResponse:
    """The models that there are."""
    book = book_of(request)
    names = (MODEL,) if book.healed else book.kind.models
    listed = [{"id": name, "object": "model", "created": 0, "owned_by": "faults"} for name in names]
    answer = NO_KEY(None) if book.aborted else Answer(200, {"object": "list", "data": listed})  # type: ignore[arg-type]
    return await respond(request, answer)


# ---- Files and batches


def served(name: str, serve: Any) -> Any:
    """A handler of one kind of call."""

    async def handle(request: web.Request) -> web.StreamResponse:
        book = book_of(request)
        subject = request.match_info.get("id", "")
        sent: Any = None
        if name == "create":
            sent = json.loads(await request.read())
            subject = str(sent.get("input_file_id"))
        elif name == "upload":
            form = await request.post()
            assert form["purpose"] == "batch"
            upload = form["file"]
            assert isinstance(upload, web.FileField)
            sent = upload.file.read()
        age = time.monotonic() - book.born.get(subject, time.monotonic())
        call = Call(name, book.calls[name], book.about[name, subject], age, book.state)
        book.calls[name] += 1
        book.about[name, subject] += 1
        if book.aborted:
            return await respond(request, NO_KEY(None))  # type: ignore[arg-type]
        ways = book.ways
        answer = ways.instead(call)
        if answer is None:
            made = serve(book, call, subject, sent, request)
            answer = ways.after(call) or made
        response = await respond(request, answer)
        got = answer.drip or (answer.cut is None and whole(book, subject, answer.payload))
        if name == "download" and answer.status == 200 and got and still_open(request):
            book.read.add(subject)
        return response

    return handle


def whole(book: Book, file: str, payload: bytes) -> bool:
    """Whether a download held all that there is."""
    return set(book.files.get(file, b"?").splitlines()) <= set(payload.removeprefix(b"\xef\xbb\xbf").splitlines())


def keep(book: Book, content: bytes) -> str:
    """Keep a file."""
    name = f"file-{book.kind.name}-{book.calls.total()}-{len(book.born)}"
    book.files[name] = content
    book.born[name] = time.monotonic()
    return name


def upload(book: Book, call: Call, subject: str, sent: bytes, request: web.Request) -> Answer:
    """Keep a file of requests."""
    name = keep(book, sent)
    return Answer(
        200, {"id": name, "object": "file", "bytes": len(sent), "purpose": "batch", "status": "processed"}
    )


def file(book: Book, call: Call, subject: str, sent: Any, request: web.Request) -> Answer:
    """What is known of a file."""
    found = {"id": subject, "object": "file", "bytes": len(book.files.get(subject, b"")), "status": "processed"}
    return Answer(200, found) if subject in book.files else none("File object")


def download(book: Book, call: Call, subject: str, sent: Any, request: web.Request) -> Answer:
    """A file's content."""
    content = book.files.get(subject)
    if content is None:
        return none("File object")
    given = book.ways.content(call, content) if subject in book.rows else content
    return given if isinstance(given, Answer) else Answer(200, given)


def delete(book: Book, call: Call, subject: str, sent: Any, request: web.Request) -> Answer:
    """Let go of a file; one that holds answers must have been read."""
    if book.files.pop(subject, None) is None:
        return none("File object")
    book.deleted_unread += subject in book.rows and subject not in book.read
    return Answer(200, {"id": subject, "object": "file", "deleted": True})


def create(book: Book, call: Call, subject: str, sent: dict[str, Any], request: web.Request) -> Answer:
    """Begin with a batch."""
    if not sent.get("input_file_id"):
        return Answer(400, {"error": {"message": "Missing required parameter: 'input_file_id'."}})
    if subject not in book.files:
        return none("File object")
    lines = [json.loads(line) for line in book.files[subject].splitlines()]
    batch = {
        "id": f"batch_{book.kind.name}_{len(book.batches)}",
        "object": "batch",
        "endpoint": sent["endpoint"],
        "completion_window": sent["completion_window"],
        "created_at": int(time.time()),
        "input_file_id": subject,
        "output_file_id": None,
        "error_file_id": None,
        "errors": None,
        "metadata": sent.get("metadata"),
        "status": "validating",
        "request_counts": {"total": len(lines), "completed": 0, "failed": 0},
    }
    book.batches.append(batch)
    book.lines.append(lines)
    book.born[batch["id"]] = time.monotonic()
    return Answer(200, shown(book, call, batch))


def poll(book: Book, call: Call, subject: str, sent: Any, request: web.Request) -> Answer:
    """How far a batch is."""
    for number, batch in enumerate(book.batches):
        if batch["id"] == subject:
            go_on(book, number)
            return Answer(200, shown(book, call, batch))
    return none("batch")


def listed(book: Book, call: Call, subject: str, sent: Any, request: web.Request) -> Answer:
    """The batches there are, the newest first."""
    now = time.monotonic()
    for number in range(len(book.batches)):
        go_on(book, number)
    newest = [one for one in book.batches[::-1] if now - book.born[one["id"]] >= book.ways.lag]
    first = next((i + 1 for i, one in enumerate(newest) if one["id"] == request.query.get("after")), 0)
    page = newest[first : first + PAGE]
    body = {
        "object": "list",
        "data": [shown(book, call, one) for one in page],
        "has_more": len(newest) > first + PAGE,
    }
    return Answer(200, {**body, "last_id": page[-1]["id"] if page else None})


def none(what: str) -> Answer:
    """There is no such thing."""
    return Answer(404, {"error": {"message": f"No such {what}", "type": "invalid_request_error"}})


def shown(book: Book, call: Call, batch: dict[str, Any]) -> dict[str, Any]:
    """A batch as the provider words it."""
    ways = book.ways
    seen = ways.shape(call, dict(batch))
    return {**seen, "status": ways.names.get(seen["status"], seen["status"])}


def go_on(book: Book, number: int) -> None:
    """A batch comes to its end when its time has come; its answers are paid for then."""
    batch, lines = book.batches[number], book.lines[number]
    if batch["status"] not in ("validating", "in_progress"):
        return
    share = (time.monotonic() - book.born[batch["id"]]) / book.ways.seconds
    ending: Ending = book.ways.ending(number)
    if share < 1 and ending.status != "failed":  # a batch fails before any of its requests is begun
        batch["status"] = "in_progress"
        batch["request_counts"] = {"total": len(lines), "completed": int(share * len(lines)), "failed": 0}
        return
    batch["status"] = ending.status
    if ending.status == "failed":
        batch["errors"] = {"object": "list", "data": list(ending.errors)}
        return
    end(book, batch, lines, number, ending)


def end(book: Book, batch: dict[str, Any], lines: list[dict[str, Any]], number: int, ending: Ending) -> None:
    """Answer a batch's requests, as many as it came to."""
    order = random.Random(number).sample(lines, len(lines))
    split = int(ending.answered * len(lines))
    good, bad = list[dict[str, Any]](), list[dict[str, Any]]()
    rows = list[str]()
    for line in order[:split]:
        answer, row = book.ask(line["body"], number), row_of(line["body"])
        response = {"status_code": answer.status, "request_id": "r", "body": answer.body}
        entry = {"id": f"r-{number}", "custom_id": line["custom_id"], "response": response, "error": None}
        (good if answer.status == 200 else bad).append(entry)
        if answer.acceptable:  # it waits in a file that only the client can delete
            rows.append(row)
            book.delivered[row] += 1
    late = {"code": "batch_expired", "message": "This request could not be executed before the window ended."}
    for line in order[split:]:
        bad.append({"id": f"r-{number}", "custom_id": line["custom_id"], "response": None, "error": late})
    for name, entries in (("output_file_id", good), ("error_file_id", bad)):
        if entries:
            batch[name] = keep(book, b"".join(json.dumps(one).encode() + b"\n" for one in entries))
            book.rows[batch[name]] = rows
    batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}


# ---- Its own


async def tell(request: web.Request) -> web.Response:
    """Show a kind's ledger, or change how it behaves."""
    book = book_of(request)
    what = request.match_info["what"]
    if what == "heal":
        book.healed, book.kind = True, replace(book.kind, latency=0.01)
    elif what == "abort":
        book.aborted = True
    elif what == "begin":
        BOOKS[book.kind.name] = book = Book(KINDS[book.kind.name])
    return web.json_response(book.ledger())


def application() -> web.Application:
    """All that is served."""
    app = web.Application(client_max_size=2**28)
    at = "/k/{kind}/v1"
    app.add_routes(
        [
            web.post(f"{at}/chat/completions", chat),
            web.get(f"{at}/models", models),
            web.post(f"{at}/files", served("upload", upload)),
            web.get(f"{at}/files/{{id}}/content", served("download", download)),
            web.get(f"{at}/files/{{id}}", served("file", file)),
            web.delete(f"{at}/files/{{id}}", served("delete", delete)),
            web.post(f"{at}/batches", served("create", create)),
            web.get(f"{at}/batches", served("list", listed)),
            web.get(f"{at}/batches/{{id}}", served("poll", poll)),
            web.get("/k/{kind}/{what:ledger|heal|abort|begin}", tell),
        ]
    )
    return app


async def serve() -> None:
    """Listen on a free port until the process, or the one that started it, is ended."""
    runner = web.AppRunner(application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
    started_by = os.getppid()
    while os.getppid() == started_by:  # it outlives nobody
        await asyncio.sleep(1.0)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    asyncio.run(serve())
