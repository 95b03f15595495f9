"""The corpus-level filter: duplicates and caps, from a few columns per annotation."""

from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.errors import InputError
from tsd.recipe import CurationConfig
from tsd.tasks import Task

DUPLICATE = "the same series as another example"
_RANK = ("test", "validation", "train")  # by priority: a duplicate is kept in the first of its splits

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Settled:
    """The annotations that the corpus-level filter rejects."""

    ids: npt.NDArray[np.int64]  # (rejected,), ascending
    codes: npt.NDArray[np.int8]  # (rejected,), indices into reasons
    reasons: tuple[str, ...]

    def reasons_for(self, series_ids: npt.NDArray[np.int64]) -> list[str | None]:
        """The reason for each of these series, None if it is kept. series_ids: (rows,)."""
        if len(self.ids) == 0:
            return [None] * len(series_ids)
        places = np.minimum(np.searchsorted(self.ids, series_ids), len(self.ids) - 1)
        hit = self.ids[places] == series_ids
        return [self.reasons[code] if one else None for code, one in zip(self.codes[places], hit, strict=True)]


def needed(config: CurationConfig) -> tuple[str, ...]:
    """The columns of the verdicts that `settle` needs."""
    capped = ("labels",) if min(config.caps.values()) < 1 else ()
    return ("series_id", "split", "series_key", "reason", *capped)


def settle(task: Task, verdicts: pa.Table, config: CurationConfig) -> Settled:
    """Apply the corpus-level filter to the annotations kept so far.

    verdicts: the columns `needed` of all annotations, in any order; the result does not depend on it. Raises
    InputError if caps leave nothing to train on.
    """
    ids, keys = verdicts["series_id"].to_numpy(), verdicts["series_key"].to_numpy()
    split = pc.index_in(verdicts["split"], pa.array(_RANK)).to_numpy()
    kept = verdicts["reason"].is_null().to_numpy()
    found: dict[str, npt.NDArray[np.int64]] = {}
    if config.duplicates == "drop":
        twice = duplicates(ids, keys, split, kept)
        found[DUPLICATE] = ids[twice]
        kept = kept & ~twice
    trained = np.flatnonzero(kept & (split == _RANK.index("train")))
    if len(trained) and any(config.cap(facet) < 1 for facet in task.names):
        rows = verdicts["labels"].combine_chunks().take(pa.array(trained))
        stated = {
            facet: pc.index_in(rows.field(facet), pa.array(classes)).fill_null(-1).to_numpy()
            for facet, classes in task.classes.items()
        }
        caps = {facet: config.cap(facet) for facet in task.names}
        for facet, gone in above_caps(stated, caps, keys[trained], ids[trained]).items():
            found[f"over the cap on a class of {facet}"] = ids[trained[gone]]
    rejected = np.concatenate([np.empty(0, np.int64), *found.values()])
    codes = np.repeat(np.arange(len(found), dtype=np.int8), [len(gone) for gone in found.values()])
    order = np.argsort(rejected)
    return Settled(rejected[order], codes[order], tuple(found))


def duplicates(
    ids: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64], split: npt.NDArray[np.intp], kept: Mask
) -> Mask:
    """Which of the kept rows duplicate the series of another row.

    All arrays (rows,). split: 0 test, 1 validation, 2 train. A validation or test series blocks duplicates even if
    its annotation was rejected. Returns (rows,) bool.
    """
    there = np.flatnonzero(kept | (split < _RANK.index("train")))
    order = there[np.lexsort((ids[there], ~kept[there], split[there], keys[there]))]
    again = np.zeros(len(ids), bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    return again & kept


def above_caps(
    stated: dict[str, npt.NDArray[np.intp]],
    caps: dict[str, float],
    keys: npt.NDArray[np.uint64],
    ids: npt.NDArray[np.int64],
) -> dict[str, npt.NDArray[np.intp]]:
    """The rows to reject so that no class exceeds its cap, by the facet of the cap.

    All arrays (rows,). stated: by facet, the class index of each row, −1 if not stated. The class furthest above
    its cap is reduced first, until none exceeds its cap. Rows are taken in proportion from all combinations with
    the other facets' classes, which changes their balance least. The choice depends on the keys only, not on the
    number of workers. Raises InputError if no row would be left.
    """
    cells = np.zeros(len(ids), np.int64)
    for labels in stated.values():
        cells = cells * (labels.max() + 2) + labels + 1
    order = np.lexsort((ids, keys, cells))
    left = np.ones(len(ids), bool)
    gone: dict[str, list[npt.NDArray[np.intp]]] = {}
    while True:
        facet, label, excess = _furthest_above(stated, caps, left)
        if excess == 0:
            return {name: np.concatenate(rows) for name, rows in gone.items()}
        members = order[left[order] & (stated[facet][order] == label)]
        cut = members[(2 * np.arange(excess) + 1) * len(members) // (2 * excess)]  # evenly spaced
        left[cut] = False
        gone.setdefault(facet, []).append(cut)
        if not left.any():
            raise InputError(f"curation.caps leave nothing to train on: raise that of {facet}, {caps[facet]:g}")


def _furthest_above(
    stated: dict[str, npt.NDArray[np.intp]], caps: dict[str, float], left: Mask
) -> tuple[str, int, int]:
    """Facet, class and excess rows of the class furthest above its cap, if only that class were reduced."""
    rows = int(left.sum())
    found = ("", 0, 0)
    for facet, labels in stated.items():
        cap = caps[facet]
        if cap == 1:
            continue
        counts = np.bincount(labels[left] + 1)[1:]
        for label, count in enumerate(counts.tolist()):
            # count − x ≤ cap · (rows − x), solved for x; the last term absorbs rounding errors of the division
            excess = ceil((count - cap * rows) / (1 - cap) - 1e-9)
            if excess > found[2]:
                found = facet, label, excess
    return found
