"""Drawing: the same bytes however they are drawn, the classes even, the mix, lengths and scales as asked for."""

import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawn import points

from tsd.evaluation.scoring import baselines, class_table
from tsd.generation.balancing import even_out
from tsd.generation.blocks import _plan, _realise, draw_block
from tsd.generation.generator import BLOCK, draw_table, split_of
from tsd.generation.screening import FALLING, FLAT, RISING, UNCLEAR, screened, seeming
from tsd.recipe import Recipe, SeriesConfig, load
from tsd.rng import SERIES, generator
from tsd.series.processes import PROCESSES, own_ranges
from tsd.series.truth import QUARTERS, extrema, place
from tsd.storage.schemas import SPLITS
from tsd.tasks import PAPER, PARAMETERS, RICH, SINGLE, Measures, Task, single

SHORT = SeriesConfig(length=32)
ROWS = 3 * BLOCK
MANY = 20 * BLOCK


@pytest.fixture(scope="module")
def whole() -> pa.Table:
    """Three blocks of short series, drawn at once."""
    return draw_table(SINGLE, SHORT, 11, 0, ROWS)


@pytest.fixture(scope="module")
def many(recipe: Recipe) -> pa.Table:
    """Twenty blocks of the laptop study's series."""
    return draw_table(SINGLE, recipe.series, recipe.seed, 0, MANY)


def measured(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """One measure of every row."""
    return np.asarray(table["measures"].combine_chunks().field(name).to_numpy(), float)


# ---- A series is a function of (seed, id) alone


@settings(max_examples=40)
@given(st.data())
def test_any_range_of_ids_is_the_same_rows_of_the_one_draw(whole: pa.Table, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, ROWS - 1))
    count = data.draw(st.integers(1, ROWS - first))
    assert draw_table(SINGLE, SHORT, 11, first, count).equals(whole.slice(first, count))


@settings(max_examples=15)
@given(st.lists(st.integers(1, ROWS - 1), unique=True, max_size=6).map(sorted))
def test_any_layout_of_parts_in_any_order_gives_the_one_draw(whole: pa.Table, cuts: list[int]) -> None:
    bounds = list(zip([0, *cuts], [*cuts, ROWS], strict=True))
    parts = {low: draw_table(SINGLE, SHORT, 11, low, high - low) for low, high in reversed(bounds)}
    assert pa.concat_tables(parts[low] for low in sorted(parts)).equals(whole)


def test_asking_for_more_series_changes_none_of_the_first_ones() -> None:
    few = draw_table(SINGLE, SHORT.model_copy(update={"count": 100}), 5, 0, 100)
    more = draw_table(SINGLE, SHORT.model_copy(update={"count": 5000, "blocks_per_part": 3}), 5, 0, 5000)
    assert more.slice(0, 100).equals(few)


def test_another_seed_gives_other_series_and_the_same_splits(whole: pa.Table) -> None:
    other = draw_table(SINGLE, SHORT, 12, 0, BLOCK)
    mine = whole.slice(0, BLOCK)
    same = [a == b for a, b in zip(mine["values"].to_pylist(), other["values"].to_pylist(), strict=True)]
    assert sum(same) == 0
    assert other["split"].equals(mine["split"])


def test_no_series_is_drawn_twice(whole: pa.Table) -> None:
    assert len({tuple(row) for row in whole["values"].to_pylist()}) == ROWS


def test_a_far_id_can_be_drawn_without_those_before_it() -> None:
    far = 10**10 - 3
    assert draw_table(SINGLE, SHORT, 1, far, 3)["series_id"].to_pylist() == [far, far + 1, far + 2]


def test_series_of_several_lengths_are_any_range_of_one_draw_too() -> None:
    config = SeriesConfig(length=[32, 48, 100])
    drawn = draw_table(SINGLE, config, 3, 0, 2 * BLOCK)
    assert draw_table(SINGLE, config, 3, 1000, 100).equals(drawn.slice(1000, 100))


