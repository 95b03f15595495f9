"""Rule-based teacher: states the measured facets in varied sentences, with a configurable error rate."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.generation.generator import BLOCK
from tsd.recipe import EVERY, RulesTeacher
from tsd.rng import TEACHER, generator
from tsd.tasks import Labels, Task
from tsd.teachers import Reply, annotations, request_keys

MANY = 2**31  # a uniform number times this selects a wording


class Rules:
    """States the true labels of each series, or another class with the recipe's error rate."""

    def __init__(self, config: RulesTeacher, task: Task, seed: int) -> None:
        self.config = config
        self.task = task
        self.seed = seed

    def annotate(self, series: pa.Table) -> pa.Table:
        """series: the task's series table.

        Returns its annotations table; each row depends only on its series id.
        """
        ids = series["series_id"].to_numpy()
        facets, counts = self.task.facets, self.task.phrasing_counts
        draws = np.empty((len(ids), 2 * len(facets) + len(counts)))
        for block in np.unique(ids // BLOCK):
            rng = generator(self.seed, TEACHER, int(block))
            mine = ids // BLOCK == block
            draws[mine] = rng.random((BLOCK, draws.shape[1]))[ids[mine] % BLOCK]
        rates = [self.config.error_rate.get(facet.name, self.config.error_rate[EVERY]) for facet in facets]
        wrong = draws[:, : len(facets)] < rates  # (batch, facets)
        other = draws[:, len(facets) : 2 * len(facets)]  # (batch, facets), selects the wrong class
        varied = np.array(counts) if self.config.varied else 0
        phrasing = (draws[:, 2 * len(facets) :] * varied).astype(int)  # (batch, topics)
        truths = series["truth"].to_pylist()
        labels = [self._stated(truth, wrong[i], other[i]) for i, truth in enumerate(truths)]
        if self.config.varied and self.task.numbers:
            # The numbers that select a wrong class select a wording too: a wrong one has no numbers of the series.
            choices = (other * MANY).astype(int).tolist()
            known = [self._known(stated, wrong[i]) for i, stated in enumerate(self.task.stated(series))]
            texts = list(map(self.task.describe, labels, known, choices))
        else:
            texts = [self.task.reply(each, phrasing[i].tolist()) for i, each in enumerate(labels)]
        replies = list(map(Reply, texts))
        keys = request_keys(self.task, [self.config.identity, self.seed], series)
        return annotations(self.task, self.config.name, series, keys, replies)

    def _known(self, numbers: dict[str, str], wrong: npt.NDArray[np.bool_]) -> dict[str, str]:
        """Return the numbers without those of the facets that are stated wrongly. wrong: (facets,)."""
        off = {one.name for i in np.flatnonzero(wrong) for one in self.task.facets[i].numbers}
        return {name: text for name, text in numbers.items() if name not in off}

    def _stated(self, truth: Labels, wrong: npt.NDArray[np.bool_], other: npt.NDArray[np.float64]) -> Labels:
        """Return the labels with the wrong facets replaced. wrong, other: (facets,), other uniform in [0, 1)."""
        stated = truth.copy()
        for i in np.flatnonzero(wrong):
            facet = self.task.facets[i]
            others = [name for name in facet.classes if name != truth[facet.name]]
            stated[facet.name] = others[int(other[i] * len(others))]
        return stated
