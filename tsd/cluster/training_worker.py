"""What a Ray Train worker does: load or resume a run, train it, report, export."""

import importlib
import logging
import socket
import tempfile
import time
import uuid
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import ray
import ray.train
from pyarrow import fs
from ray.exceptions import GetTimeoutError, RayError
from ray.train.collective import broadcast_from_rank_zero

from tsd.cluster import distillation, nodes
from tsd.cluster.imports import quick_imports
from tsd.cluster.node_checks import Need
from tsd.errors import DataError, InputError, TrainingError, UserError
from tsd.recipe import TrainingConfig
from tsd.storage import datasets, folders, node_copy
from tsd.storage.schemas import TOKENS
from tsd.study.identity import tokenizer_folder
from tsd.study.trials import Trial
from tsd.tasks import modules, named
from tsd.training.runs import RunRecord, RunSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tsd.training.loop import Progress, WorkerContext

STEP = "-step-"
FAILED = "trials/failed"  # in a study's folder: one file per failed run with the reason
SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's list of a trial's checkpoints
log = logging.getLogger(__name__)
LIBRARIES = ("ray.train.torch", "tsd.training.trainer")  # and with them torch and transformers
BOARD_SECONDS = 10.0  # timeout for a response of the board, its start included
T = TypeVar("T")


@dataclass(frozen=True)
class TrialSettings:
    """What all trials of a study share."""

    folder: str
    """Of the study; absolute, or a URI."""
    training: TrainingConfig
    task: str
    """Its name, with a digest of its module if that is outside tsd."""
    outside: tuple[modules.Sent, ...]
    """Plugins, and the module of the task."""
    length: int | tuple[int, ...]
    """Points of a series, as the recipe states them."""
    about: dict[str, str]
    """Study, digest of its recipe, and teacher, for the model cards."""
    board: Any
    """Actor that collects progress."""
    trials: dict[str, Trial]
    """By name, in the order in which they start."""
    at_once: int
    """Trials that fit on the machines at the same time."""
    passed_over: frozenset[str]
    """Ids of runs whose teacher failed."""
    own_ray: bool
    """Whether this command started Ray on one machine."""
    need: Need | None
    """What each node is checked for before it works."""
    unfit: dict[str, str]
    """Nodes that failed the check, and why."""


class StoppedByTuneError(Exception):
    """Raised in the first worker of a trial that Ray Tune has stopped."""


def keep_failure(folder: str, run_id: str, reason: str) -> None:
    """Record why a run cannot continue and would fail again, on disk so that it survives a dead process."""
    folders.write_json(f"{folder}/{FAILED}", f"{run_id}.json", reason)


def answer_within(call: Any, otherwise: T, patience: float) -> T:
    """Return an actor's response, or `otherwise` if it is dead or does not respond within `patience` seconds."""
    try:
        answer: T = ray.get(call, timeout=patience)
    except (RayError, GetTimeoutError) as error:
        log.debug("the board of this stage did not answer: %s", error)
        return otherwise
    return answer


def train_in_worker(config: dict[str, Any]) -> None:
    """Body of a Ray Train worker: trains the trial's unfinished runs in sequence.

    Permanent failures are recorded and not raised: Ray would retry them.
    """
    settings: TrialSettings = config["settings"]
    trial: Trial = config["trial"]
    nodes.require_fit(settings.need)
    for module in settings.outside:
        module.load()
    settings.board.begin.remote(trial.name)
    with quick_imports():
        for name in LIBRARIES:
            importlib.import_module(name)
    if answer_within(settings.board.is_stopped.remote(trial.name), False, BOARD_SECONDS):
        return
    alone = ray.train.get_context().get_world_size() == 1
    with ExitStack() as held:
        for run in trial.runs:
            if _is_over(settings, run):
                continue
            try:
                _learn(settings, trial.name, run, held)
            except (UserError, TrainingError) as error:
                keep_failure(settings.folder, run.run_id, str(error))
                if isinstance(error, UserError) and not alone:
                    raise  # perhaps of this machine only: the other workers must not wait for this one
            except StoppedByTuneError:
                if alone:
                    return
                raise  # ends the other workers, which wait for this one; after the restart all return at once


def _is_over(settings: TrialSettings, run: RunSpec) -> bool:
    """Whether to skip a run: it has finished, it has failed for good, or it is passed over."""
    places = (f"{settings.folder}/records", f"{settings.folder}/{FAILED}")
    known = any(folders.read_json(place, f"{run.run_id}.json") is not None for place in places)
    return known or run.run_id in settings.passed_over


