"""Many students at once: Ray Tune trials, and in each a Ray Train run over FSDP2 that trains one student or,
where they are quickly trained, several one after the other.

A finished run leaves a student folder and, written last, its record; a run that was stopped goes on from its
last sharded checkpoint.
"""

import contextlib
import io
import json
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray import tune

from tsd import card, store
from tsd.cluster import distilling
from tsd.cluster.trials import Run, Trial
from tsd.errors import TrainingError, UserError
from tsd.recipe import Recipe, Student
from tsd.schema import EXAMPLES

Report = Callable[[str, dict[str, float]], None]
FAILURES, PROGRESS = "failures.json", "progress.json"
REPORT_SECONDS = 1.0
PATIENCE = 60.0  # seconds that a run lets a longer one go first


def train_all(recipe: Recipe, trials: Sequence[Trial], report: Report) -> dict[str, str]:
    """Train the trials' runs, several trials at once. report(run_id, metrics) is called here as they go.

    Runs that are finished are passed over, and so are those whose teacher failed. Returns why runs failed, by run
    id: the others do not wait for them, and they keep their last checkpoint.
    """
    failed: dict[str, str] = {}
    for wave in sorted({trial.wave for trial in trials}):
        together = [trial for trial in trials if trial.wave == wave]
        untaught = {
            run["run_id"]: f"its teacher {run['teacher_run']} failed"
            for trial in together
            for run in trial.runs
            if run.get("teacher_run") in failed
        }
        taught = [trial for trial in together if any(run["run_id"] not in untaught for run in trial.runs)]
        failed |= untaught | (_train_together(recipe, taught, report, set(untaught)) if taught else {})
    return failed


