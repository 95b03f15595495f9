"""Plots: the same pictures as matplotlib's own, a look that depends on the series alone, PNGs that all read."""

import io
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage.metrics import structural_similarity

from tsd.plots import png
from tsd.plots.plotter import Look, Plotter, choose_look, figure
from tsd.plots.rasterised import Curve
from tsd.recipe import PlotConfig

PAPER, COMPACT = PlotConfig(style="paper"), PlotConfig()
SMALLEST = PlotConfig(width=140, height=140)
VARIED = {config.style: config.model_copy(update={"vary": True}) for config in (PAPER, COMPACT)}
LENGTHS = (32, 128, 1024)


def pixels(picture: bytes) -> npt.NDArray[np.int_]:
    """A PNG as a teacher's reader takes it, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)


def from_scratch(curves: list[Curve], look: Look) -> npt.NDArray[np.int_]:
    """The same plot from a new matplotlib figure."""
    file = io.BytesIO()
    figure(curves, look).savefig(file, format="png")
    return pixels(file.getvalue())


def series_of(length: int) -> dict[str, Curve]:
    """Series that are hard to draw, each in its own way."""
    rng = np.random.default_rng(length)
    walk = 50 + np.cumsum(rng.normal(0, 8 / length**0.5, length))
    return {
        "spikes": rng.integers(0, 100, length, dtype=np.uint8),
        "teeth": (np.arange(length) % 2 * 99).astype(np.uint8),
        "walk": np.clip(walk, 0, 99).astype(np.uint8),
        "waves": (50 + 40 * np.sin(0.7 * np.arange(length))).astype(np.uint8),
        "bottom": np.zeros(length, np.uint8),
        "middle": np.full(length, 50, np.uint8),
        "top": np.full(length, 99, np.uint8),
    }


def assert_same(picture: bytes, curves: list[Curve], look: Look) -> None:
    drawn, wanted = pixels(picture), from_scratch(curves, look)
    assert drawn.shape == wanted.shape == (look.height, look.width, 3)
    assert np.abs(drawn - wanted).mean() <= 0.5
    assert structural_similarity(drawn, wanted, channel_axis=2, data_range=255) >= 0.99


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("config", [PAPER, COMPACT, SMALLEST], ids=["paper", "compact", "smallest"])
def test_a_picture_is_the_one_that_matplotlib_draws_from_scratch(config: PlotConfig, length: int) -> None:
    look = choose_look(config, 0, 0)
    curves = list(series_of(length).values())
    for curve, picture in zip(curves, Plotter()(curves, [look] * len(curves)), strict=True):
        assert_same(picture, [curve], look)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("style", ["paper", "compact"])
def test_a_varied_picture_is_the_one_that_matplotlib_draws_from_scratch(style: str, length: int) -> None:
    curves = list(series_of(length).values())
    looks = [choose_look(VARIED[style], length, i) for i in range(len(curves))]
    for curve, look, picture in zip(curves, looks, Plotter()(curves, looks), strict=True):
        assert_same(picture, [curve], look)


@pytest.mark.parametrize("config", [PAPER, COMPACT, *VARIED.values()])
def test_two_series_are_drawn_into_one_plot_with_a_legend(config: PlotConfig) -> None:
    series = series_of(128)
    pairs = [[series["walk"], series["spikes"]], [series["top"], series["bottom"]]]
    looks = [choose_look(config, 0, i) for i in range(2)]
    for pair, look, picture in zip(pairs, looks, Plotter()(pairs, looks), strict=True):
        assert_same(picture, pair, look)
    swapped = Plotter()([pairs[0][::-1]], looks[:1])
    assert swapped != Plotter()([pairs[0]], looks[:1])


@settings(max_examples=30)  # each draws a whole figure
@given(st.lists(st.integers(0, 99), min_size=2, max_size=300))
def test_no_series_is_drawn_otherwise_than_from_scratch(values: list[int]) -> None:
    curve = np.array(values, np.uint8)
    assert_same(PLOTTER([curve], [LOOK])[0], [curve], LOOK)


PLOTTER, LOOK = Plotter(), choose_look(COMPACT, 0, 0)


@pytest.mark.parametrize("config", [PAPER, COMPACT, *VARIED.values()])
def test_a_picture_does_not_depend_on_its_company(config: PlotConfig) -> None:
    curves = [curve for length in LENGTHS for curve in series_of(length).values()]
    batch: list[Curve | list[Curve]] = [*curves, [curves[0], curves[1]], curves[0]]
    looks = [choose_look(config, 7, i) for i in range(len(batch) - 1)]
    looks.append(looks[0])
    together = Plotter()(batch, looks)
    assert together[-1] == together[0]
    assert len(set(together)) == len(batch) - 1
    plotter = Plotter()
    backwards = [plotter([batch[i]], [looks[i]])[0] for i in reversed(range(len(batch)))]
    assert backwards[::-1] == together


def test_a_batch_is_a_table_of_series_or_a_list_of_them() -> None:
    table = np.random.default_rng(0).integers(0, 100, (3, 64), dtype=np.uint8)
    looks = [LOOK] * 3
    assert Plotter()(table, looks) == Plotter()(list(table), looks) == Plotter()([[row] for row in table], looks)


def test_looks_that_vary_depend_on_the_seed_and_the_series_alone() -> None:
    for config in VARIED.values():
        looks = [choose_look(config, 3, i) for i in range(200)]
        assert looks == [choose_look(config, 3, i) for i in range(200)]
        assert looks != [choose_look(config, 4, i) for i in range(200)]
        assert len({look.colours for look in looks}) > 20
        assert all(first != second for look in looks for first, second in [look.colours])
        assert len({look.line_width for look in looks}) == 200
        assert {(look.width, look.height) for look in looks} == set(config.sizes)
    assert len(set(VARIED["compact"].sizes)) == 15
    assert len({choose_look(COMPACT, 3, i) for i in range(200)}) == 1


@pytest.mark.parametrize("colour", ["black", "C0", "tab:red"])
def test_the_line_has_its_colour(colour: str) -> None:
    from matplotlib.colors import to_rgb

    look = Look("compact", 448, 224, (colour, "black"), 4.0)
    (picture,) = Plotter()([np.full(64, 50, np.uint8)], [look])
    middle = pixels(picture)[:, 200]  # a column of pixels, far from the grid's lines
    wanted = np.rint(np.array(to_rgb(colour)) * 255).astype(int)
    assert (middle == wanted).all(axis=1).sum() >= 4


@pytest.mark.parametrize("config", [PAPER, COMPACT])
def test_a_picture_is_a_whole_png_with_right_checksums(config: PlotConfig) -> None:
    curves = list(series_of(128).values())
    look = choose_look(config, 0, 0)
    batch: list[Curve | list[Curve]] = [*curves, curves[:2]]
    for item, picture in zip(batch, Plotter()(batch, [look] * len(batch)), strict=True):
        image = Image.open(io.BytesIO(picture))
        image.verify()  # the checksum of every chunk
        assert (image.format, image.size) == ("PNG", config.sizes[0])
        assert image.mode == ("RGBA" if isinstance(item, list) else "P")
        start = picture.index(b"IDAT")
        length = int.from_bytes(picture[start - 4 : start], "big")
        rows = zlib.decompress(picture[start + 4 : start + 4 + length])  # checks the stream's own checksum
        bytes_a_pixel = 4 if isinstance(item, list) else 1
        assert len(rows) == look.height * (1 + bytes_a_pixel * look.width)
        assert set(rows[:: 1 + bytes_a_pixel * look.width]) == ({0} if isinstance(item, list) else {2})  # filters


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 2**32))
def test_pieces_of_a_picture_join_to_what_was_there(heights: list[int], seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (sum(heights), 700), dtype=np.uint8)
    ends = np.cumsum(heights)
    pieces = [
        png.deflate(rows[end - height : end], last=i == len(heights) - 1)
        for i, (height, end) in enumerate(zip(heights, ends, strict=True))
    ]
    content = png.body(pieces)
    assert zlib.decompress(content[8 : 8 + int.from_bytes(content[:4], "big")]) == rows.tobytes()


def test_a_higher_series_is_drawn_higher_up_on_the_same_axes() -> None:
    low, high, empty = (
        pixels(p).sum(axis=2) for p in PLOTTER(np.array([[10], [90], [0]]).repeat(128, 1), [LOOK] * 3)
    )

    def row_of_line(picture: npt.NDArray[np.int_]) -> int:
        # Where the middle columns are dark in this picture and not in that of a series at the bottom.
        middle = slice(LOOK.width // 2 - 40, LOOK.width // 2 + 40)
        return int((empty[:, middle] - picture[:, middle]).sum(axis=1).argmax())

    assert row_of_line(high) < LOOK.height / 3 < row_of_line(low)
    # Everything left of the axes, the words and the ticks, is the same for all.
    assert (low[:, :44] == high[:, :44]).all()
