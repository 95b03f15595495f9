"""The page of plots: every class with its series, nothing loaded from elsewhere, wrong input said in one line."""

import base64
import io
import re
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from tsd.cli import main
from tsd.storage import datasets
from tsd.tasks import SINGLE


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, series: pa.Table) -> Path:
    """A run folder that holds 600 series in two parts."""
    folder = tmp_path_factory.mktemp("runs") / "small"
    for part in range(2):
        datasets.write_part(
            str(folder / "series"), part, series.slice(300 * part, 300), SINGLE.tables.series, "key"
        )
    datasets.commit(str(folder / "series"), SINGLE.tables.series, "key", 2, {})
    return folder


def pictures(page: str) -> list[Image.Image]:
    """Every picture of the page."""
    urls = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(url))) for url in urls]


def test_the_page_shows_series_of_every_class_with_what_is_true_of_them(
    run: Path, series: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["look", str(run), "--plots", "--per-class", "2"])
    place = run / "plots.html"
    assert capsys.readouterr().out == f"{place}\n"
    page = place.read_text()
    rows = series.slice(0, 600).to_pylist()
    shown = 0
    for trend in SINGLE.classes["trend"]:
        for noise in SINGLE.classes["noise"]:
            mine = [row for row in rows if (row["truth"]["trend"], row["truth"]["noise"]) == (trend, noise)]
            section = page.split(f'id="{trend}-{noise}"')[1].split("<h3")[0]
            assert re.findall(r"Series ([\d,]+)<", section) == [f"{row['series_id']:,}" for row in mine[:2]]
            assert f"{len(mine)} series" in section
            for row in mine[:2]:
                index = row["measures"]["argmax"]
                assert f"{row['truth']['maximum']}: {row['values'][index]} at {index}" in section
                assert f"{row['measures']['noise']:.2f}" in section
            shown += len(mine[:2])
    drawn = pictures(page)
    assert len(drawn) == shown
    assert {image.size for image in drawn} == {(448, 224)}


def test_the_page_loads_nothing(run: Path, tmp_path: Path) -> None:
    main(["look", str(run), "--plots", "--per-class", "1", "--out", str(tmp_path / "page.html")])
    page = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|<script|<link|@import|url\(", page)
    assert all(source.startswith("data:") for source in re.findall(r'(?:src|href)="(?!#)([^"]*)', page))


def test_series_are_drawn_as_the_run_s_recipe_says_or_as_asked(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (run / "recipe.yaml").write_text(
        "extends: laptop\nname: small\nplots: {style: compact, width: 280, height: 140}\nteacher: {kind: rules}\n"
    )
    try:
        main(["look", str(run), "--plots", "--out", str(out)])
        assert {image.size for image in pictures(out.read_text())} == {(280, 140)}
        main(["look", str(run / "series"), "--plots", "--out", str(out), "--style", "paper", "--per-class", "1"])
        assert {image.size for image in pictures(out.read_text())} == {(1000, 500)}
    finally:
        (run / "recipe.yaml").unlink()


def test_what_cannot_be_shown_is_said_in_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    datasets.write_part(str(other), 0, SINGLE.tables.annotations.empty_table(), SINGLE.tables.annotations, "key")
    datasets.commit(str(other), SINGLE.tables.annotations, "key", 1, {})
    for arguments, named in (
        ([run], "--plots"),
        ([tmp_path / "nowhere", "--plots"], "nowhere does not exist"),
        ([tmp_path / "nowhere"], "nowhere does not exist"),
        ([tmp_path, "--plots"], "holds no finished series"),
        (["nothing://x", "--plots"], "nothing://x/series cannot be read"),
        ([other, "--plots"], "holds another table"),
        ([run, "--plots", "--style", "papr"], "did you mean 'paper'?"),
        ([run, "--plots", "--out", "/proc/x/page.html"], "cannot write to /proc/x"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["look", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert left.value.code == 2
        assert out == ""
        assert err.startswith("tsd: ")
        assert err.count("\n") == 1
        assert named in err
