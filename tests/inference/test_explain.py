"""`tsd explain` through the command line: a good CSV gets an answer, a wrong one gets one line and exit code 2."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from support.ramp import LENGTH, RAMP

from tsd.cli import main
from tsd.measurements import MOST_ROWS
from tsd.models.tokenizer import build_tokenizer
from tsd.storage import folders
from tsd.tasks import SINGLE


@pytest.fixture(scope="module")
def students_folder(tmp_path_factory):
    """A folder of two students: one with random weights, one that has learned a single answer by heart."""
    import torch

    from tsd.models import students
    from tsd.recipe import Student

    folder = tmp_path_factory.mktemp("students")
    extrema = "The maximum lies at the end. The minimum lies at the beginning."
    reply = json.dumps({"trend": "It rises from 5 to 94.", "noise": "The noise is low.", "extrema": extrema})
    prompt = SINGLE.student_prompt(RAMP)
    tokenizer = build_tokenizer([prompt, reply] * 2, 512)
    model = students.build(Student(name="0.03M"), tokenizer, 0, 512)
    students.export(model, tokenizer, folder / "untrained", {"length": LENGTH, "task": "single"})

    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    asked = tokenizer(chat, add_special_tokens=False)["input_ids"]
    said = tokenizer(reply + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([asked + said])
    targets = torch.tensor([[-100] * len(asked) + said])
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(80):
        model(input_ids=tokens, labels=targets).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    students.export(model, tokenizer, folder / "trained", {"length": LENGTH, "task": "single"})
    return folder


@pytest.fixture(scope="module")
def looking(tmp_path_factory):
    """A student that looks, with random weights."""
    from tsd.models import students
    from tsd.recipe import Student

    folder = tmp_path_factory.mktemp("looking") / "student"
    tokenizer = build_tokenizer([SINGLE.image_prompt] * 2, 512, pictures=True)
    model = students.build(Student(name="0.03M", modality="image"), tokenizer, 0, 512)
    students.export(model, tokenizer, folder, {"length": LENGTH, "task": "single", "modality": "image"})
    return folder


@pytest.fixture
def refused(capsys, tmp_path, students_folder):
    """Run `tsd explain` on what it must refuse; gives the one line that it says."""

    def run(content=None, *options, file=None, model=None):
        path = Path(file) if file else tmp_path / "mine.csv"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(SystemExit) as left:
            main(["explain", str(path), "--model", str(model or students_folder / "untrained"), *options])
        out, err = capsys.readouterr()
        assert left.value.code == 2
        assert out == ""
        assert err.startswith("tsd: ")
        assert err.count("\n") == 1
        assert "Traceback" not in err
        return err

    return run


@pytest.fixture
def ramp(tmp_path):
    path = tmp_path / "ramp.csv"
    path.write_text("level\n" + "\n".join(str(value) for value in RAMP) + "\n")
    return path


# ---- Wrong CSV


def test_text_in_the_column_is_named_with_its_line_column_and_value(refused):
    said = refused("t,level\n1,2\n2,abc\n3,4\n", "--column", "level")
    assert "mine.csv line 3, column 'level': 'abc'" in said


@pytest.mark.parametrize(
    ("cell", "named"), [("NaN", "NaN"), ("inf", "inf"), ("", "the cell is empty"), (" ", "the cell is empty")]
)
def test_a_cell_without_a_finite_number_is_named_with_its_line(refused, cell, named):
    said = refused(f"t,level\n1,1\n2,{cell}\n3,3\n", "--column", "level")
    assert "line 3, column 'level'" in said
    assert named.lower() in said.lower()
    assert "fill or drop" in said


def test_a_column_of_true_and_false_is_no_series(refused):
    assert "line 2, column 'on'" in refused("on\ntrue\nfalse\n")


@pytest.mark.parametrize(("content", "named"), [("v\n1\n", "one row"), ("v\n", "no row"), ("", "is empty")])
def test_a_file_with_fewer_than_two_rows_is_refused(refused, content, named):
    said = refused(content)
    assert named in said
    assert "at least 2" in said


def test_a_constant_series_has_nothing_to_describe(refused):
    assert "column 'v' is 5 throughout" in refused("v\n5\n5\n5\n")


def test_several_numeric_columns_ask_for_column_and_name_them(refused):
    said = refused("north,south\n1,2\n3,4\n")
    assert "--column" in said
    assert "north, south" in said


def test_a_column_of_numbers_with_a_slip_is_not_passed_over_for_the_column_of_times(refused):
    assert "line 3, column 'level': 'x'" in refused("t,level\n1,5\n2,x\n3,4\n")


def test_an_unknown_column_is_answered_with_the_nearest_name(refused):
    assert "no column 'temprature', did you mean 'temperature'?" in refused(
        "temperature\n1\n2\n", "--column", "temprature"
    )


def test_a_file_without_a_header_does_not_lose_its_first_value_silently(refused):
    said = refused("1.5\n2.5\n3.5\n")
    assert "line 1" in said
    assert "header" in said


def test_a_missing_file_and_a_folder_are_told_apart(refused, tmp_path):
    assert "gone.csv does not exist" in refused(file=tmp_path / "gone.csv")
    assert "is a folder" in refused(file=tmp_path)


def test_a_binary_file_is_called_one(refused):
    assert "binary" in refused(bytes(range(256)) * 8)


def test_a_line_with_too_many_cells_is_named(refused):
    assert "line 3 has 3 cells and the header has 2" in refused("a,b\n1,2\n3,4,5\n", "--column", "a")


def test_a_line_with_too_few_cells_lacks_a_value_in_that_line(refused):
    assert "line 3, column 'b': the cell is empty" in refused("a,b\n1,2\n3\n5,6\n", "--column", "b")


def test_ten_million_rows_are_refused_quickly_and_in_little_memory(tmp_path, students_folder):
    path = tmp_path / "big.csv"
    pl.DataFrame({"v": np.arange(10_000_000) % 97}).write_csv(path)
    program = (
        "import resource, sys\nfrom tsd import cli\nfrom tsd.inference import explain\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    cli.main(sys.argv[1:])\nfinally:\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program, "explain", str(path), "--model", str(students_folder / "untrained")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "10,000,000 rows" in ended.stderr
    assert "every 10th row" in ended.stderr
    assert time.monotonic() - started < 60
    assert int(ended.stdout) < 150 * 1024  # KiB: a few chunks of the file, never the whole of it
    assert MOST_ROWS < 10_000_000


# ---- Wrong model folder


def test_a_missing_model_folder_is_named(refused, ramp, tmp_path):
    assert "nowhere does not exist" in refused(file=ramp, model=tmp_path / "nowhere")


def test_a_folder_of_students_names_one_to_take(refused, ramp, students_folder):
    said = refused(file=ramp, model=students_folder)
    assert "2 in it" in said
    assert str(students_folder / "trained") in said


def test_a_model_that_tsd_did_not_train_is_no_student(refused, ramp, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text("{}")
    assert "was not trained by tsd" in refused(file=ramp, model=tmp_path / "other")


def _cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def _without_a_tensor(path):
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    tensors.pop("model.norm.weight")
    save_file(tensors, path, metadata={"format": "pt"})


def _wider(path):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64}))


DAMAGE = {
    "weights cut short": ("model.safetensors", _cut),
    "weights gone": ("model.safetensors", Path.unlink),
    "a tensor gone": ("model.safetensors", _without_a_tensor),
    "a config that is no JSON": ("config.json", lambda path: path.write_text("{")),
    "an empty config": ("config.json", lambda path: path.write_text("{}")),
    "a config of another width": ("config.json", _wider),
    "a tokenizer that is no JSON": ("tokenizer.json", lambda path: path.write_text("{")),
    "a card without a length": ("tsd.json", lambda path: path.write_text("{}")),
    "a card without any of several lengths": (
        "tsd.json",
        lambda path: path.write_text('{"length": [], "task": "single"}'),
    ),
    "a card with an impossible length": (
        "tsd.json",
        lambda path: path.write_text('{"length": -3, "task": "single"}'),
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_student_is_called_damaged(refused, ramp, tmp_path, students_folder, what):
    import shutil

    shutil.copytree(students_folder / "untrained", tmp_path / "broken")
    name, damage = DAMAGE[what]
    damage(tmp_path / "broken" / name)
    said = refused(file=ramp, model=tmp_path / "broken")
    assert "broken" in said
    assert "damaged" in said
    assert "again" in said


# ---- Good CSV


def test_a_student_that_learned_an_answer_gives_it_in_sentences(ramp, students_folder, capsys):
    main(["explain", str(ramp), "--model", str(students_folder / "trained")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.endswith(".") for line in lines[:4])
    assert lines[4] == "(column 'level', 32 rows in file order, there is no column of times)"
    assert lines[5] == "(numbers in the description are on 0–99)"


def test_json_states_the_labels_and_what_was_done(ramp, students_folder, capsys):
    main(["explain", str(ramp), "--model", str(students_folder / "trained"), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {"column", "rows", "time", "changes", "labels", "numbers", "sentences", "not_stated"}
    assert answer["labels"] == {"trend": "increasing", "noise": "low", "maximum": "end", "minimum": "beginning"}
    assert answer["numbers"] == {"start": 5, "end": 94}
    assert (answer["column"], answer["rows"], len(answer["changes"])) == ("level", LENGTH, 1)
    assert answer["time"] is None
    assert answer["not_stated"] is None


def test_an_untrained_student_is_not_made_to_say_more_than_it_does(ramp, students_folder, capsys):
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as left:
            main(["explain", str(ramp), "--model", str(students_folder / "untrained"), *more])
        assert left.value.code == 1
        if not more:
            assert "reply cannot be parsed" in capsys.readouterr().out
    answer = json.loads(capsys.readouterr().out)
    assert answer["sentences"] == []
    assert set(answer["labels"].values()) == {None}
    assert answer["not_stated"]


def test_newest_first_is_the_same_answer_as_oldest_first(tmp_path, students_folder, capsys):
    rows = [f"2024-01-{day + 1:02},{value}" for day, value in enumerate(RAMP[:31])]
    answers = []
    for order in (rows, rows[::-1], rows[::2] + rows[1::2]):
        file = tmp_path / "mine.csv"
        file.write_text("\n".join(["date,level", *order]) + "\n")
        main(["explain", str(file), "--model", str(students_folder / "trained"), "--json"])
        answers.append(json.loads(capsys.readouterr().out))
    assert all(answer["labels"] == answers[0]["labels"] for answer in answers)
    assert answers[0]["labels"]["trend"] == "increasing"
    assert "rows were sorted by 'date', they were newest first" in answers[1]["changes"]
    assert "rows were sorted by 'date', they were in no order" in answers[2]["changes"]


def test_the_options_of_the_command_reach_the_reader(tmp_path, students_folder, capsys):
    file = tmp_path / "mine.csv"
    rows = [f"{kind};0{1 + i % 9}/0{1 + i // 9}/2024;{value},5" for i, value in enumerate(RAMP) for kind in "AB"]
    file.write_text("\n".join(["sensor;date;level", *rows]) + "\n")
    options = [
        "--where",
        "sensor=A",
        "--dates",
        "day-first",
        "--decimal",
        ",",
        "--missing",
        "none",
        "--time",
        "rows",
    ]
    main(["explain", str(file), "--model", str(students_folder / "trained"), "--json", *options])
    answer = json.loads(capsys.readouterr().out)
    assert (answer["rows"], answer["time"]) == (LENGTH, None)
    assert answer["labels"]["trend"] == "increasing"


def test_a_student_behind_a_uri_is_fetched_and_only_a_missing_one_is_called_missing(
    ramp, students_folder, refused, capsys, s3
):
    model = students_folder.as_uri() + "/trained"
    main(["explain", str(ramp), "--model", model])
    assert "column 'level', 32 rows" in capsys.readouterr().out
    folders.copy_folder(str(students_folder / "trained"), s3.uri("explain/students/trained"))
    folders.write_bytes(s3.uri("explain"), "ramp.csv", ramp.read_bytes())
    main(["explain", s3.uri("explain/ramp.csv"), "--model", s3.uri("explain/students/trained")])
    assert "column 'level', 32 rows" in capsys.readouterr().out
    assert "does not exist" in refused(file=ramp, model=students_folder.as_uri() + "/nobody")
    assert "does not exist" in refused(file=ramp, model=s3.uri("explain/nobody"))
    several = refused(file=ramp, model=s3.uri("explain/students"))
    assert f"such as {s3.uri('explain/students/trained')}" in several
    assert "cannot be fetched" in refused(file=ramp, model="nowhere://bucket/student")


def test_a_student_that_looks_is_shown_the_plot_of_the_series(looking, tmp_path, capsys):
    from tsd.inference.decoding import describe
    from tsd.inference.explain import MAX_NEW_TOKENS, NO_ANSWER
    from tsd.models.students import load_model
    from tsd.models.tokenizer import load_tokenizer
    from tsd.plots.rasterised import draw

    file = tmp_path / "mine.csv"
    file.write_text("value\n" + "\n".join(str(3 * value) for value in RAMP))
    with pytest.raises(SystemExit) as left:
        main(["explain", str(file), "--model", str(looking)])
    assert left.value.code == 1
    said = capsys.readouterr().out
    assert "values from 0 to 297 were mapped onto 0–99" in said
    assert NO_ANSWER in said  # it has learned nothing
    model, tokenizer = load_model(str(looking)), load_tokenizer(str(looking))
    ink = draw([[np.array(RAMP, np.uint8)]])
    assert SINGLE.parse(describe(model, tokenizer, SINGLE, ink, MAX_NEW_TOKENS)[0]).reason
