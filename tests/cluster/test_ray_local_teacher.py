"""A teacher of one's own through the commands: trained, asked in the pipeline, and students that look or read."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.commands import command, run_each

from tsd.storage import datasets
from tsd.storage.schemas import ALL_RIGHT
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

PICTURES = 1500
OWN = (
    f"teacher={{kind: local, train: {{size: 0.03M, pictures: {PICTURES}, batch_size: 8}}}}",
    "series.count=3000",
    "students.models=[0.03M, {name: looks, size: 0.03M, modality: image}]",
    "students.train_sizes=[200]",
    "curation.against_truth=keep",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The study of a teacher of one's own, and what its commands printed: its teacher first, then the rest."""
    out = tmp_path_factory.mktemp("looking")
    printed = run_each(command(out, *OWN, stage="teacher train"), command(out, *OWN), timeout=600)
    return out / "tiny", printed.split("the teacher is stored in")


def test_training_a_teacher_says_how_well_it_reads_and_where_it_lies(study: tuple[Path, list[str]]) -> None:
    folder, (trained, _) = study
    lines = trained.splitlines()
    for facet in SINGLE.facets:
        (line,) = [line for line in lines if line.startswith(f"  {facet.name} ") and "right:" in line]
        assert all(name in line for name in facet.classes)
    files = {path.name for path in (folder / "teacher").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= files
    assert {"preprocessor_config.json", "generation_config.json"} <= files
    card = (folder / "teacher/README.md").read_text()
    assert f"{PICTURES:,} descriptions" in card
    assert "| score | share right |" in card


def test_the_study_takes_the_teacher_that_is_there(study: tuple[Path, list[str]]) -> None:
    folder, (_, printed) = study
    assert printed.startswith(f" {folder}/teacher")
    assert "Ask the teacher (own-0.03M)" in printed
    assert "Teacher: own" not in printed
    seconds = json.loads((folder / "timings.json").read_text())
    assert seconds["Train the teacher"] > 0


def test_what_the_teacher_said_is_what_its_folder_says_of_the_plots(study: tuple[Path, list[str]]) -> None:
    from tsd.inference.decoding import describe
    from tsd.models.students import load_model
    from tsd.models.tokenizer import load_tokenizer
    from tsd.plots.rasterised import draw

    folder, _ = study
    rows = datasets.open_dataset(str(folder / "annotations"), SINGLE.tables.annotations).read().to_pylist()
    series = datasets.open_dataset(str(folder / "series"), SINGLE.tables.series).read().to_pylist()
    assert [row["series_id"] for row in rows] == [row["series_id"] for row in series]
    assert len(rows) == 3000
    model, tokenizer = (load(str(folder / "teacher")) for load in (load_model, load_tokenizer))
    some = slice(1000, 1030)
    ink = draw([[np.array(row["values"], np.uint8)] for row in series[some]])
    assert describe(model, tokenizer, SINGLE, ink, 256) == [row["text"] for row in rows[some]]
    assert all(row["input_tokens"] > 16 and row["output_tokens"] > 16 for row in rows if row["status"] == "ok")


def test_students_of_both_views_are_trained_and_scored(study: tuple[Path, list[str]]) -> None:
    folder, _ = study
    runs = datasets.open_dataset(str(folder / "runs"), SINGLE.tables.runs).read().to_pylist()
    modalities = {run["student"]: run["modality"] for run in runs}
    assert modalities == {"0.03M": "text", "looks": "image"}
    by_modality = {run["modality"]: run for run in runs}
    assert by_modality["image"]["flops"] < by_modality["text"]["flops"]
    sizes = [by_modality[modality]["parameters_without_embeddings"] for modality in ("image", "text")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert all(run[ALL_RIGHT] for run in runs)


def test_the_report_shows_what_the_teacher_saw_and_sets_the_views_side_by_side(
    study: tuple[Path, list[str]],
) -> None:
    folder, _ = study
    page = (folder / "report.html").read_text()
    assert 4 <= page.count("What the teacher saw") == page.count("data:image/png;base64,")
    assert "img-src data:" in page  # else a browser shows none of them
    assert "Text and image input: in 1 comparison at equal parameters and examples" in page
