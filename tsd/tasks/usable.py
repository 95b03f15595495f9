"""Check once, on a few series and on every phrasing, that a task from outside tsd can be used."""

import json
from collections.abc import Iterator, Mapping
from itertools import product

import numpy as np
import numpy.typing as npt

from tsd.storage.schemas import ALL_RIGHT, RUN, VALID
from tsd.tasks.facet import Facet
from tsd.tasks.language import normal, topic_of
from tsd.tasks.task import Task

SERIES = 128  # on which it is tried


def require_usable(task: Task) -> None:
    """Raise ValueError unless a task has names that tables can have, and reads what it phrases."""
    _require_names(task)
    _require_topics(task)
    task.tables.series.field("truth")
    _require_readable(task)


def require_measurable(task: Task, points: int) -> None:
    """Raise ValueError unless a task measures what it names, on series of so many points, and can ask about them.

    Its functions may raise anything.
    """
    values = tried(task.curves, points)
    measures = task.measure(values)
    if set(measures) != set(task.measures):
        raise ValueError(f"measure returns {sorted(measures)}, and measures names {sorted(task.measures)}")
    task.truth(measures, points)
    task.margins(measures)
    task.teacher_prompt(points)
    task.student_prompt(values[0].tolist())


def tried(curves: int, points: int) -> npt.NDArray[np.uint8]:
    """Series of all levels of noise that rise, fall, turn and stay: (SERIES, curves × points)."""
    rng = np.random.default_rng(0)
    time = np.linspace(-1, 1, points)
    shapes = np.stack([time, -time, 2 * time**2 - 1, 1 - 2 * time**2, np.sin(9 * time), 0 * time])
    chosen = shapes[rng.integers(len(shapes), size=(SERIES, curves))]  # (SERIES, curves, points)
    level, size = rng.uniform(20, 80, (SERIES, curves, 1)), rng.uniform(5, 30, (SERIES, curves, 1))
    noise = rng.choice([1.0, 6.0, 15.0], (SERIES, curves, 1)) * rng.standard_normal(chosen.shape)
    values: npt.NDArray[np.uint8] = np.clip(level + size * chosen + noise, 0, 99).astype(np.uint8)
    return values.reshape(SERIES, curves * points)


def _require_names(task: Task) -> None:
    """Raise ValueError for names that clash with columns of tables, or that name no facet."""
    taken = {ALL_RIGHT, VALID, *(field.name for field in RUN)}
    for facet in task.facets:
        if facet.name in taken:
            raise ValueError(f"the facet {facet.name!r} has the name of a column of the runs table: rename it")
        if facet.given is not None and facet.given not in task.names:
            raise ValueError(f"given of the facet {facet.name} is {facet.given!r}, which is no facet of the task")
    if unknown := set(task.sheet) - set(task.names):
        raise ValueError(f"sheet names {sorted(unknown)}, and the facets are {list(task.names)}")


def _require_topics(task: Task) -> None:
    """Raise ValueError for a topic that no key of a reply stands for."""
    for facet in task.facets:
        found = topic_of(facet.topic)
        if found != facet.topic or not found:
            spelt = " ".join(facet.topic.lower().replace("_", " ").split())
            fix = f"call it {spelt!r}" if topic_of(spelt) == spelt != "" else "give it another topic"
            raise ValueError(
                f"the topic {facet.topic!r} of the facet {facet.name} is never found in replies, whose key "
                f"{facet.topic!r} is read as {found.strip()!r}: {fix}"
            )


def _require_readable(task: Task) -> None:
    """Raise ValueError for a phrasing that is not read as its class alone, or beside no classes of its topic.

    Facets of one topic may depend on each other: "There is no peak. It comes early." need not be read as early.
    """
    for facet in task.facets:
        for name, (i, phrasing) in product(facet.classes, enumerate(facet.phrasings)):
            said = phrasing.format(name)
            if fault := _fault_of_reading(task, facet, {facet.topic: said}, said, name):
                raise ValueError(fault)
            choice = [min(i, count - 1) for count in task.phrasing_counts]
            replies = (json.loads(task.reply(labels, choice)) for labels in _with(task, facet, name))
            faults = (_fault_of_reading(task, facet, reply, said, name) for reply in replies)
            first = next(faults)
            if first and all(faults):
                raise ValueError(first)


def _with(task: Task, facet: Facet, name: str) -> Iterator[dict[str, str]]:
    """Labels of all facets, this one's `name`, with every combination of classes within its topic."""
    beside = [one.classes if one.topic == facet.topic else one.classes[:1] for one in task.facets]
    beside[task.facets.index(facet)] = (name,)
    return (dict(zip(task.names, labels, strict=True)) for labels in product(*beside))


def _fault_of_reading(task: Task, facet: Facet, reply: Mapping[str, str], said: str, name: str) -> str | None:
    """What is wrong unless the label of a facet in a reply is `name`, with what its parser was given."""
    given = normal(task.texts(json.dumps(reply)).get(facet.topic, ""))
    reading = facet.read(given)
    if reading.label == name:
        return None
    why = f" ({reading.why})" if reading.why else ""
    return (
        f"{facet.name}: {said!r} is read as {reading.label}, not {name}: read was given {given!r} and "
        f"returned the label {reading.label!r}{why}"
    )