def _learn(settings: TrialSettings, trial: str, run: RunSpec, held: ExitStack) -> None:
    """Train one student and store it: load tokenizer, tokens and teacher, then train, export and record.

    held: keeps the machine's copy of the tokens for the trial's next run.
    Only rank 0 writes the student folder and, last, its record.
    """
    started = time.perf_counter()
    import torch
    from ray.train.torch import get_device

    from tsd.training import loop, token_parts, trainer
    from tsd.training.label_tokens import label_tokens

    context = ray.train.get_context()
    how, folder = settings.training, settings.folder
    device = str(get_device()) if how.gpu else "cpu"
    place = loop.WorkerContext(context.get_world_rank(), context.get_world_size(), device)
    if not how.gpu:
        torch.set_num_threads(how.threads)
    tokens = datasets.open_dataset(f"{folder}/tokens/{run.tokens}", TOKENS)
    tokenizer = load_tokenizer_of(tokens, run, folder)
    held.enter_context(node_copy.in_use(tokens))
    counts = {"train": run.examples, "validation": run.validation_examples}
    teacher = distillation.load_teacher(run, folder, place)

    posted: list[Any] = []  # the calls that were not answered yet

    def post(now: loop.Progress) -> None:
        if place.rank:
            return
        posted.append(settings.board.post.remote(trial, run.run_id, trainer.metrics(now)))
        answered, posted[:] = ray.wait(posted, num_returns=len(posted), timeout=0)
        if any(answer_within(call, False, BOARD_SECONDS) for call in answered):
            raise StoppedByTuneError

    trial_folder = f"{folder}/trials/{trial}"
    mine = RunCheckpoints(run.run_id, trial_folder, broadcast_from_rank_zero(uuid.uuid4().hex[:8]))
    reported = [each.checkpoint.path for each in ray.train.get_all_reported_checkpoints()]

    def tell(now: loop.Progress) -> None:
        """Report a checkpoint that all workers have stored: a restart resumes from it."""
        _report(mine.name(now), trainer.metrics(now))
        if place.rank == 0:  # all workers have loaded what they resumed from
            mine.delete_earlier(list(map(_name_of, reported)))

    with token_parts.corpora(tokens, counts, how.max_length, named(settings.task).curves) as corpora:
        model, record, end = trainer.learn(
            run,
            tokenizer,
            corpora,
            how,
            place,
            started=started,
            # Ray reports none if it was killed while it wrote its list.
            resume=partial(
                restore_last,
                reported or lying_in(trial_folder),
                run=run,
                place=place,
                trial=trial_folder,
                tokens=tokens,
            ),
            keep=mine.keep,
            tell=tell,
            report=post,
            teacher=teacher,
            labels=label_tokens(tokenizer, *named(settings.task).words),
        )
    _store(model, tokenizer, record, settings, run, is_writer=place.rank == 0)
    if place.rank == 0:
        last = {**trainer.metrics(end), "validation_loss": record.validation_loss}
        # Awaited: this process may end before a call that is not awaited was sent.
        answer_within(settings.board.post.remote(trial, run.run_id, last), None, BOARD_SECONDS)


def _store(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    record: RunRecord,
    settings: TrialSettings,
    run: RunSpec,
    is_writer: bool,
) -> None:
    """Store a student's folder and, last, its record. All workers take part, since each holds a shard.

    is_writer: whether this worker, one of all, writes.
    """
    from tsd.training import trainer

    with tempfile.TemporaryDirectory() as local:
        trainer.export(
            model,
            tokenizer,
            Path(local) if is_writer else None,
            run.student,
            record,
            task=settings.task,
            length=settings.length,
            about=settings.about,
        )
        if is_writer:
            folders.copy_folder(local, f"{settings.folder}/students/{run.run_id}", sealed=True)
            folders.write_json(f"{settings.folder}/records", f"{run.run_id}.json", record.as_dict())


