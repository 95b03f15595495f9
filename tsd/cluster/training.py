"""Train many students concurrently: Ray Tune trials that each run Ray Train with FSDP2.

A trial trains one student, or several small ones in sequence. A finished run leaves a student folder and, written
last, its record. A stopped run resumes from its last sharded checkpoint.
"""

import contextlib
import io
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray import tune
from ray.train import TrainingFailedError
from ray.tune.logger import JsonLoggerCallback

from tsd.cluster import nodes
from tsd.cluster.board import Board
from tsd.cluster.low_overhead import LowOverheadTrainer
from tsd.cluster.session import on_driver, own_ray
from tsd.cluster.training_worker import (
    BOARD_SECONDS,
    FAILED,
    TrialSettings,
    answer_within,
    forget_cut_off_snapshot,
    keep_failure,
    train_in_worker,
)
from tsd.recipe import Recipe
from tsd.recipe.stored import task_reference
from tsd.storage import folders
from tsd.study.identity import origin
from tsd.study.outcomes import finished
from tsd.study.trials import Trial
from tsd.tasks import modules
from tsd.training.runs import RunSpec

Report = Callable[[str, dict[str, float]], None]
REPORT_SECONDS = 1.0
PATIENCE = 60.0  # seconds that a run waits for longer ones to start first