def _train_together(
    recipe: Recipe, trials: Sequence[Trial], report: Report, passed_over: Collection[str]
) -> dict[str, str]:
    folder = _absolute(recipe.folder)
    by_name = {trial.name: trial for trial in trials}  # in the place of an object Tune would hand on a reference
    board = _Board.remote()  # type: ignore[attr-defined]
    listener = _Listener(board, report)
    settings = {
        "folder": folder,
        "training": recipe.training.model_dump(),
        "length": recipe.series.length,
        "task": recipe.task,
        "board": board,
        "about": {
            "study": recipe.name,
            "recipe": store.digest(recipe.model_dump(mode="json")),
            "teacher": recipe.teacher.name,
        },
        "trials": by_name,
        "passed_over": passed_over,
        "first": [trial.name for trial in trials[: _room(recipe, trials)]],
    }
    trial = tune.with_resources(partial(_trial, settings=settings), {"memory": 1})
    tuner = tune.Tuner(
        trial,
        param_space={"trial": tune.grid_search(list(by_name))},
        tune_config=tune.TuneConfig(
            max_concurrent_trials=recipe.training.concurrent_trials,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=f"{folder}/trials",
            callbacks=[listener],
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # Tune prints a table of its settings whatever its verbosity
        results = tuner.fit()
    listener.collect()
    died = {
        run["run_id"]: str(result.error).strip().splitlines()[-1]
        for result in results
        if result.error
        for run in by_name[result.config["trial"]].runs
    }
    done = finished(recipe, [run for trial in trials for run in trial.runs])
    failed = {**died, **ray.get(board.failed.remote())}
    return {run_id: reason for run_id, reason in failed.items() if run_id not in done}


@ray.remote(num_cpus=0)
class _Board:
    """Where trials leave word of how far they are. Ray Train's own reports wait for its controller each time."""

    def __init__(self) -> None:
        self.news: dict[str, dict[str, float]] = {}
        self.at_work: set[str] = set()
        self.reasons: dict[str, str] = {}

    def begin(self, trial: str) -> None:
        """A trial has its machines."""
        self.at_work.add(trial)

    def begun(self) -> set[str]:
        """The trials that had their machines so far."""
        return self.at_work

    def fail(self, run_id: str, reason: str) -> None:
        """A run cannot go on, and would fail again."""
        self.reasons[run_id] = reason

    def failed(self) -> dict[str, str]:
        """Why runs could not go on, by run id."""
        return self.reasons

    def post(self, run_id: str, metrics: dict[str, float]) -> None:
        """The last word of each run stands."""
        self.news[run_id] = metrics

    def collect(self) -> dict[str, dict[str, float]]:
        """What was posted since the last call."""
        news, self.news = self.news, {}
        return news


class _Listener(tune.Callback):  # type: ignore[misc]
    """Hands what trials post to the driver's own function, now and then while Tune works."""

    def __init__(self, board: Any, report: Report) -> None:
        self.board, self.report = board, report
        self.asked = time.monotonic()

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks for a restore of its own, which is never asked for: nothing to save."""
        return {}

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Called by Tune in the driver, many times a second."""
        if time.monotonic() - self.asked > REPORT_SECONDS:
            self.asked = time.monotonic()
            self.collect()

    def collect(self) -> None:
        """Ask the board for news."""
        for run_id, metrics in ray.get(self.board.collect.remote()).items():
            self.report(run_id, metrics)


def _name(trial: Any) -> str:
    name: str = trial.config["trial"]
    return name


def _trial(config: dict[str, Any], settings: dict[str, Any]) -> None:
    """One trial: a Ray Train run whose name makes a restart go on from its last checkpoint."""
    trial, training = settings["trials"][config["trial"]], settings["training"]
    if trial.name not in settings["first"]:
        _let_go_first(settings["board"], settings["first"])
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={**settings, "trial": trial},
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.need.workers,
            use_gpu=training["gpu"],
            resources_per_worker={"GPU": trial.need.gpus} if training["gpu"] else {"CPU": trial.need.cpus},
        ),
        run_config=ray.train.RunConfig(
            name=trial.name,
            storage_path=f"{settings['folder']}/trials",
            failure_config=ray.train.FailureConfig(max_failures=training["max_failures"]),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
    )
    trainer.fit()


def _let_go_first(board: Any, first: Sequence[str]) -> None:
    """Wait until the trials that come first have their machines or take too long: the longest start first."""
    until = time.monotonic() + PATIENCE
    while not set(first) <= ray.get(board.begun.remote()) and time.monotonic() < until:
        time.sleep(0.2)


def _room(recipe: Recipe, trials: Sequence[Trial]) -> int:
    """How many of the first trials can train at once on the machines that there are now."""
    resource = "GPU" if recipe.training.gpu else "CPU"
    there, count = ray.cluster_resources().get(resource, 0), 0
    for trial in trials[: recipe.training.concurrent_trials]:
        there -= trial.need.workers * (trial.need.gpus or trial.need.cpus)
        if there < 0:
            break
        count += 1
    return count


def _worker(config: dict[str, Any]) -> None:
    """What each Ray Train worker runs: the trial's runs that are not finished, one after the other.

    What would fail again is told, and not raised: Ray would try it again.
    """
    config["board"].begin.remote(config["trial"].name)
    for run in config["trial"].runs:
        done = store.read_json(f"{config['folder']}/records", f"{run['run_id']}.json") is not None
        if done or run["run_id"] in config["passed_over"]:
            continue
        try:
            _learn(config, run)
        except (UserError, TrainingError) as error:
            ray.get(config["board"].fail.remote(run["run_id"], str(error)))


def _learn(config: dict[str, Any], run: Run) -> None:
    started = time.perf_counter()
    import torch

    from tsd import corpus, students, training
    from tsd.recipe import TrainingConfig

    context = ray.train.get_context()
    settings = TrainingConfig(**config["training"])
    folder = config["folder"]
    student = Student.model_validate(run["student"])
    device = str(ray.train.torch.get_device()) if settings.gpu else "cpu"
    place = training.Place(context.get_world_rank(), context.get_world_size(), device)
    if not settings.gpu:
        torch.set_num_threads(settings.threads)
    tokenizer = students.load_tokenizer(student.source or f"{folder}/tokenizer")
    examples = store.open_dataset(f"{folder}/examples", EXAMPLES)
    corpora = {
        split: corpus.tokenise(corpus.select(examples.each_part(), split, count), tokenizer, settings.max_length)
        for split, count in (("train", run["examples"]), ("validation", run["validation_examples"]))
    }
    divide = partial(training.shard, place=place)
    model = students.build(student, tokenizer, run["seed"], settings.max_length, divide, device)
    total, body = students.parameter_counts(model)
    peak = training.matmul_peak(device)
    teacher = distilling.load_teacher(run, student, folder, place)
    optimiser = training.make_optimiser(model, settings)
    progress = _restore(model, optimiser, run["run_id"])
    steps = corpus.Batches(corpora["train"].lengths, settings, run["seed"]).steps
    ready = time.perf_counter() - started

    def post(now: training.Progress) -> None:
        if place.rank == 0:
            config["board"].post.remote(run["run_id"], _metrics(now, steps))

    training.train(
        model,
        corpora["train"],
        settings,
        learning_rate=students.learning_rate(student),
        seed=run["seed"],
        place=place,
        optimiser=optimiser,
        progress=progress,
        report=post,
        save=lambda now: _save(model, optimiser, now, steps, run["run_id"]),
        distil=teacher,
    )
    loss = training.evaluate(model, corpora["validation"], settings.batch_size, place)
    seen = progress.tokens, progress.supervised, float(corpora["train"].lengths.mean())
    flops = students.training_flops(model, body, *seen)
    taught = students.forward_flops(teacher.teacher, *seen) if teacher else None
    record = _record(run, (total, body), progress, (flops, taught), loss, peak * place.workers)
    _export(model, student, tokenizer, config, record, place.rank == 0)
    if place.rank == 0:
        store.write_json(f"{folder}/records", f"{run['run_id']}.json", {**record, "ready_seconds": ready})
        config["board"].post.remote(run["run_id"], {**_metrics(progress, steps), "validation_loss": loss})


def _record(
    run: dict[str, Any],
    sizes: tuple[int, int],
    progress: Any,
    flops: tuple[float, float | None],
    loss: float,
    peak: float,
) -> dict[str, Any]:
    """What is known of a finished run.

    sizes: parameters with and without embeddings; flops: the student's, and its teacher's where it has one; peak:
    FLOP/s of its workers together.
    """
    own, taught = flops
    return {
        "run_id": run["run_id"],
        "student": run["student"]["name"],
        "parameters": sizes[0],
        "parameters_without_embeddings": sizes[1],
        "examples": run["examples"],
        "tokens": progress.tokens,
        "supervised_tokens": progress.supervised,
        "flops": own,
        "distilled_from": (run["student"].get("distil") or {}).get("teacher"),
        "teacher_flops": taught,
        "steps": progress.step,
        "seed": run["seed"],
        "validation_loss": loss,
        "train_seconds": progress.seconds,
        "tokens_per_second": progress.tokens / progress.seconds,
        "utilisation": (own + (taught or 0.0)) / progress.seconds / peak,
    }


def _metrics(progress: Any, steps: int) -> dict[str, float]:
    return {
        "step": progress.step,
        "share": progress.step / steps,
        "loss": progress.loss,
        "seconds": progress.seconds,
    }


def _save(model: Any, optimiser: Any, progress: Any, steps: int, run_id: str) -> None:
    """Write this worker's shards and report them; Ray Train merges the workers' folders."""
    import torch
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    weights, moments = get_state_dict(model, optimiser)
    with tempfile.TemporaryDirectory() as folder:
        save({"model": weights, "optimiser": moments}, checkpoint_id=folder)
        rank = ray.train.get_context().get_world_rank()
        torch.save(torch.get_rng_state(), Path(folder) / f"random-{rank}.pt")
        if rank == 0:
            (Path(folder) / PROGRESS).write_text(json.dumps({"run_id": run_id, **asdict(progress)}))
        ray.train.report(
            _metrics(progress, steps),
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=f"{run_id}-step-{progress.step:08d}",
        )


def _restore(model: Any, optimiser: Any, run_id: str) -> Any:
    """Load the run's last checkpoint in place, if there is one, and return how far it is.

    The number of workers may be another: a worker that was not there keeps the generator that it has.
    """
    import torch
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.checkpoint.state_dict_loader import load

    from tsd.training import Progress

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress()
    with checkpoint.as_directory() as folder:
        kept = json.loads((Path(folder) / PROGRESS).read_text())
        if kept.pop("run_id") != run_id:  # that of the trial's run before
            return Progress()
        weights, moments = get_state_dict(model, optimiser)
        state: dict[str, Any] = {"model": weights, "optimiser": moments}
        load(state, checkpoint_id=folder)
        set_state_dict(model, optimiser, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
        random = Path(folder) / f"random-{ray.train.get_context().get_world_rank()}.pt"
        if random.exists():
            torch.set_rng_state(torch.load(random))
        return Progress(**kept)


def _export(
    model: Any, student: Student, tokenizer: Any, config: dict[str, Any], record: dict[str, Any], writes: bool
) -> None:
    """Write the student's folder. The workers gather it together, tensor by tensor; one of them writes."""
    from tsd import students

    alone = student.lora is not None and student.lora.export == "adapter"
    about = {**config["about"], "source": student.source, "adapters": student.lora is not None, "alone": alone}
    said = {"run": record, "length": config["length"], "task": config["task"], "about": about}
    with tempfile.TemporaryDirectory() as local:
        students.export(model, tokenizer, Path(local) if writes else None, said, alone)
        if writes:
            (Path(local) / card.README).write_text(card.render(said))
            store.copy_folder(local, f"{config['folder']}/students/{record['run_id']}")


def finished(recipe: Recipe, runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """The records of the runs that are finished, by run id."""
    records = {run["run_id"]: store.read_json(f"{recipe.folder}/records", f"{run['run_id']}.json") for run in runs}
    return {run_id: record for run_id, record in records.items() if record is not None}


def forget_checkpoints(recipe: Recipe) -> None:
    """Delete the checkpoints of a study all of whose runs are finished."""
    store.delete_folder(f"{recipe.folder}/trials")


def note_failures(recipe: Recipe, failures: Mapping[str, str]) -> None:
    """Keep why runs failed in the last start that trained, for evaluation and report; they may be none."""
    store.write_json(recipe.folder, FAILURES, dict(failures))


def failures(recipe: Recipe, runs: Sequence[Run]) -> dict[str, str]:
    """Why some of these runs failed in the last start that trained, by run id."""
    failed, done = store.read_json(recipe.folder, FAILURES) or {}, finished(recipe, runs)
    ids = [run["run_id"] for run in runs]
    return {run_id: failed[run_id] for run_id in ids if run_id in failed and run_id not in done}


def _absolute(folder: str) -> str:
    return folder if "://" in folder else str(Path(folder).resolve())
