"""Per-annotation policies: functions from a case to the reason for its rejection, or None.

An incomplete response is rejected first. Then labels are corrected as the recipe asks. Then missing and wrong
labels are rejected. Policies of plugins come last.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import pyarrow as pa

from tsd.errors import PluginError, plugin_error, source
from tsd.recipe import CurationConfig
from tsd.recipe.additions import POLICIES
from tsd.storage.keys import digest
from tsd.storage.schemas import conform
from tsd.tasks import Case, Task


class Contradictions(Protocol):
    """A detector of contradictions in text, see `tsd.curation.nli`."""

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Which hypotheses contradict their premise. pairs: (premise, hypothesis)."""
        ...


Policy = Callable[[Task, Case, CurationConfig], str | None]


def judge(
    task: Task,
    annotations: pa.Table,
    series: pa.Table,
    config: CurationConfig,
    contradictions: Contradictions | None = None,
) -> pa.Table:
    """Apply the per-annotation policies.

    annotations, series: the same series in the same order. Of `series`, the columns `split`, `values` and `truth`
    are needed. Returns the task's table of verdicts, one row each: `reason` is null if the row is kept so far,
    `corrected` is the text that replaces the response, `labels` are those of the final text.
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
            reason = _first(task, case, config, AFTER_CORRECTION) or _of_plugins(task, case, config)
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
    """Reject responses that are missing or truncated."""
    if case.status in ("ok", "invalid"):
        return None
    return f"{case.status}: {case.reason}" if case.reason else case.status


def formed(task: Task, case: Case, config: CurationConfig) -> str | None:
    """Reject responses that are not the object that the prompt asks for: exactly its keys, text for each."""
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
    """The case with wrong or missing labels replaced by true ones, for the facets that the recipe corrects."""
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
    """Reject responses with missing labels."""
    if config.unstated == "keep" or case.status == "ok":
        return None
    return f"{case.status}: {case.reason}"


def true(task: Task, case: Case, config: CurationConfig) -> str | None:
    """Reject labels that contradict the ground truth. Missing labels contradict nothing."""
    wrong = [
        facet
        for facet, label in case.truth.items()
        if config.policy(facet) == "drop" and case.labels[facet] not in (None, label)
    ]
    return f"contradicts the measured {', '.join(wrong)}" if wrong else None


def of_length(task: Task, case: Case, config: CurationConfig) -> str | None:
    """Reject texts shorter or longer than the recipe allows."""
    least, most = config.length
    if len(case.text) < least:
        return f"shorter than {least:,} characters"
    return f"longer than {most:,} characters" if len(case.text) > most else None


BEFORE_CORRECTION: tuple[Policy, ...] = (whole, formed)
AFTER_CORRECTION: tuple[Policy, ...] = (stated, true, of_length)


def series_keys(series: pa.Table) -> list[int]:
    """A 64-bit hash of each series. By the birthday bound, a million series collide with probability 3e−8."""
    rows = (row.values.to_numpy().tobytes() for row in series["values"])
    return [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "big") for row in rows]


def _first(task: Task, case: Case, config: CurationConfig, policies: Sequence[Policy]) -> str | None:
    """The reason of the first policy that rejects."""
    reasons = (policy(task, case, config) for policy in policies)
    return next((reason for reason in reasons if reason is not None), None)


def _of_plugins(task: Task, case: Case, config: CurationConfig) -> str | None:
    """The reason of the first policy of a plugin that rejects, in alphabetical order, or None.

    Raises PluginError if one fails, or returns anything else.
    """
    for name, settings in sorted(config.policies.items()):
        reject = POLICIES[name].reject
        try:
            reason = reject(task, case, settings)
        except Exception as error:  # whatever code from outside raises
            raise plugin_error(f"the policy {name}", reject, error) from error
        if reason is None:
            continue
        if not isinstance(reason, str) or not reason.strip():
            raise PluginError(
                f"the policy {name}, in {source(reject)}, returned {reason!r}: return the reason of a rejection, "
                "or None to keep the response"
            )
        return f"{name}: {reason}"
    return None


def _contradicted(
    task: Task, cases: Sequence[Case], reasons: Sequence[str | None], contradictions: Contradictions
) -> list[str | None]:
    """Fill in the reasons of the cases that the detector rejects. Texts are compared topic by topic."""
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
