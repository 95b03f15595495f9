"""The stage that tokenises the examples: token parts for each tokenizer and modality, before any training."""

import os
import socket
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from rich.markup import escape

from tsd.cluster import parts
from tsd.errors import InputError, TsdError
from tsd.storage import datasets, folders, keys, manifests
from tsd.storage.schemas import TOKENS
from tsd.study import identity
from tsd.study.context import StudyContext
from tsd.study.lost_parts import find_lost
from tsd.training.runs import RunSpec
from tsd.training.token_parts import SPLITS, summary, token_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenise(study: StudyContext, planned: Sequence[RunSpec], missing: Sequence[RunSpec]) -> dict[str, str]:
    """Write the token parts that missing runs need, and those that were lost since.

    planned: every run of the study; the token parts of others are deleted. missing: runs that are to be trained.
    Returns why runs cannot be trained, by run id: their source has no usable tokenizer.
    """
    folder = f"{study.recipe.folder}/tokens"
    known = {run.tokens: run for run in planned}
    there = [name for name in folders.subfolders(folder) if keys.is_key(name)]
    for key in there:
        if key not in known:  # of other examples, or of students that the study no longer has
            folders.delete_folder(f"{folder}/{key}")
    wanted = {key: known[key] for key in dict.fromkeys([*(run.tokens for run in missing), *there]) if key in known}
    needed = {run.tokens for run in missing}
    trained = {run.tokens: run.run_id for run in planned if run not in missing}
    finished = {key for key in wanted if datasets.find_finished(f"{folder}/{key}", TOKENS, key)}
    used = {key: run for key, run in wanted.items() if key in needed or key not in finished}
    failed, digests = _settle_sources(study, used, trained, needed)
    left = [key for key in wanted if key not in finished or not folders.exists(f"{folder}/{key}")]
    if to_make := [key for key in left if key not in failed]:
        failed |= _make(study, wanted, to_make, digests)
    for key in failed.keys() - needed:
        folders.delete_folder(f"{folder}/{key}")
        study.reporter.say(escape(f"  deleted tokens/{key}, which no run needs ({failed[key]})"))
    return {run.run_id: failed[run.tokens] for run in missing if run.tokens in failed}


def _settle_sources(
    study: StudyContext, used: Mapping[str, RunSpec], trained: Mapping[str, str], needed: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """Delete token parts that were made with other tokenizer files than a source has now.

    used: a run for each key. trained: a finished run by key. needed: keys of runs that are to be trained. Returns
    why keys cannot be used (their source has no usable tokenizer, or it has changed since other students were
    trained with it), and the digests of the sources' tokenizers; both by key.
    """
    from tsd.models.tokenizer import load_tokenizer, tokenizer_digest  # they import transformers

    failed, digests = dict[str, str](), dict[str, str]()
    for key, run in used.items():
        if run.student.source is None:
            continue
        try:
            digests[key] = tokenizer_digest(load_tokenizer(run.student.source))
        except Exception as error:  # such as a package that the tokenizer needs and that is not installed
            failed[key] = _one_line(error)
            continue
        place = f"{study.recipe.folder}/tokens/{key}"
        if _made_with(place, key) <= {digests[key]}:
            continue
        changed = f"the tokenizer of {run.student.source} is another one than when its examples were tokenised"
        if key not in needed:
            failed[key] = changed
        elif key in trained:
            failed[key] = f"{changed}, and {trained[key]} was trained with that one: set the source back"
        else:
            study.reporter.say(escape(f"  {changed}: tokens/{key} is made again"))
            folders.delete_folder(place)
    return failed, digests


def _made_with(folder: str, key: str) -> set[str]:
    """Return the digests of the tokenizers of all parts; those of lost parts are known from the manifest."""
    manifest = manifests.whole_manifest(folder)
    notes = [
        (manifest and manifest["about"]) or {},
        *(part.note for part in datasets.finished_parts(folder, key).values()),
    ]
    return {note["tokenizer"] for note in notes if "tokenizer" in note}


def _make(
    study: StudyContext, wanted: Mapping[str, RunSpec], left: Sequence[str], digests: Mapping[str, str]
) -> dict[str, str]:
    """Write token parts. wanted: a run for each key; left: the keys whose parts are missing.

    digests: of the sources' tokenizers, by key. Returns why keys could not be made.
    """
    examples, recipe = study.open("examples"), study.recipe
    total = sum(
        pc.sum(pc.is_in(table["split"], pa.array(SPLITS))).as_py() or 0 for table in examples.each_part(["split"])
    )

    def work(key: str, part: int) -> list[datasets.Part]:
        run = wanted[key]
        task = recipe.asks if run.student.is_multimodal else None
        read = examples.read_part(part)
        try:
            tokenizer, digest = _tokenizer(identity.tokenizer_folder(recipe.folder, run), digests.get(key))
            table, note = token_table(read, tokenizer, task)
        except Exception as error:  # of the source's tokenizer or chat template: other students are not affected
            raise parts.FailedError(_one_line(error)) from error
        return [
            datasets.write_part(
                f"{recipe.folder}/tokens/{key}", part, table, TOKENS, key, {**note, "tokenizer": digest}
            )
        ]

    with study.reporter.stage("Tokenise", total * len(wanted), "examples") as step:
        step.skip(total * (len(wanted) - len(left)))
        targets = [parts.Target(((f"{recipe.folder}/tokens/{key}", key),), examples.parts, key) for key in left]
        lost = [find_lost(folder, key, examples.parts) for target in targets for folder, key in target.outputs]
        made = parts.make(work, targets, step)
        for key in left:
            if key in made.failed:
                continue
            (found,) = made.parts[key]
            notes = [found[part].note for part in range(examples.parts)]
            about = {**summary(notes), "tokenizer": notes[0]["tokenizer"]}
            parents = {"examples": examples.digest}
            datasets.commit(f"{recipe.folder}/tokens/{key}", TOKENS, key, examples.parts, parents, found, about)
    for one in lost:
        one.say(study.reporter)
    return made.failed


def _one_line(error: Exception) -> str:
    """Format an error as one line."""
    said = next(iter(str(error).strip().splitlines()), "")
    return said if isinstance(error, TsdError) else f"{type(error).__name__}: {said}"


@lru_cache(maxsize=2)  # a worker process loads a tokenizer once
def _tokenizer(source: str, expected: str | None) -> "tuple[PreTrainedTokenizerBase, str]":
    """The tokenizer of a folder or source, and its digest. Raises InputError if that is not the expected one."""
    from tsd.models.tokenizer import load_tokenizer, tokenizer_digest

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each CPU has a worker of its own
    tokenizer = load_tokenizer(source)
    digest = tokenizer_digest(tokenizer)
    if expected not in (None, digest):
        raise InputError(f"the files of {source} on node {socket.gethostname()} are not those of the driver")
    return tokenizer, digest
