"""The kinds of misbehaviour of an offline Batch API, each with what is expected of the annotation stage."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from fault_answers import (
    MODEL,
    Answer,
    Asked,
    Expected,
    Giver,
    Kind,
    chosen,
    completion,
    for_rows,
    refusal,
    sound,
)
from fault_replies import FEW, HTML, SOME, hidden, tagged


@dataclass
class Call:
    """A call about files or batches."""

    name: str
    """upload, file, download, delete, create, list or poll."""
    number: int
    """How many calls of its name the kind had before."""
    times: int
    """How many of them were about the same file or batch."""
    age: float
    """Seconds since that file or batch was made."""
    state: dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a batch ends. answered: the share of its requests that are answered, and paid for, until then."""

    status: str = "completed"
    answered: float = 1.0
    errors: tuple[dict[str, Any], ...] = ()


Hook = Callable[[Call], Answer | None]
BOTH = "output_file_id", "error_file_id"


@dataclass(frozen=True)
class Ways:
    """How files and batches are served."""

    instead: Hook = lambda _: None
    """What a call gets in place of being served."""
    after: Hook = lambda _: None
    """What it gets once it was served, if not its answer."""
    ending: Callable[[int], Ending] = lambda _: Ending()
    """By the batch's number."""
    shape: Callable[[Call, dict[str, Any]], dict[str, Any]] = lambda _, batch: batch
    """A batch as it is shown."""
    content: Callable[[Call, bytes], bytes | Answer] = lambda _, content: content
    """What a download holds."""
    seconds: float = 0.8
    """From a batch's creation to its end."""
    lag: float = 0.0
    """Seconds until a batch is listed."""
    names: dict[str, str] = field(default_factory=dict)
    """What the provider calls a status."""


def on(name: str, answer: Callable[[Call], Answer | None]) -> Hook:
    """For one kind of call."""
    return lambda call: answer(call) if call.name == name else None


def say(status: int, message: str, headers: dict[str, str] | None = None, **more: Any) -> Answer:
    """An error in OpenAI's form."""
    return refusal(status, message, headers, **more)(None)  # type: ignore[arg-type]


def first(times: int, answer: Answer) -> Callable[[Call], Answer | None]:
    """The first calls about each file or batch."""
    return lambda call: answer if call.times < times else None


def download(change: Callable[[bytes], bytes | Answer], times: int | None = 1) -> Ways:
    """Downloads go wrong the first times; None: always."""
    return Ways(content=lambda call, content: change(content) if times is None or call.times < times else content)


def cut_lines(content: bytes) -> bytes:
    """A file without its last lines, cut at a line's end."""
    return b"".join(content.splitlines(keepends=True)[:-7])


def doubled(content: bytes) -> bytes:
    """Every third line twice."""
    lines = content.splitlines(keepends=True)
    return b"".join(lines + lines[::3])


def strangers(content: bytes) -> bytes:
    """Lines of other requests, and lines that are none."""
    line = json.loads(content.splitlines()[0])
    extra = [json.dumps({**line, "custom_id": f"other-{one}"}).encode() for one in range(5)]
    return content + b"\n".join([*extra, b"{}", b"[]", b"null", b""]) + b"\n"


def windows(content: bytes) -> bytes:
    """Line ends of another system, blank lines and a byte order mark."""
    return b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n")