def train_all(
    recipe: Recipe,
    trials: Sequence[Trial],
    report: Report,
    waiting: Callable[[str], None] = lambda _: None,
    untrainable: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Train the trials' runs, several trials concurrently. report(run_id, metrics) is called as they progress.

    waiting: called with a message if no trial has got its machines for a while.
    untrainable: why runs cannot be trained at all, by run id.

    Finished runs are skipped, as are untrainable ones and those whose teacher failed. Returns why runs failed, by
    run id. Failed runs do not block the others, and keep their last checkpoint.
    """
    failed = dict(untrainable or {})
    for wave in sorted({trial.wave for trial in trials}):
        together = [trial for trial in trials if trial.wave == wave]
        failed |= {
            run.run_id: f"its teacher {run.teacher_run} failed"
            for trial in together
            for run in trial.runs
            if run.teacher_run in failed
        }
        left = [trial for trial in together if any(run.run_id not in failed for run in trial.runs)]
        failed |= _train_together(recipe, left, report, waiting, set(failed)) if left else {}
    return failed


def _train_together(
    recipe: Recipe,
    trials: Sequence[Trial],
    report: Report,
    waiting: Callable[[str], None],
    passed_over: Collection[str],
) -> dict[str, str]:
    """Train the trials of one dependency level with Ray Tune.

    passed_over: run ids to skip. Returns why runs failed, by run id.
    """
    board = Board.options(**on_driver()).remote()  # type: ignore[attr-defined]
    settings = _settings(recipe, trials, board, passed_over)
    folder, by_name = settings.folder, settings.trials
    folders.delete_folder(f"{folder}/{FAILED}")
    listener = _Listener(board, report, waiting, by_name)
    here = {nodes.NODE_ID: ray.get_runtime_context().get_node_id()}
    place = tune.PlacementGroupFactory([{"memory": 1}], bundle_label_selector=[here])
    trial = tune.with_resources(partial(_trial, settings=settings), place)
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
            callbacks=[listener, JsonLoggerCallback()],  # Tune's result table is read from the files of the latter
            # Only for a dead process: failures of Train's own attempts are recorded, not raised.
            failure_config=tune.FailureConfig(max_failures=recipe.training.max_failures),
            verbose=0,
        ),
    )
    with contextlib.redirect_stdout(io.StringIO()):  # Tune prints its settings at any verbosity
        results = tuner.fit()
    listener.finish()
    ray.kill(board)  # Tune's registry of this process keeps a handle, and with it an idle process
    died = {
        run.run_id: _last_line(result.error)
        for result in results
        if result.error
        for run in by_name[result.config["trial"]].runs
    }
    runs = [run for trial in trials for run in trial.runs]
    done = finished(recipe, runs)
    failed = {**died, **_failed(folder, runs)}
    left = [run.run_id for run in runs if run.run_id not in {*failed, *done, *passed_over}]
    failed |= dict.fromkeys(left, "Ray Tune stopped its trial")
    return {run_id: reason for run_id, reason in failed.items() if run_id not in done}


def _settings(recipe: Recipe, trials: Sequence[Trial], board: Any, passed_over: Collection[str]) -> TrialSettings:
    """Return what all trials of a dependency level share. passed_over: run ids to skip."""
    return TrialSettings(
        folder=_absolute(recipe.folder),
        training=recipe.training,
        task=task_reference(recipe),
        outside=tuple(modules.sent(one) for one in recipe.outside),
        length=recipe.series.length,
        about=origin(recipe, recipe.teacher.name),
        board=board,
        trials={trial.name: trial for trial in trials},  # in the search space, Tune would put references
        at_once=_room(recipe, trials),
        passed_over=frozenset(passed_over),
        own_ray=own_ray(),
        need=nodes.current.need,
        unfit=dict(nodes.current.unfit),
    )


def _failed(folder: str, runs: Sequence[RunSpec]) -> dict[str, str]:
    """Return why runs could not continue, by run id."""
    said = {run.run_id: folders.read_json(f"{folder}/{FAILED}", f"{run.run_id}.json") for run in runs}
    return {run_id: reason for run_id, reason in said.items() if reason is not None}


class _Listener(tune.Callback):  # type: ignore[misc]
    """Passes the trials' metrics to the driver's callback at intervals while Tune runs."""

    def __init__(
        self, board: Any, report: Report, waiting: Callable[[str], None], trials: Mapping[str, Trial]
    ) -> None:
        self.board, self.report, self.waiting, self.trials = board, report, waiting, trials
        self.asked = time.monotonic()
        self.pending: Any = None  # a pending call: the board may be restarting
        self.begun: set[str] = set()
        self.idle_since: float | None = None  # since when trials run without any of them having machines

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing to save: Tune saves its callbacks for a restore that tsd does not use."""
        return {}

    def on_step_end(self, iteration: int, trials: Any, **_: Any) -> None:
        """Called by Tune in the driver, many times per second."""
        if time.monotonic() - self.asked > REPORT_SECONDS:
            self.asked = time.monotonic()
            self.collect(0)
            self._note_waits({_name(trial) for trial in trials if trial.status == "RUNNING"})

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Called by Tune when a trial has ended or was stopped. A stopped one may still be training."""
        self.board.stop.remote(_name(trial))

    def collect(self, patience: float) -> None:
        """Ask the board for metrics, and report what arrives within `patience` seconds."""
        if self.pending is None:
            self.pending = self.board.collect.remote()
        if ray.wait([self.pending], timeout=patience)[0]:
            answered, self.pending = self.pending, None
            nothing: tuple[dict[str, dict[str, float]], set[str], dict[str, str]] = ({}, set(), {})
            news, begun, unfit = answer_within(answered, nothing, BOARD_SECONDS)
            self.begun |= begun
            for run_id, metrics in news.items():
                self.report(run_id, metrics)
            for node, fault in unfit.items():
                nodes.current.exclude(node, fault)

    def finish(self) -> None:
        """Report the last metrics, after all trials have ended."""
        if self.pending is not None:  # requested while trials still reported
            self.collect(BOARD_SECONDS)
        self.collect(BOARD_SECONDS)

    def _note_waits(self, running: set[str]) -> None:
        """Show what is waited for if no trial has got its machines for a while."""
        if not running or running & self.begun:
            self.idle_since = None
            return
        self.idle_since = self.idle_since or time.time()
        if time.time() - self.idle_since > nodes.SILENT_SECONDS:
            need = self.trials[min(running)].need
            lacking = nodes.lacking({"num_gpus": need.gpus, "num_cpus": need.cpus})
            machines = lacking or ("free GPUs" if need.gpus else "free CPUs and the start of their processes")
            since = datetime.fromtimestamp(self.idle_since)
            self.waiting(f"waiting for {machines} since {since:%H:%M:%S}")


def _name(trial: Any) -> str:
    name: str = trial.config["trial"]
    return name


def _trial(config: dict[str, Any], settings: TrialSettings) -> None:
    """Run one trial with Ray Train. The run's name lets a restart resume from its last checkpoint.

    Meanwhile the metrics of the run that is trained are reported to Ray Tune, for its result table, stoppers and
    searchers.
    """
    trial = settings.trials[config["trial"]]
    before = list(settings.trials).index(trial.name)
    if before >= settings.at_once:
        _let_go_first(settings.board, list(settings.trials)[:before])
    forget_cut_off_snapshot(f"{settings.folder}/trials/{trial.name}")
    reported = None
    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(_train_with_fit_nodes, settings, trial)
        try:
            over = False
            while not over:
                over = training.done()  # asked before the metrics, so that the last ones are reported
                latest = answer_within(settings.board.latest_of.remote(trial.name), None, BOARD_SECONDS)
                if latest is not None and latest != reported:
                    reported = latest
                    tune.report({**latest[1], "run_id": latest[0]})
                wait([training], REPORT_SECONDS)
        except SystemExit:  # raised by `tune.report` once Tune has stopped the trial
            settings.board.stop.remote(trial.name)
            raise
        training.result()


def _train_with_fit_nodes(settings: TrialSettings, trial: Trial) -> None:
    """Train the trial's runs, again without the nodes that turn out to be unfit. Records why runs failed."""
    unfit = dict(settings.unfit)
    while True:
        try:
            _fit(settings, trial, unfit)
        except TrainingFailedError as error:
            need = settings.need
            found = _unfit_nodes(error) or (nodes.ask_all(need) if need else {})
            if answer_within(settings.board.is_stopped.remote(trial.name), False, BOARD_SECONDS):
                return
            if not found.keys() - unfit.keys():
                for run in trial.runs:
                    keep_failure(settings.folder, run.run_id, _last_line(error))
                return
            unfit |= found  # a node that joined meanwhile: the trial continues without it
            for node, fault in found.items():
                answer_within(settings.board.exclude.remote(node, fault), None, BOARD_SECONDS)
        else:
            return


def _fit(settings: TrialSettings, trial: Trial, unfit: Mapping[str, str]) -> None:
    """Train a trial's runs with Ray Train, excluding the unfit nodes."""
    training = settings.training
    trainer = _trainer(settings.own_ray and not training.gpu)(
        train_in_worker,
        train_loop_config={"settings": settings, "trial": trial},
        scaling_config=ray.train.ScalingConfig(
            num_workers=trial.need.workers,
            use_gpu=training.gpu,
            resources_per_worker={"GPU": trial.need.gpus} if training.gpu else {"CPU": trial.need.cpus},
            label_selector=nodes.selector(unfit) or None,
        ),
        run_config=ray.train.RunConfig(
            name=trial.name,
            storage_path=f"{settings.folder}/trials",
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=training.keep_checkpoints),
        ),
    )
    trainer.fit()


