"""Fit the scaling laws of a study, all at once on Ray."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray

from tsd.evaluation import laws

RESAMPLES = 100


def fit_laws(runs: pa.Table, scores: Sequence[str], test_series: int) -> dict[str, laws.FittedLaw | str]:
    """Fit the loss, that of labels and numbers, and each error rate concurrently on Ray.

    The value is a message if there are too few runs. Uses only SFT runs that were trained to their end: for
    others, N and D do not determine the result. If there are both vision-language and text students, only the text
    students are used, since one law cannot fit both. An error rate of 0 in n series is replaced by 0.5 / n, since
    a law is fitted to its logarithm.
    """
    stopped = pc.fill_null(runs["stopped_early"], False)
    runs = runs.filter(pc.and_(pc.is_null(runs["distilled_from"]), pc.invert(stopped)))
    image = pc.fill_null(pc.equal(runs["modality"], "image"), False)
    if len(pc.unique(image)) > 1:
        runs = runs.filter(pc.invert(image))
    columns = {"loss": runs["validation_loss"].to_numpy()}
    if len(runs) and not runs["label_loss"].null_count:
        columns["label_loss"] = runs["label_loss"].to_numpy()
    for name in scores:
        correct = pc.struct_field(runs[name], "value").to_numpy()
        columns[name] = np.maximum(1.0 - correct, 0.5 / test_series)
    sizes, train_sizes = runs["parameters_without_embeddings"].to_numpy(), runs["examples"].to_numpy()
    if len(runs) < laws.FEWEST_RUNS:
        return {name: _fit(sizes, train_sizes, column) for name, column in columns.items()}
    fit = ray.remote(_fit).options(num_cpus=1)
    waiting = {name: fit.remote(sizes, train_sizes, column) for name, column in columns.items()}
    return {name: ray.get(result) for name, result in waiting.items()}


def _fit(
    sizes: npt.NDArray[np.int64], train_sizes: npt.NDArray[np.int64], losses: npt.NDArray[np.float64]
) -> laws.FittedLaw | str:
    try:
        return laws.fit_with_intervals(sizes, train_sizes, losses, seed=0, resamples=RESAMPLES)
    except ValueError as error:
        return str(error)