def null_output(times: int | None) -> Ways:
    """`completed` before the output file has its id."""

    def shape(call: Call, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["status"] != "completed":
            return batch
        seen = call.state.setdefault("completed seen", {})
        seen[batch["id"]] = seen.get(batch["id"], 0) + 1
        late = times is None or seen[batch["id"]] <= times
        return {**batch, **dict.fromkeys(BOTH)} if late else batch

    return Ways(shape=shape)


def half_at_first(status: str) -> Ways:
    """The first batches end half-way."""
    return Ways(ending=lambda number: Ending(status, 0.5) if number < 2 else Ending())


FULL = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached for seer.", "line": None}
NO_MODEL = {"code": "model_not_found", "message": f"The provided model '{MODEL}' is not supported.", "line": 1}
MISTRAL = {
    "validating": "QUEUED",
    "in_progress": "RUNNING",
    "completed": "SUCCESS",
    "failed": "FAILED",
    "expired": "TIMEOUT_EXCEEDED",
    "cancelled": "CANCELLED",
}


def row_429(asked: Asked) -> Answer:
    """Lines of the first batches that were told to wait."""
    busy = chosen(asked.row, SOME) and asked.tries == 0
    return refusal(429, "Rate limit reached", code="rate_limit_exceeded")(asked) if busy else sound(asked)


def all_500(asked: Asked) -> Answer:
    """A batch of which nothing was answered."""
    return refusal(500, "Internal error")(asked) if asked.tries == 0 else sound(asked)


def flagged(asked: Asked) -> Answer:
    """Rows that the moderation refuses."""
    message = "Your input was flagged as potentially violating our usage policy."
    return refusal(400, message, type="invalid_request_error", code="content_policy_violation")(asked)


def repaired(asked: Asked) -> Answer:
    """Rows that need a second request."""
    return (
        completion(asked, "{}", acceptable=False) if asked.tries == 0 and chosen(asked.row, SOME) else sound(asked)
    )


def lost_create(call: Call) -> Answer | None:
    """The batch is made and the answer is lost."""
    return Answer(cut=-1) if call.name == "create" and call.number % 2 == 0 else None


def pending(call: Call) -> Answer | None:
    """Azure: a file is still being checked."""
    if call.name != "create" or call.age > 2.5:
        return None
    return say(
        400,
        "The specified input file is in state 'pending'. Please wait until it is processed.",
        code="invalidInput",
    )


def few_polls_fail(call: Call) -> Answer | None:
    """Polls fail, two of three."""
    return say(500, "Internal error") if call.name == "poll" and call.number % 3 else None


def stays_unread(ledger: dict[str, Any]) -> str | None:
    """Whether a file was deleted that nobody had read whole."""
    return f"{ledger['deleted_unread']} files deleted unread" if ledger["deleted_unread"] else None


def nothing_sent(ledger: dict[str, Any]) -> str | None:
    """Whether files were uploaded in vain."""
    sent = ledger["calls"].get("upload", 0)
    return f"{sent} uploads before it was said" if sent else None


HTML_PAGE = Answer(200, b"<html>Sign in to the proxy</html>", HTML)
NO_FILE = say(404, "No such File object: file-1")
ONCE = Expected(also=stays_unread)
STOPS = "batch_|batch-"
EXTRA = 1 + SOME * 1.5


def kind(name: str, about: str, ways: Ways | None = None, answer: Giver = sound, **more: Any) -> Kind:
    """A kind in batch mode, none of which may delete what nobody read."""
    expected = more.pop("expected", Expected())
    if expected.stop:  # what does not come is not waited for as long as elsewhere
        more.setdefault("settings", ("idle_timeout=12", "batch.idle_timeout=12"))
    return Kind(
        f"batch-{name}", about, answer, replace(expected, also=_both(expected.also)), batch=ways or Ways(), **more
    )


def _both(also: Callable[[dict[str, Any]], str | None]) -> Callable[[dict[str, Any]], str | None]:
    return lambda ledger: also(ledger) or stays_unread(ledger)


BATCH = (
    kind("sound", "a server that behaves"),
    kind("html-once", "each download is a page at first", download(lambda _: HTML_PAGE)),
    kind(
        "html-always",
        "each download is a page, always",
        download(lambda _: HTML_PAGE, None),
        expected=Expected(stop=f"(?=.*({STOPS}))(?=.*file-)"),
    ),
    kind("empty-once", "each download is empty at first", download(lambda _: b"")),
    kind("empty-always", "each download is empty", download(lambda _: b"", None), expected=Expected(stop=STOPS)),
    kind(
        "cut-once",
        "each download is cut in mid-line at first",
        download(lambda content: content[: len(content) // 2]),
    ),
    kind(
        "cut-reset",
        "each download is reset in its middle at first",
        download(lambda content: Answer(200, content, cut=len(content) // 2)),
    ),
    kind("404-once", "each download is a 404 at first", download(lambda _: NO_FILE)),
    kind("404-always", "each download is a 404", download(lambda _: NO_FILE, None), expected=Expected(stop=STOPS)),
    kind("no-output-at-first", "completed with output_file_id null for two polls", null_output(2)),
    kind(
        "no-output",
        "completed with output_file_id null for ever",
        null_output(None),
        expected=Expected(stop=STOPS),
    ),
    kind("missing-lines-once", "each download lacks lines at first", download(cut_lines)),
    kind(
        "missing-lines",
        "each download lacks lines that request_counts has",
        download(cut_lines, None),
        expected=Expected(stop=STOPS),
    ),
    kind("duplicate-lines", "lines stand twice", download(doubled, None)),
    kind(
        "strangers",
        "lines of other requests, and lines that are none: read, or distrusted and said",
        download(strangers, None),
        expected=Expected(stop="custom id", may_stop=True),
    ),
    kind("windows", "blank lines, other line ends, a byte order mark", download(windows, None)),
    kind("error-file-only", "the first batches have an error file alone", answer=all_500),
    kind("expired", "the first batches expire half-way", half_at_first("expired")),
    kind("cancelled", "the first batches are cancelled half-way", half_at_first("cancelled")),
    kind(
        "token-limit",
        "the provider holds too much already, twice",
        Ways(ending=lambda number: Ending("failed", 0.0, (FULL,)) if number < 2 else Ending()),
    ),
    kind(
        "no-model",
        "validation fails: no such model",
        Ways(ending=lambda _: Ending("failed", 0.0, (NO_MODEL,))),
        expected=Expected(stop="not supported", goes_on=False),
    ),
    kind(
        "unknown-status",
        "a status that nobody knows, for ever",
        Ways(names={"in_progress": "paused_by_provider", "completed": "paused_by_provider"}),
        expected=Expected(stop="paused_by_provider"),
    ),
    kind("mistral-status", "Mistral's names: QUEUED, RUNNING, SUCCESS", Ways(names=MISTRAL)),
    kind(
        "mistral-timeout",
        "Mistral's TIMEOUT_EXCEEDED half-way",
        replace(half_at_first("expired"), names=MISTRAL),
    ),
    kind("lost-create", "answers to create are lost, the list lags", Ways(after=lost_create, lag=3.0)),
    kind(
        "404-poll-once", "each batch is a 404 at first", Ways(instead=on("poll", first(1, say(404, "No batch"))))
    ),
    kind(
        "404-poll",
        "each batch is a 404",
        Ways(instead=on("poll", lambda _: say(404, "No batch found with id"))),
        expected=Expected(stop="No batch"),
    ),
    kind("azure-pending", "create right after upload is a 400: pending", Ways(instead=pending)),
    kind(
        "none-here",
        "404 on /v1/batches",
        Ways(instead=lambda call: say(404, "Not Found") if call.name in ("create", "list", "poll") else None),
        expected=Expected(stop="404|Not Found|[Bb]atch", goes_on=False, also=nothing_sent),
    ),
    kind("poll-500", "two polls of three fail", Ways(instead=few_polls_fail)),
    kind("hidden-thinking", "thinking tokens stand in the total alone", answer=hidden),
    kind("row-429", "some lines were told to wait", answer=row_429),
    kind(
        "flagged-rows",
        "some lines were refused by the moderation",
        answer=for_rows(FEW, flagged),
        expected=Expected(marked="error|refused", asked=1),
    ),
    kind(
        "delete-fails", "nothing can be deleted", Ways(instead=on("delete", lambda _: say(500, "Internal error")))
    ),
    kind(
        "upload-late",
        "the first uploads are answered after the time limit",
        Ways(after=lambda call: Answer(200, {}, hang=8.0) if call.name == "upload" and call.number < 2 else None),
    ),
    kind(
        "download-drips",
        "each download drips at first, for longer than a request's time limit",
        download(lambda content: Answer(200, content, drip=0.7)),
    ),
    kind(
        "create-429",
        "creation is told to wait",
        Ways(
            instead=lambda call: (
                say(429, "Too many requests", {"Retry-After": "1"})
                if call.name == "create" and call.number in (0, 1, 3)
                else None
            )
        ),
    ),
    kind(
        "no-quota",
        "no batch is created for want of credit",
        Ways(
            instead=on(
                "create",
                lambda call: (
                    say(429, "You exceeded your current quota.", code="insufficient_quota")
                    if call.number >= 2
                    else None
                ),
            )
        ),
        expected=Expected(stop="quota"),
    ),
    kind("think-tags", "replies with thoughts", answer=tagged("<think>", "</think>")),
    kind("repairs", "some rows need a second request", answer=repaired, expected=Expected(paid=EXTRA)),
    # Batches take longer than a start does, so that there is something to kill each time.
    kind("kill-sound", "killed while a server behaves", Ways(seconds=60.0), kills=4, workers=(2, 1)),
    kind(
        "kill-html",
        "killed while downloads are pages at first",
        replace(download(lambda _: HTML_PAGE, 2), seconds=40.0),
        kills=3,
    ),
    kind(
        "kill-lost-create",
        "killed while answers to create are lost",
        Ways(after=lost_create, lag=1.0, seconds=40.0),
        kills=3,
    ),
    kind("kill-expired", "killed while batches expire", replace(half_at_first("expired"), seconds=2.0), kills=3),
)
