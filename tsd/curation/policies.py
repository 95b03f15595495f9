"""What is decided of an annotation by itself: each policy is a function from a case to a reason, or to None.

A reply that is not whole is looked at no further; what the recipe wants corrected is corrected before it is asked
whether every label is stated and true.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import pyarrow as pa

from tsd.recipe import CurationConfig
from tsd.storage.keys import digest
from tsd.storage.schemas import conform
from tsd.tasks import Labels, Task


class Contradictions(Protocol):
    """What finds contradictions by the words; see `tsd.curation.nli`."""

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """pairs: premise and hypothesis. Returns which hypotheses contradict their premise."""
        ...


@dataclass(frozen=True)
class Case:
    """A reply, what it states, and what is true of its series."""

    status: str
    reason: str | None
    """Why the status is not ok."""
    text: str
    labels: Labels
    truth: Labels
    key: str
    """The request's, by which a correction's phrasing is chosen."""
    corrected: bool = False


Policy = Callable[[Task, Case, CurationConfig], str | None]


def judge(
    task: Task,
    annotations: pa.Table,
    series: pa.Table,
    config: CurationConfig,
    contradictions: Contradictions | None = None,
) -> pa.Table:
    """Decide on each annotation by itself.

    annotations, series: the same series in the same order; of series `split`, `values` and `truth` are needed.
    Returns the task's table of verdicts, a row for each: `reason` is null for what is kept so far, `corrected` is
    the reply that takes the place of the teacher's, and `labels` are those of what would be learned.
    """
    rows = []
    known = zip(series["split"].to_pylist(), series["truth"].to_pylist(), series_keys(series), strict=True)
    for said, (split, truth, key) in zip(annotations.to_pylist(), known, strict=True):
        case = Case(
            said["status"],
            said["reason"],
            said["text"] or "",
            said["labels"],
            truth,
            said["request_key"],
        )
        reason = _first(task, case, config, BEFORE_CORRECTION)
        if reason is None:
            case = correct(task, case, config)
            reason = _first(task, case, config, AFTER_CORRECTION)
        rows.append((said["series_id"], split, key, case, reason))
    reasons = [row[-1] for row in rows]
    if contradictions is not None:
        reasons = _contradicted(task, [row[3] for row in rows], reasons, contradictions)
    schema = task.tables.verdicts
    found = [
        {
            "series_id": series_id,
            "split": split,
            "series_key": key,
            "reason": reason,
            "corrected": case.text if case.corrected and reason is None else None,
            "labels": case.labels,
        }
        for (series_id, split, key, case, _), reason in zip(rows, reasons, strict=True)
    ]
    return conform(pa.Table.from_pylist(found, schema), schema)


def whole(task: Task, case: Case, config: CurationConfig) -> str | None:
    """The teacher answered, and to the end."""
    if case.status in ("ok", "invalid"):
        return None
    return f"{case.status}: {case.reason}" if case.reason else case.status


def formed(task: Task, case: Case, config: CurationConfig) -> str | None:
    """The reply is the object that was asked for: every key, no other, a sentence behind each."""
    if config.form == "any":
        return None
    try:
        said = json.loads(case.text)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        return "form: not a JSON object"
    if set(said) != set(task.topics):
        return "form: other keys than were asked for"
    return None if all(isinstance(one, str) for one in said.values()) else "form: not a sentence behind each key"


def correct(task: Task, case: Case, config: CurationConfig) -> Case:
    """The case with the truth stated where the recipe wants a wrong or an open facet corrected."""
    mended = [
        facet
        for facet, label in case.truth.items()
        if config.policy(facet) == "correct" and case.labels[facet] != label
    ]
    if not mended:
        return case
    wanted = {**case.labels, **{facet: case.truth[facet] for facet in mended}}
    choice = [
        int(digest([case.key, topic]), 16) % count
        for topic, count in zip(task.topics, task.phrasing_counts, strict=True)
    ]
    topics = {facet.topic for facet in task.facets if facet.name in mended}
    text = task.restate(case.text, wanted, topics, choice)
    parsed = task.parse(text)
    status = "ok" if parsed.reason is None else "invalid"
    return replace(case, status=status, reason=parsed.reason, text=text, labels=parsed.labels, corrected=True)


def stated(task: Task, case: Case, config: CurationConfig) -> str | None:
    """Every label can be read."""
    if config.unstated == "keep" or case.status == "ok":
        return None
    return f"{case.status}: {case.reason}"


def true(task: Task, case: Case, config: CurationConfig) -> str | None:
    """No label is another than the measured one. A facet that is left open contradicts nothing."""
    wrong = [
        facet
        for facet, label in case.truth.items()
        if config.policy(facet) == "drop" and case.labels[facet] not in (None, label)
    ]
    return f"contradicts the measured {', '.join(wrong)}" if wrong else None


def of_length(task: Task, case: Case, config: CurationConfig) -> str | None:
    """What is learned is neither shorter nor longer than the recipe allows."""
    least, most = config.length
    if len(case.text) < least:
        return f"shorter than {least:,} characters"
    return f"longer than {most:,} characters" if len(case.text) > most else None


BEFORE_CORRECTION: tuple[Policy, ...] = (whole, formed)
AFTER_CORRECTION: tuple[Policy, ...] = (stated, true, of_length)


def series_keys(series: pa.Table) -> list[int]:
    """64 bits of each series; two of a million others share theirs with a chance of 3 in 100 million."""
    rows = (row.values.to_numpy().tobytes() for row in series["values"])
    return [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "big") for row in rows]


def _first(task: Task, case: Case, config: CurationConfig, policies: Sequence[Policy]) -> str | None:
    """The reason of the first policy that has one."""
    reasons = (policy(task, case, config) for policy in policies)
    return next((reason for reason in reasons if reason is not None), None)


def _contradicted(
    task: Task, cases: Sequence[Case], reasons: Sequence[str | None], contradictions: Contradictions
) -> list[str | None]:
    """The reasons, with those that a model finds where there was none. A topic is compared as a whole."""
    asked = [
        (i, topic, task.sentence(topic, case.truth), said)
        for i, (case, reason) in enumerate(zip(cases, reasons, strict=True))
        if reason is None
        for topic, said in task.texts(case.text).items()
    ]
    found = contradictions.find([(premise, said) for _, _, premise, said in asked])
    topics: dict[int, list[str]] = {}
    for (i, topic, _, _), against in zip(asked, found, strict=True):
        if against:
            topics.setdefault(i, []).append(topic)
    return [
        f"contradicts the truth on {', '.join(topics[i])} by NLI" if i in topics else reason
        for i, reason in enumerate(reasons)
    ]