def test_a_fresh_process_with_more_threads_draws_the_same_bytes(whole: pa.Table) -> None:
    code = (
        "import hashlib\nfrom tsd.recipe import SeriesConfig\nfrom tsd.generation.blocks import draw_block\n"
        "from tsd.tasks import SINGLE\n"
        "block = draw_block(SINGLE, SeriesConfig(length=32), 11, 1)\n"
        "print(hashlib.sha256(block.values.tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "4")
    }
    assert len(found) == 1
    mine = draw_block(SINGLE, SHORT, 11, 1)
    assert np.array_equal(mine.values, points(whole)[BLOCK : 2 * BLOCK].ravel())


def test_the_order_in_which_a_mix_is_written_does_not_matter() -> None:
    there = draw_block(SINGLE, SHORT.model_copy(update={"mix": {"season": 1.0, "linear": 2.0}}), 1, 0)
    back = draw_block(SINGLE, SHORT.model_copy(update={"mix": {"linear": 4.0, "season": 2.0, "shift": 0.0}}), 1, 0)
    assert np.array_equal(there.values, back.values)


# ---- Split


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=50))
def test_a_split_depends_on_the_id_and_not_on_its_company(ids: list[int]) -> None:
    together = split_of(np.array(ids, np.int64), (0.8, 0.1, 0.1))
    alone = [int(split_of(np.array([one], np.int64), (0.8, 0.1, 0.1))[0]) for one in ids]
    assert together.tolist() == alone


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_splits_have_the_shares_that_were_asked_for(shares: tuple[float, float, float]) -> None:
    count = 200_000
    found = np.bincount(split_of(np.arange(count), shares), minlength=3) / count
    # five standard errors of a share of 200,000 draws; none where the share is 0 or 1
    margin = 5 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / count)
    assert (np.abs(found - shares) <= margin).all()


def test_the_split_column_is_the_hash_of_the_id(whole: pa.Table) -> None:
    expected = [SPLITS[i] for i in split_of(whole["series_id"].to_numpy(), SHORT.split)]
    assert whole["split"].to_pylist() == expected


def test_the_first_splits_are_what_they_have_always_been() -> None:
    # SplitMix64 of 0, 1, 2 … as published: 0 gives 0xE220A8397B1DCDAF, a share of .883.
    z = np.array([0], np.int64)
    shares = [(0.89, 0.01, 0.10), (0.88, 0.01, 0.11), (0.87, 0.01, 0.12)]
    assert [int(split_of(z, share)[0]) for share in shares] == [0, 1, 2]


# ---- Selection


@given(st.lists(st.integers(0, 8), min_size=1, max_size=200), st.data())
def test_the_cells_are_filled_to_one_level_with_their_earliest_candidates(
    cells: list[int], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(cells)))
    kept = even_out(np.array(cells, np.uint16), count)
    assert len(set(kept.tolist())) == count
    assert kept.tolist() == sorted(kept.tolist())
    there, here = Counter(cells), Counter(cells[i] for i in kept)
    level = max(here.values())
    for cell, size in there.items():
        assert here[cell] >= min(size, level - 1)
        mine = [i for i, other in enumerate(cells) if other == cell]
        assert [i for i in kept if cells[i] == cell] == mine[: here[cell]]


def test_without_candidates_to_spare_all_are_kept() -> None:
    block = draw_block(SINGLE, SHORT.model_copy(update={"oversampling": 1.0}), 0, 0)
    assert len(block.lengths) == BLOCK


@pytest.mark.parametrize(
    ("task", "measured"), [(SINGLE, 1.25), (single(PAPER), 2.0), (RICH, 2.0)], ids=["single", "paper", "rich"]
)
def test_a_quarter_of_the_spare_candidates_of_single_is_measured_and_all_of_other_tasks(
    task: Task, measured: float
) -> None:
    counted: list[int] = []

    def measure(values: npt.NDArray[np.uint8]) -> Measures:
        counted.append(len(values))
        return task.measure(values)

    config = SHORT.model_copy(update={"oversampling": 2.0})
    spied = draw_block(replace(task, measure=measure), config, 0, 0)
    assert counted == [measured * BLOCK]
    assert np.array_equal(spied.values, draw_block(task, config, 0, 0).values)