@dataclass(frozen=True)
class RunCheckpoints:
    """The folders to which one start of a run writes its checkpoints. No other start writes to them.

    A checkpoint that a start does not resume from, since it is damaged or of other tokens, may be in Ray's list:
    Ray will delete that folder. And files of two starts in one folder could pass for a complete checkpoint.
    """

    run_id: str
    trial: str
    """Folder of the trial's checkpoints."""
    start: str
    """Differs for each start, and is the same for all its workers."""

    def name(self, progress: "Progress") -> str:
        """Folder name of the checkpoint of a step. Names of one run sort by step."""
        return f"{self.run_id}{STEP}{progress.step:08d}-{self.start}"

    def keep(self, part: Path, progress: "Progress") -> None:
        """Store a worker's part of a checkpoint."""
        folders.add_files(str(part), f"{self.trial}/{self.name(progress)}")

    def delete_earlier(self, listed: Collection[str]) -> None:
        """Delete what earlier starts of the run left, for example when they were killed while they stored it.

        listed: names of the checkpoints in Ray's list, which it deletes itself.
        """
        try:
            for name in map(_name_of, lying_in(self.trial)):
                if _run_of(name) == self.run_id and not name.endswith(f"-{self.start}") and name not in listed:
                    folders.delete_folder(f"{self.trial}/{name}")
        except OSError as error:  # what is left is of no use, but harmless
            log.warning("earlier checkpoints in %s could not be deleted: %s", self.trial, error)


def _report(name: str, metrics: dict[str, Any]) -> None:
    """Report a checkpoint of this name, which lies in the trial's folder, to Ray Train."""
    storage = ray.train.get_context().get_storage()
    ray.train.report(
        metrics,
        checkpoint=ray.train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.NO_UPLOAD,
    )


def load_tokenizer_of(tokens: datasets.Dataset, run: RunSpec, folder: str) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a run, whose tokens these are. folder: the study's folder.

    Raises InputError if a source's tokenizer on this node is another one than that of the tokens.
    """
    from tsd.models.tokenizer import load_tokenizer, tokenizer_digest

    tokenizer = load_tokenizer(tokenizer_folder(folder, run))
    if run.student.source and _tokenizer_of(tokens) not in ("", tokenizer_digest(tokenizer)):
        raise InputError(
            f"the tokenizer of {run.student.source} on node {socket.gethostname()} is another one than the "
            "examples were tokenised with: give all nodes the same files of it"
        )
    return tokenizer


def _tokenizer_of(tokens: datasets.Dataset) -> str:
    """Digest of the tokenizer that made the tokens; "" if an earlier version did, which did not note it."""
    return str(tokens.about.get("tokenizer", ""))


def restore_last(
    paths: Sequence[str],
    model: "PreTrainedModel",
    optimizer: "Optimizer",
    run: RunSpec,
    place: "WorkerContext",
    trial: str,
    tokens: datasets.Dataset,
) -> "Progress":
    """Load the last of these checkpoints that is of this run and its tokens, and complete. Returns its progress.

    A checkpoint of tokens that another tokenizer made is of no use: its weights belong to another vocabulary.
    """
    from tsd.training import checkpoints
    from tsd.training.loop import Progress

    made_with = _tokenizer_of(tokens)
    for path in reversed(paths):
        name = _name_of(path)
        if _run_of(name) != run.run_id:  # of the trial's previous run
            continue
        with folders.local_copy(f"{trial}/{name}") as folder:
            if not checkpoints.is_whole(Path(folder)):
                log.warning("%s is damaged: the run continues from the previous checkpoint, if any", path)
            elif checkpoints.read_progress(Path(folder)).tokenizer != made_with:
                log.warning("%s is not used: another tokenizer made the tokens that it was trained on", path)
            else:
                return checkpoints.restore(Path(folder), model, optimizer, place)
    return Progress(tokenizer=made_with)


def _name_of(path: str) -> str:
    return Path(path).name


def _run_of(name: str) -> str:
    """Id of the run of a checkpoint, by the name of its folder."""
    return name.rpartition(STEP)[0]


def lying_in(trial: str) -> list[str]:
    """Return the folders in a trial's folder, sorted by name: for one run, by step."""
    files, root = folders.filesystem(trial)
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(each.path for each in found if each.type == fs.FileType.Directory)


def forget_cut_off_snapshot(trial: str) -> None:
    """Delete Ray's list of a trial's checkpoints if it is truncated: Ray would not start with it."""
    try:
        folders.read_json(trial, SNAPSHOT)
    except DataError:
        log.warning("%s/%s is truncated: it is written again", trial, SNAPSHOT)
        files, root = folders.filesystem(trial)
        files.delete_file(f"{root}/{SNAPSHOT}")