def _unfit_nodes(error: TrainingFailedError) -> dict[str, str]:
    """Return the nodes on which workers refused to start, and why."""
    failures = getattr(error, "worker_failures", {}).values()
    causes = [getattr(failure, "cause", None) or getattr(failure, "_base_exc", failure) for failure in failures]
    return {cause.node: cause.fault for cause in causes if isinstance(cause, nodes.UnfitNodeError)}


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _trainer(lean: bool) -> Any:
    """Return Ray's trainer for torch, or the low-overhead one for CPUs of a local Ray."""
    if lean:
        return LowOverheadTrainer
    from ray.train.torch import TorchTrainer

    return TorchTrainer


def _let_go_first(board: Any, first: Sequence[str]) -> None:
    """Wait until the earlier trials have their machines, or the timeout passes: the longest trials start first.

    Among trials that wait for machines, Ray tends to serve the one that asked last.
    """
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        if set(first) <= answer_within(board.begun.remote(), set[str](), BOARD_SECONDS):
            return
        time.sleep(0.2)


def _room(recipe: Recipe, trials: Sequence[Trial]) -> int:
    """Return how many of the first trials fit on the current machines at once."""
    resource = "GPU" if recipe.training.gpu else "CPU"
    there, count = ray.cluster_resources().get(resource, 0), 0
    for trial in trials[: recipe.training.concurrent_trials]:
        there -= trial.need.workers * (trial.need.gpus or trial.need.cpus)
        if there < 0:
            break
        count += 1
    return count


def _absolute(folder: str) -> str:
    return folder if "://" in folder else str(Path(folder).resolve())