def test_strata_of_twice_the_weight_are_filled_to_half_the_level() -> None:
    cells = np.repeat([0, 1], 300)
    kept = even_out(cells, 300, np.repeat([2, 1], 300).astype(np.uint16))
    assert np.bincount(cells[kept]).tolist() == [100, 200]


def test_a_series_seems_flat_directed_or_neither_by_its_line_and_its_ends() -> None:
    t = np.linspace(0, 1, 128)
    arch = 99 * np.sin(np.pi * t)
    shown = np.array([99 * t, 99 - 99 * t, 0.78 * arch, 0.78 * arch + 22 * t])
    values = shown.round().astype(np.uint8)
    kinds = seeming(values, values.min(axis=1), values.max(axis=1))
    assert kinds.tolist() == [RISING, FALLING, FLAT, UNCLEAR]


def test_what_is_measured_of_the_candidates_is_clear_more_often_and_has_more_even_extrema() -> None:
    (plan,) = _plan(SINGLE, SHORT, generator(3, SERIES, 0), 2000)
    drawn = _realise(SINGLE, SHORT, generator(3, SERIES, 1), plan)
    kept = screened(drawn.values, plan.targets.noise, 0.5, QUARTERS)
    assert len(set(kept.tolist())) == len(kept) == 1000

    def unclear(some: npt.NDArray[np.uint8]) -> float:
        return float((seeming(some, some.min(axis=1), some.max(axis=1)) == UNCLEAR).mean())

    def both_at_the_ends(some: npt.NDArray[np.uint8]) -> float:
        found = extrema(some)
        return float((place(found["argmax"], 32) * place(found["argmin"], 32) == 0).mean())

    assert 0 < unclear(drawn.values[kept]) < 0.7 * unclear(drawn.values)
    assert both_at_the_ends(drawn.values[kept]) < both_at_the_ends(drawn.values)


def test_the_more_candidates_the_more_even_are_the_joint_cells() -> None:
    def unevenness(oversampling: float) -> float:
        config = SHORT.model_copy(update={"oversampling": oversampling})
        classes = [draw_block(single(PAPER), config, 0, block).classes for block in range(4)]
        cells = np.concatenate([np.ravel_multi_index([c[f] for f in SINGLE.classes], [3] * 4) for c in classes])
        return float(np.bincount(cells, minlength=81).std())

    assert unevenness(1.0) > unevenness(1.5) > unevenness(3.0)


# ---- Balance, on the laptop recipe; benchmarks/series.py holds 100,000 series to the same bounds


def test_every_class_of_every_facet_has_between_25_and_45_percent(many: pa.Table) -> None:
    for facet, shares in class_table(SINGLE, many).items():
        for name, share in shares.items():
            assert 0.25 <= share <= 0.45, f"{facet} {name} {share:.3f}"


def test_the_trend_does_not_give_the_extrema_away(many: pa.Table) -> None:
    found = baselines(SINGLE, many)
    assert found["maximum"]["given"] <= 0.55
    assert found["minimum"]["given"] <= 0.55


def test_trend_and_noise_are_nearly_independent(many: pa.Table) -> None:
    classes = SINGLE.classify(
        {name: measured(many, name) for name in ("trend_strength", "noise", "argmax", "argmin")}, 128
    )
    cells = np.bincount(classes["trend"] * 3 + classes["noise"], minlength=9) / MANY
    assert cells.min() > 0.05
    assert cells.max() < 0.17


def test_no_more_series_are_close_to_a_boundary_than_before_the_mix() -> None:
    # The shares of the generator with one process, on 20,480 series of the laptop recipe with the paper's truth.
    recipe = load("laptop", ["truth=paper"])
    table = draw_table(single(PAPER), recipe.series, recipe.seed, 0, MANY)
    noise = measured(table, "noise_rms")
    assert (np.abs(np.abs(measured(table, "trend_delta")) - 3) < 1).mean() <= 0.1348
    assert (np.abs(noise / 2 - 1) < 0.1).mean() <= 0.025
    assert (np.abs(noise / 12 - 1) < 0.1).mean() <= 0.0743
    assert (measured(table, "maximum_lead") < 2).mean() <= 0.3052
    assert (measured(table, "minimum_lead") < 2).mean() <= 0.3037


