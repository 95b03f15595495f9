"""A teacher that is not a model: it states the measured facets in varied sentences, some of them wrongly."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.draws import TEACHER, generator
from tsd.language import PHRASING_COUNTS, Labels, reply_text
from tsd.recipe import RulesTeacher
from tsd.schema import FACETS
from tsd.series.drawing import BLOCK
from tsd.teachers import Reply, annotations, request_keys


class Rules:
    """States the truth of each series, or with the recipe's error rate one of the other classes."""

    def __init__(self, config: RulesTeacher, seed: int) -> None:
        self.config = config
        self.seed = seed

    def annotate(self, series: pa.Table) -> pa.Table:
        """series: the `SERIES` schema. Returns the `ANNOTATIONS` schema; a row depends on its id alone."""
        ids = series["series_id"].to_numpy()
        draws = np.empty((len(ids), 2 * len(FACETS) + 3))
        for block in np.unique(ids // BLOCK):
            rng = generator(self.seed, TEACHER, int(block))
            mine = ids // BLOCK == block
            draws[mine] = rng.random((BLOCK, draws.shape[1]))[ids[mine] % BLOCK]
        rates = [getattr(self.config.error_rate, facet) for facet in FACETS]
        wrong = draws[:, : len(FACETS)] < rates  # (batch, facets)
        other = draws[:, len(FACETS) : 2 * len(FACETS)]  # (batch, facets), which wrong class
        phrasing = (draws[:, -3:] * PHRASING_COUNTS).astype(int)  # (batch, 3)
        replies = [
            Reply(reply_text(_labels(truth, wrong[i], other[i]), tuple(phrasing[i])))
            for i, truth in enumerate(series["truth"].to_pylist())
        ]
        keys = request_keys([self.config.identity, self.seed], series)
        return annotations(self.config.name, series, keys, replies)


def _labels(truth: Labels, wrong: npt.NDArray[np.bool_], other: npt.NDArray[np.float64]) -> Labels:
    """The truth, but for the facets that are to be wrong. wrong: (facets,) bool; other: (facets,) in [0, 1)."""
    stated = truth.copy()
    for i, (facet, classes) in enumerate(FACETS.items()):
        if wrong[i]:
            others = [name for name in classes if name != truth[facet]]  # type: ignore[literal-required]
            stated[facet] = others[int(other[i] * len(others))]  # type: ignore[literal-required]
    return stated
