"""Waves beside a straight line: spectrum, frequency, amplitude, and the residual without them.

The frequency of a wave is its number of cycles in the series. Time is counted from the centre of the series, where
a cosine is even and a sine is odd: then the two are orthogonal for any frequency, the cosine to the line's slope
and the sine to its mean. So each fit is a closed form, and no system of equations is solved.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Points: TypeAlias = npt.NDArray[np.float32]  # (batch, points) in value units
Column: TypeAlias = npt.NDArray[np.float64]  # (batch,)

COARSE = 0.5  # cycles between frequencies of the table; the main lobe of a wave is two cycles wide
SPACING = 0.25  # cycles between the frequencies around the highest one of the table
SLOWEST = 1.0  # cycles; less than a cycle is a bend or a trend
POINTS_PER_CYCLE = 3  # of the fastest wave
ENTERS = 0.2  # least share of the variance that a wave must explain to be taken off
NEARLY = 0.95  # of that share: the peak of a spectrum is known about as well before the wave is fitted
ROWS = 128  # series transformed at once, which a core's cache holds
NOTHING = 1e-3  # variance in squared value units below which there is nothing to explain


@dataclass(frozen=True)
class WaveTable:
    """Cosines and sines of some frequencies, to be fitted beside a straight line.

    frequencies (waves,) float64: every half cycle, from half a cycle below `SLOWEST` to half a cycle above the
                fastest, so that each frequency that is looked for has two neighbours
    centred     (waves,) complex64: what turns a Fourier coefficient into that of time from the centre
    norms       (2 · waves,) float32: one by the sum of squares beside a line, of each cosine and sine in turn
    between     (2, waves, points) float32: those of a quarter of a cycle more, of unit norm beside a line
    time        (points,) float32: from the centre, in points
    """

    frequencies: npt.NDArray[np.float64]
    centred: npt.NDArray[np.complex64]
    norms: npt.NDArray[np.float32]
    between: Points
    time: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Wave:
    """The best wave of each series beside a straight line, zero where it explains too little. (batch,) each.

    frequency in cycles. even, odd: amplitudes of cosine and sine, in value units. energy: the sum of squares that
    the wave explains. lift, tilt: the level and the slope per point that the wave has of its own, which the line
    must give back. tilt_variance: what the wave adds to the variance of the slope, for residuals of unit variance.

    columns: (7, batch), all of these in this order. In one array the waves of some series are chosen by one call.
    """

    columns: npt.NDArray[np.float64]

    @property
    def frequency(self) -> Column:
        return _row(self.columns, 0)

    @property
    def even(self) -> Column:
        return _row(self.columns, 1)

    @property
    def odd(self) -> Column:
        return _row(self.columns, 2)

    @property
    def energy(self) -> Column:
        return _row(self.columns, 3)

    @property
    def lift(self) -> Column:
        return _row(self.columns, 4)

    @property
    def tilt(self) -> Column:
        return _row(self.columns, 5)

    @property
    def tilt_variance(self) -> Column:
        return _row(self.columns, 6)

    @property
    def entered(self) -> npt.NDArray[np.bool_]:
        """Whether it explains enough, (batch,)."""
        explains: npt.NDArray[np.bool_] = self.energy > 0
        return explains

    @property
    def height(self) -> Column:
        """From crest to trough, (batch,) in value units."""
        return 2 * np.hypot(self.even, self.odd)

    def where(self, which: npt.NDArray[np.bool_], other: "Wave") -> "Wave":
        """This wave where `which`, the other one elsewhere."""
        return Wave(np.where(which, self.columns, other.columns))

    def rows(self, rows: npt.NDArray[np.intp]) -> "Wave":
        """The waves of some of the series."""
        return Wave(self.columns[:, rows])

    def among(self, batch: int, rows: npt.NDArray[np.intp]) -> "Wave":
        """These waves in the rows of a larger batch, in which the other series have none."""
        wider = np.zeros((len(self.columns), batch))
        wider[0] = SLOWEST
        wider[:, rows] = self.columns
        return Wave(wider)


@dataclass(frozen=True)
class Moments:
    """Sums of a residual, (batch,) each: of squares, of products of neighbours, and its first and last point.

    sums: (4, batch), all of these in this order.
    """

    points: int
    sums: npt.NDArray[np.float64]

    @property
    def energy(self) -> Column:
        return _row(self.sums, 0)

    @property
    def lagged(self) -> Column:
        return _row(self.sums, 1)

    @property
    def first(self) -> Column:
        return _row(self.sums, 2)

    @property
    def last(self) -> Column:
        return _row(self.sums, 3)

    def where(self, which: npt.NDArray[np.bool_], other: "Moments") -> "Moments":
        """Those of this residual where `which`, those of the other elsewhere."""
        return Moments(self.points, np.where(which, self.sums, other.sums))

    def put(self, rows: npt.NDArray[np.intp], other: "Moments") -> None:
        """Replace those of some series, in place. other: of these series."""
        self.sums[:, rows] = other.sums


def _row(columns: npt.NDArray[np.float64], index: int) -> Column:
    row: Column = columns[index]
    return row


def take_strongest(residual: Points, energy: Column) -> Wave:
    """Fit the strongest wave of each series beside a line, and take it off in place.

    residual: (batch, points), from a line; becomes that of both. energy: (batch,) its sum of squares.
    """
    batch, points = residual.shape
    frequency, power = strongest(residual)
    rows = np.flatnonzero(power >= NEARLY * np.maximum(ENTERS * energy, NOTHING * points))
    wave, residual[rows] = take_off(residual[rows], energy[rows], frequency[rows])
    return wave.among(batch, rows)


def strongest(residual: Points) -> tuple[Column, Column]:
    """The frequency of the highest peak of the spectrum, and the sum of squares that it explains. (batch,) each.

    residual: (batch, points), from a line. The peak is that of the frequencies of the table, then that of the
    frequencies every `SPACING` around it, refined by the parabola through it and its neighbours.
    """
    points = residual.shape[1]
    table = wave_table(points)
    power = spectrum(residual)
    best = power[:, 1:-1].argmax(axis=1) + 1
    rows = np.arange(len(power))
    before, after = _between(residual, best - 1), _between(residual, best)
    around = np.stack(
        [power[rows, best - 1], before, power[rows, best], after, power[rows, best + 1]], dtype=np.float64
    )
    step = around[1:4].argmax(axis=0)  # of the five, the highest of the inner ones
    left, top, right = around[step, rows], around[step + 1, rows], around[step + 2, rows]
    bend = np.minimum(left - 2 * top + right, -1e-12)
    offset = np.clip(0.5 * (left - right) / bend, -0.5, 0.5)
    refined = table.frequencies[best] + SPACING * (step - 1 + offset)
    return np.maximum(refined, SLOWEST), top - 0.25 * (left - right) * offset


def spectrum(residual: Points) -> npt.NDArray[np.float32]:
    """The sum of squares that each wave of the table explains, (batch, waves).

    A periodogram by least squares (Lomb 1976), with the line fitted jointly: a residual has no line, so that its
    products with the waves are those with the waves beside the line. residual: (batch, points), from a line.

    By a Fourier transform of each row, padded with as many zeros. A matrix product would be as fast at 128 points,
    but its sums depend on where in the matrix a row lies.
    """
    from scipy.fft import rfft  # slow import that processes which only read tables do not need

    batch, points = residual.shape
    table = wave_table(points)
    first = round(table.frequencies[0] / COARSE)
    power = np.empty((batch, len(table.frequencies)), np.float32)
    padded = np.zeros((min(batch, ROWS), round(points / COARSE)), np.float32)
    for start in range(0, batch, ROWS):
        some = residual[start : start + ROWS]
        padded[: len(some), :points] = some
        whole = rfft(padded[: len(some)], axis=1)
        turned = whole[:, first : first + len(table.frequencies)] * table.centred  # (rows, waves) complex64
        squares = turned.view(np.float32)  # (rows, 2 · waves)
        np.multiply(squares, squares, out=squares)
        squares *= table.norms
        np.add(squares[:, ::2], squares[:, 1::2], out=power[start : start + ROWS])
    return power


def _between(residual: Points, which: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
    """The sum of squares that a wave explains a quarter of a cycle above one of the table, (batch,).

    which: (batch,) indices into the table.
    """
    cosines, sines = wave_table(residual.shape[1]).between
    even, odd = np.vecdot(residual, cosines[which]), np.vecdot(residual, sines[which])
    power: npt.NDArray[np.float32] = even * even + odd * odd
    return power


def take_off(residual: Points, energy: Column, frequency: Column, least: float = ENTERS) -> tuple[Wave, Points]:
    """Fit a wave of given frequency beside a line, and return it with the residual of both.

    residual: (batch, points), from a line. energy: (batch,) its sum of squares. least: share of the energy below
    which a wave is not taken off.
    """
    points = residual.shape[1]
    cosine, sine = half_turns(frequency, points)
    level, slope, even_norm, odd_norm = overlaps(frequency, points)
    # Near two points a cycle one of the two is hardly there.
    even_norm, odd_norm = np.maximum(even_norm, 0.02 * points), np.maximum(odd_norm, 0.02 * points)
    half = cosine.shape[1]
    late, early = halves(residual)
    part = late + early
    even = np.vecdot(part, cosine)
    if points % 2:
        even -= residual[:, half - 1]  # the point in the centre is in both halves
    odd = np.vecdot(np.subtract(late, early, out=part), sine)
    even, odd = even / even_norm, odd / odd_norm
    explained = even**2 * even_norm + odd**2 * odd_norm
    entered = explained >= np.maximum(least * energy, NOTHING * points)
    even, odd = np.where(entered, even, 0.0), np.where(entered, odd, 0.0)
    lift, tilt = even * level, odd * slope
    cosine *= _column(even)
    cosine -= _column(lift)
    sine *= _column(odd)
    sine -= np.multiply(_column(tilt), wave_table(points).time[points - half :], out=part)
    rest = np.empty_like(residual)
    np.subtract(early, np.subtract(cosine, sine, out=part), out=rest[:, half - 1 :: -1])
    cosine += sine
    np.subtract(late, cosine, out=rest[:, points - half :])
    kept = np.where(entered, explained, 0.0)
    variance = np.where(entered, slope**2 / odd_norm, 0.0)
    return Wave(np.array([frequency, even, odd, kept, lift, tilt, variance])), rest


def fold(residual: Points) -> Points:
    """The even and the odd part of each series around its centre, (2, batch, half), from the centre on."""
    late, early = halves(residual)
    parts = np.empty((2, *early.shape), np.float32)
    np.add(late, early, out=parts[0])
    np.subtract(late, early, out=parts[1])
    parts *= np.float32(0.5)
    return parts


def halves(residual: Points) -> tuple[Points, Points]:
    """The later half of each series and the earlier one backwards, (batch, half) each, from the centre on.

    An odd number of points has the one in the centre in both. The earlier half is a copy: numpy takes several
    times as long for what runs backwards.
    """
    points = residual.shape[1]
    half = (points + 1) // 2
    return residual[:, points - half :], np.ascontiguousarray(residual[:, half - 1 :: -1])


def unfold(even: Points, odd: Points, points: int) -> Points:
    """The series, (batch, points), whose parts `fold` returns."""
    half = even.shape[1]
    series = np.empty((len(even), points), np.float32)
    np.subtract(even, odd, out=series[:, half - 1 :: -1])
    np.add(even, odd, out=series[:, points - half :])
    return series


def half_turns(frequency: Column, points: int) -> Points:
    """Cosine and sine of each frequency in the later half of the series, (2, batch, half), as of `fold`."""
    half = (points + 1) // 2
    angle = _column(2 * np.pi / points * frequency) * wave_table(points).time[points - half :]
    both = np.empty((2, *angle.shape), np.float32)
    np.cos(angle, out=both[0])
    np.sin(angle, out=both[1])
    return both


def curve(wave: Wave, points: int, straightened: bool = False) -> Points:
    """The wave itself, (batch, points) in value units. straightened: without its own level and slope."""
    cosine, sine = half_turns(wave.frequency, points)
    cosine *= _column(wave.even)
    sine *= _column(wave.odd)
    series = unfold(cosine, sine, points)
    if straightened:
        series -= _column(wave.lift)
        series -= _column(wave.tilt) * wave_table(points).time
    return series


def overlaps(frequency: Column, points: int) -> tuple[Column, Column, Column, Column]:
    """What waves share with a line: mean of the cosine, slope of the sine; norms without them. (batch,) each.

    With ω = 2π · frequency / points, the sum of cos(ωt) over the centred points is sin(pω/2) / sin(ω/2),
    Dirichlet's kernel; the sum of t · sin(ωt) is minus its derivative; and cos² and sin² are (1 ± cos 2ωt) / 2.
    """
    omega = 2 * np.pi / points * frequency
    half, whole = omega / 2, points * omega / 2
    sine, cosine, sines, cosines = np.sin(half), np.cos(half), np.sin(whole), np.cos(whole)
    kernel = sines / sine
    derivative = (points * cosines - kernel * cosine) / (2 * sine)
    double = kernel * cosines / cosine
    level, slope = kernel / points, -derivative / spread(points)
    return (
        level,
        slope,
        (points + double) / 2 - points * level**2,
        (points - double) / 2 - spread(points) * slope**2,
    )


def spread(points: int) -> float:
    """The sum of squares of the centred time."""
    return points * (points**2 - 1) / 12


@lru_cache(maxsize=8)  # lengths, of up to 6 MB each
def wave_table(points: int) -> WaveTable:
    """The table of a length."""
    first, last = SLOWEST - COARSE, points / POINTS_PER_CYCLE + COARSE
    frequencies: Column = np.arange(round(first / COARSE), int(last / COARSE) + 1).astype(np.float64) * COARSE
    time = np.arange(points) - (points - 1) / 2
    _, _, even, odd = overlaps(frequencies, points)
    centred = np.exp(2j * np.pi / points * frequencies * time[-1])
    norms = 1 / np.stack([even, odd], axis=1).ravel()
    _, _, even, odd = overlaps(frequencies + SPACING, points)
    angle = np.outer(2 * np.pi / points * (frequencies + SPACING), time)
    between = np.stack([np.cos(angle) / np.sqrt(even)[:, None], np.sin(angle) / np.sqrt(odd)[:, None]])
    return WaveTable(
        frequencies,
        centred.astype(np.complex64),
        norms.astype(np.float32),
        between.astype(np.float32),
        time.astype(np.float32),
    )


def moments(residual: Points, energy: Column | None = None) -> Moments:
    """What the tests need of residuals of mean zero. residual: (batch, points). energy: their sum of squares."""
    energy = sum_of_squares(residual) if energy is None else energy
    lagged = np.vecdot(residual[:, 1:], residual[:, :-1])
    return Moments(residual.shape[1], np.array([energy, lagged, residual[:, 0], residual[:, -1]]))


def persistence(residual: Moments, used: int | npt.NDArray[np.integer]) -> Column:
    """The autocorrelation at lag 1 of each residual, corrected for the parameters that were fitted, (batch,) 0–1.

    A fit of a line lowers it by (2 + 4ρ) / points to first order (Kendall 1954, Tanaka 1984), and of `used`
    parameters by (used + 2 · used · ρ) / points; this is solved for ρ.
    """
    points = residual.points
    raw = residual.lagged / np.maximum(residual.energy, NOTHING * points)
    return np.clip((points * raw + used) / (points - 2 * used), 0.0, 0.995)


def sum_of_squares(residual: Points) -> Column:
    """The sum of squares of each series, (batch,)."""
    energy: Column = np.vecdot(residual, residual).astype(np.float64)
    return energy


def _column(numbers: Column) -> npt.NDArray[np.float32]:
    """One number a series as (batch, 1) float32, to be combined with its points."""
    return numbers.astype(np.float32)[:, None]