def test_few_series_are_close_to_a_boundary(many: pa.Table) -> None:
    noise = measured(many, "noise")
    assert (np.abs(np.abs(measured(many, "trend_strength")) - 1) < 0.1).mean() <= 0.05
    assert (np.abs(noise / 2 - 1) < 0.1).mean() <= 0.025
    assert (np.abs(noise / 10 - 1) < 0.1).mean() <= 0.0743
    assert (measured(many, "maximum_lead") < 2).mean() <= 0.2
    assert (measured(many, "minimum_lead") < 2).mean() <= 0.2


def test_most_trends_are_clear_and_some_are_not(many: pa.Table) -> None:
    strength = np.abs(measured(many, "trend_strength"))
    flat = strength < 1
    assert 0.1 < (strength[flat] > 0.4).mean() <= 0.25
    assert 0.03 < (strength[~flat] < 1.3).mean() <= 0.11


def test_the_splits_are_alike_in_their_classes(many: pa.Table) -> None:
    tables = {split: class_table(SINGLE, many.filter(pa.compute.equal(many["split"], split))) for split in SPLITS}
    for facet, shares in tables["train"].items():
        for name, share in shares.items():
            # about 2,000 rows: five standard errors are .053 at a share of a third
            assert abs(tables["test"][facet][name] - share) < 0.06
            assert abs(tables["validation"][facet][name] - share) < 0.06


# ---- Values, truth and parameters


def test_values_are_integers_of_0_to_99_and_as_many_as_asked_for(many: pa.Table, recipe: Recipe) -> None:
    assert set(pa.compute.list_value_length(many["values"]).to_pylist()) == {recipe.series.length}
    assert points(many).max() <= 99


def test_the_truth_column_is_measured_on_the_values_column(many: pa.Table) -> None:
    part = many.slice(777, 200)
    found = SINGLE.measure(points(part))
    assert part["truth"].to_pylist() == SINGLE.truth(found, 128).to_pylist()
    assert part["measures"].to_pylist() == [
        dict(zip(found, row, strict=True))
        for row in zip(*(column.tolist() for column in found.values()), strict=True)
    ]


def test_a_process_has_its_own_parameters_and_no_others(many: pa.Table) -> None:
    common = {"level", "drift", "sigma", "tau"}
    assert set(PARAMETERS) == common | {"swing"} | set(own_ranges())
    for row in many.slice(0, 500).to_pylist():
        process = PROCESSES[row["process"]]
        swing = {"swing"} if process.swings else set()
        named = {name for name, value in row["parameters"].items() if value is not None}
        assert named == common | swing | set(process.ranges)
        for name, span in process.ranges.items():
            assert span.low <= row["parameters"][name] <= np.float32(span.high)


def test_the_parameters_are_those_of_the_finished_series() -> None:
    # Nearly without shocks, a series is its mean: level + drift · (t − ½).
    quiet = {"noise_rms": ((0.01, 0.02),) * 3, "tau": ((0.01, 0.02),) * 3, "mix": {"linear": 1.0}}
    table = draw_table(SINGLE, SeriesConfig.model_validate(quiet), 0, 0, 300)
    t = np.linspace(-0.5, 0.5, 128)
    for row in table.to_pylist():
        p = row["parameters"]
        if p["sigma"] < 0.3:
            assert row["values"] == pytest.approx(p["level"] + p["drift"] * t, abs=0.5 + 5 * p["sigma"])


# ---- Mix


def test_processes_are_drawn_as_often_as_the_default_mix_says(many: pa.Table, recipe: Recipe) -> None:
    total = sum(recipe.series.mix.values())
    counts = Counter(many["process"].to_pylist())
    assert set(counts) == set(PROCESSES)
    for name, weight in recipe.series.mix.items():
        # Candidates have the mix's shares; what evens out the classes takes more of one than of another.
        assert counts[name] / MANY == pytest.approx(weight / total, rel=0.25)


