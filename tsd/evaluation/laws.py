"""Fit scaling laws: loss as a function of model size and training set size, with bootstrap intervals.

In: size, training examples or tokens, and loss of each run. Out: a `Law`, its intervals, and notes on what the
runs do not determine (identifiability). N, D and L may have any units; A and B are in these units.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PARAMETERS = ("E", "A", "alpha", "B", "beta")
FEWEST_RUNS = len(PARAMETERS)
LARGEST_EXPONENT = 5.0
# E is bounded below by exp(-20) of the lowest loss, which is 0 for all purposes; log E would diverge otherwise.
DEEPEST = 20.0

# log N and log D correlated above this, as with D proportional to N, leave one axis only.
ALIGNED = 0.999
# A term that falls by less than this fraction of the lowest loss over all runs has no visible effect.
FLAT = 1e-3


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, eq. 2)."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    objective: float
    """The minimal summed Huber loss of log L over the fitted runs."""

    def predict(self, n: npt.ArrayLike, d: npt.ArrayLike) -> Floats:
        """The loss for sizes n and training set sizes d, which broadcast, in the units of the fit."""
        size, train_size = np.asarray(n, dtype=np.float64), np.asarray(d, dtype=np.float64)
        return np.asarray(self.E + self.A / size**self.alpha + self.B / train_size**self.beta)


@dataclass(frozen=True)
class FittedLaw:
    """A law with the uncertainty of its parameters and notes on identifiability."""

    law: Law
    intervals: dict[str, tuple[float, float]]
    """95 % bootstrap interval by parameter (E, A, alpha, B, beta)."""
    runs: int
    resamples: int
    """Bootstrap resamples used for the intervals."""
    note: str
    """Identifiability notes: what the runs do not determine. Empty if they determine both exponents."""

    @property
    def determined(self) -> bool:
        """Whether the runs determine both exponents."""
        return not self.note


@dataclass(frozen=True)
class _Runs:
    """The data of the objective.

    Logarithms are centred, so that the coefficient and the exponent of a term are nearly uncorrelated. L-BFGS then
    needs no tuning for the units of N, D and L.
    """

    log_n: Floats  # (runs,) log N minus its mean
    log_d: Floats  # (runs,) log D minus its mean
    log_loss: Floats  # (runs,) log L minus its minimum
    centre: tuple[float, float, float]  # the offsets of log N, log D and log L
    design: Floats  # (3 * runs, 5): design @ (a, alpha, b, beta, e) are the logs of the three terms
    delta: float


def fit(n: npt.ArrayLike, d: npt.ArrayLike, loss: npt.ArrayLike, *, delta: float = 1e-3) -> Law:
    """Fit a law by minimising the summed Huber loss of log L (Hoffmann et al. 2022, eq. 3).

    n, d, loss: (runs,), positive. delta: residual of log L from which the Huber loss is linear. Exponents are
    bounded to 0–LARGEST_EXPONENT, so a loss that grows with size or data gives 0. Raises ValueError for fewer than
    five runs, or fewer than two distinct sizes or training set sizes.
    """
    runs = _centred(n, d, loss, delta)
    return _law(runs, *_minimise(runs, np.ones(len(runs.log_loss)), _grid(runs)))


def fit_with_intervals(
    n: npt.ArrayLike, d: npt.ArrayLike, loss: npt.ArrayLike, *, seed: int, resamples: int = 200
) -> FittedLaw:
    """Fit a law with 95 % intervals from a pairs bootstrap over runs (Besiroglu et al. 2024).

    n, d, loss: (runs,), positive. seed: of the resampling. resamples: number drawn. Resamples with a single size
    or training set size cannot be fitted; they are left out and counted in the note. Raises ValueError as `fit`
    does, and if no resample can be fitted.
    """
    runs = _centred(n, d, loss, delta=1e-3)
    point, objective = _minimise(runs, np.ones(len(runs.log_loss)), _grid(runs))
    draws = [counts for counts in _draws(len(runs.log_loss), seed, resamples) if _fittable(runs, counts)]
    if not draws:
        raise ValueError(f"none of {resamples} resamples holds two distinct sizes and train sizes")
    fits = [_law(runs, *_minimise(runs, counts, _nearby(runs, point))) for counts in draws]
    law = _law(runs, point, objective)
    intervals = {name: _ends([getattr(each, name) for each in fits]) for name in PARAMETERS}
    note = "; ".join(_doubts(runs, law, intervals, lost=resamples - len(draws)))
    return FittedLaw(law, intervals, len(runs.log_loss), len(draws), note)


def compute_optimal(law: Law, flops: float) -> tuple[float, float]:
    """The size and training set size with the lowest loss for a compute budget (Hoffmann et al. 2022, eq. 4).

    flops: the budget C = 6·N·D. This requires N in parameters and D in *tokens*. Returns (N, D). Raises ValueError
    if a term of the law does not decrease, so that there is no optimum.
    """
    if min(law.A, law.alpha, law.B, law.beta) <= 0:
        raise ValueError(f"no optimum: size or data does not lower the loss in {law}")
    if not flops > 0:
        raise ValueError(f"flops is {flops}, expected a positive number")
    both = law.alpha + law.beta
    log_g = np.log(law.alpha * law.A / (law.beta * law.B)) / both
    log_budget = np.log(flops / 6)
    size = np.exp(log_g + law.beta / both * log_budget)
    train_size = np.exp(-log_g + law.alpha / both * log_budget)
    return float(size), float(train_size)


def _centred(n: npt.ArrayLike, d: npt.ArrayLike, loss: npt.ArrayLike, delta: float) -> _Runs:
    """Check the runs and centre their logarithms. Raises ValueError as `fit` does."""
    columns = {
        name: np.asarray(column, dtype=np.float64)
        for name, column in {"sizes": n, "train sizes": d, "losses": loss}.items()
    }
    _check(columns)
    log_n, log_d, log_loss = (np.log(column) for column in columns.values())
    centre = (float(log_n.mean()), float(log_d.mean()), float(log_loss.min()))
    log_n, log_d, log_loss = log_n - centre[0], log_d - centre[1], log_loss - centre[2]
    return _Runs(log_n, log_d, log_loss, centre, _design(log_n, log_d), delta)


def _design(log_n: Floats, log_d: Floats) -> Floats:
    """The design matrix, (3 * runs, 5): rows of the three terms by columns (a, alpha, b, beta, e)."""
    one, none = np.ones_like(log_n), np.zeros_like(log_n)
    of_size = np.stack([one, -log_n, none, none, none], axis=1)
    of_data = np.stack([none, none, one, -log_d, none], axis=1)
    floor = np.stack([none, none, none, none, one], axis=1)
    return np.concatenate([of_size, of_data, floor])


def _check(columns: dict[str, Floats]) -> None:
    """Raise ValueError for columns of different shapes, too few runs, or values without a logarithm."""
    shapes = {column.shape for column in columns.values()}
    if len(shapes) > 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"sizes, train sizes and losses must be three columns of one length, got {shapes}")
    count = columns["losses"].size
    if count < FEWEST_RUNS:
        raise ValueError(f"a law of {len(PARAMETERS)} parameters needs {FEWEST_RUNS} runs, got {count}")
    for name, column in columns.items():
        bad = column[~(np.isfinite(column) & (column > 0))]
        if bad.size:
            raise ValueError(f"{name} must be positive and finite to have a logarithm, got {bad[0]}")
    for name in ("sizes", "train sizes"):
        if np.unique(columns[name]).size < 2:
            raise ValueError(f"a law needs two distinct {name}, all runs have {columns[name][0]:g}")


def _grid(runs: _Runs) -> list[Floats]:
    """Starting points for the optimizer: 3·3·2·3 = 54 combinations.

    They vary both exponents, E as a fraction of the lowest loss, and the proportions of the other two terms at the
    centre of the runs.
    """
    middle = np.exp(np.median(runs.log_loss))  # in units of the lowest loss, so at least 1
    exponents, floors, shares = (0.1, 0.4, 1.2), (0.1, 0.5, 0.9), (0.2, 0.8)
    return [
        np.array([np.log(share * rest), alpha, np.log((1 - share) * rest), beta, np.log(middle - rest)])
        for alpha, beta in product(exponents, exponents)
        for share, rest in product(shares, [middle - floor for floor in floors])
    ]


def _nearby(runs: _Runs, point: Floats) -> list[Floats]:
    """Starting points for a resample: the fit of all runs, and the first and last of the grid."""
    grid = _grid(runs)
    return [point, grid[0], grid[-1]]


def _minimise(runs: _Runs, weights: Floats, starts: Iterable[Floats]) -> tuple[Floats, float]:
    """The best result of L-BFGS over all starting points, and its summed Huber loss.

    weights: (runs,) multiplicity of each run. starts: (a, alpha, b, beta, e) each, with a and b the logs of the
    terms at the centre of the runs.
    """
    from scipy.optimize import minimize  # slow import that commands without laws do not need

    span = float(runs.log_loss.max()) + DEEPEST
    height, exponent = (-span, span), (0.0, LARGEST_EXPONENT)
    ends = [
        minimize(
            _objective,
            start,
            args=(runs, weights),
            jac=True,
            method="L-BFGS-B",
            bounds=[height, exponent, height, exponent, (-DEEPEST, span)],
            options={"maxiter": 1000, "maxfun": 1500, "ftol": 1e-13, "gtol": 1e-9},
        )
        for start in starts
    ]
    best = min(ends, key=lambda end: float(end.fun))
    return best.x, float(best.fun) * runs.delta**2


def _objective(theta: Floats, runs: _Runs, weights: Floats) -> tuple[float, Floats]:
    """The weighted Huber loss of log L in units of delta², and its gradient (5,).

    In these units a residual of delta costs 1/2, so that L-BFGS's tolerances have the same meaning for every
    delta.
    """
    terms = (runs.design @ theta).reshape(3, -1)  # (3, runs): the logs of A/N^alpha, B/D^beta and E
    top = terms.max(axis=0)
    scaled = np.exp(terms - top)
    total = scaled.sum(axis=0)
    residual = (top + np.log(total) - runs.log_loss) / runs.delta  # (runs,) in units of delta
    slope = np.minimum(np.maximum(residual, -1), 1)  # derivative of the Huber loss
    value = weights @ (slope * (residual - slope / 2))
    pull = scaled * (weights * slope / (runs.delta * total))  # (3, runs), gradient by the log of each term
    return float(value), pull.ravel() @ runs.design


def _law(runs: _Runs, theta: Floats, objective: float) -> Law:
    """The law of optimised, centred parameters, in the original units."""
    a, alpha, b, beta, e = (float(value) for value in theta)
    log_n, log_d, log_loss = runs.centre
    return Law(
        E=float(np.exp(e + log_loss)),
        A=float(np.exp(a + alpha * log_n + log_loss)),
        alpha=alpha,
        B=float(np.exp(b + beta * log_d + log_loss)),
        beta=beta,
        objective=objective,
    )


def _draws(count: int, seed: int, resamples: int) -> Floats:
    """Bootstrap weights, (resamples, runs): how often each run is drawn with replacement."""
    random = np.random.default_rng(seed)
    return random.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)


def _fittable(runs: _Runs, counts: Floats) -> bool:
    """Whether a resample has at least two distinct sizes and training set sizes."""
    drawn = counts > 0
    return min(np.unique(runs.log_n[drawn]).size, np.unique(runs.log_d[drawn]).size) >= 2


def _ends(values: list[float]) -> tuple[float, float]:
    """The bounds of a central 95 % interval."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def _doubts(runs: _Runs, law: Law, intervals: dict[str, tuple[float, float]], lost: int) -> list[str]:
    """Identifiability notes: reasons not to quote an exponent, each as a phrase. lost: unusable resamples."""
    doubts = []
    log_n, log_d, lowest = runs.log_n + runs.centre[0], runs.log_d + runs.centre[1], np.exp(runs.centre[2])
    for name, height, exponent, what, logs in (
        ("alpha", law.A, law.alpha, "sizes", log_n),
        ("beta", law.B, law.beta, "train sizes", log_d),
    ):
        fall = np.ptp(height * np.exp(-exponent * logs)) / lowest
        # Two levels give one difference for a coefficient and an exponent, so a perfect fit proves nothing.
        if np.unique(logs).size < 3:
            doubts.append(f"{name} is fitted to two distinct {what} only, so any value fits equally well")
        elif fall < FLAT:
            doubts.append(f"{name} = {exponent:.3g} has no meaning: the loss does not fall over these {what}")
        elif exponent == LARGEST_EXPONENT:
            doubts.append(f"{name} is {exponent:g}, the limit of the search: these {what} show no power law")
        elif (width := intervals[name][1] - intervals[name][0]) > exponent:
            doubts.append(f"{name} = {exponent:.3g} has an interval {width:.3g} wide, wider than itself")
    if abs(np.corrcoef(runs.log_n, runs.log_d)[0, 1]) > ALIGNED:
        doubts.append("sizes and train sizes are correlated, so their effects cannot be separated")
    if lost:
        doubts.append(f"{lost} resamples held a single size or train size and were left out")
    return doubts