def test_without_selection_a_mix_is_met_to_the_series() -> None:
    config = SHORT.model_copy(update={"mix": {"linear": 3.0, "season": 1.0}, "oversampling": 1.0})
    counts = Counter(draw_table(SINGLE, config, 0, 0, BLOCK)["process"].to_pylist())
    assert counts == {"linear": 768, "season": 256}


def test_a_recipes_ranges_are_those_that_are_drawn_from() -> None:
    config = SeriesConfig(length=64, mix={"season": 1.0}, ranges={"season_period": (0.5, 0.6)})
    periods = (
        draw_table(SINGLE, config, 0, 0, 500)["parameters"].combine_chunks().field("season_period").to_numpy()
    )
    assert 0.5 <= periods.min() < 0.51
    assert 0.59 < periods.max() <= np.float32(0.6)


# ---- Lengths


def test_each_of_several_lengths_is_drawn_equally_often_and_measured_by_its_own_windows() -> None:
    config = SeriesConfig(length=[200, 32, 1024])
    table = draw_table(SINGLE, config, 2, 0, BLOCK)
    lengths = pa.compute.list_value_length(table["values"]).to_numpy()
    counts = Counter(lengths.tolist())
    assert set(counts) == {32, 200, 1024}
    assert all(abs(count / BLOCK - 1 / 3) < 0.05 for count in counts.values())
    for length in counts:
        some = table.filter(pa.array(lengths == length))
        assert some["truth"].to_pylist() == SINGLE.truth(SINGLE.measure(points(some)), length).to_pylist()


@pytest.mark.parametrize("length", [32, 500, 1024])
def test_the_classes_are_even_at_other_lengths_too(length: int) -> None:
    table = draw_table(SINGLE, SeriesConfig(length=length), 0, 0, 4 * BLOCK)
    for facet, shares in class_table(SINGLE, table).items():
        for name, share in shares.items():
            assert 0.2 <= share <= 0.47, f"{facet} {name} {share:.3f}"


# ---- Scale


def test_series_on_their_own_range_reach_0_and_99_and_are_as_many_as_asked_for(
    many: pa.Table, recipe: Recipe
) -> None:
    values = points(many)
    full = (values.min(axis=1) == 0) & (values.max(axis=1) == 99)
    assert full.mean() == pytest.approx(recipe.series.own_range, abs=0.06)
    other = draw_block(SINGLE, SHORT.model_copy(update={"own_range": 1.0}), 0, 0).values.reshape(BLOCK, -1)
    assert (other.min(axis=1) == 0).all()
    assert (other.max(axis=1) == 99).all()


def test_all_kinds_of_trend_and_noise_are_found_on_either_scale(many: pa.Table) -> None:
    values = points(many)
    full = (values.min(axis=1) == 0) & (values.max(axis=1) == 99)
    for scale in (full, ~full):
        for facet in ("trend", "noise"):
            assert min(class_table(SINGLE, many.filter(pa.array(scale)))[facet].values()) > 0.08


def test_on_the_one_scale_few_series_are_cut_off(many: pa.Table) -> None:
    values = points(many)
    one_scale = values[(values.min(axis=1) > 0) | (values.max(axis=1) < 99)]
    at_an_end = (one_scale == 0).sum(axis=1) + (one_scale == 99).sum(axis=1)
    assert (at_an_end > 3).mean() < 0.02


def test_some_series_have_no_noise_and_next_to_none_is_constant(many: pa.Table) -> None:
    values = np.stack(many["values"].to_numpy(zero_copy_only=False))
    still = (np.diff(values.astype(int), axis=1) == 0).mean(axis=1)
    assert 0.01 <= (still > 0.6).mean() <= 0.1  # as a clean step or a slow ramp has it
    assert (values.max(axis=1) == values.min(axis=1)).mean() <= 0.001
