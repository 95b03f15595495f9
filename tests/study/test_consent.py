"""What a stored recipe names is run, unpickled and contacted by `tsd verify --repair` only with consent."""

from pathlib import Path

import pytest

from tsd.cli import main
from tsd.errors import InputError
from tsd.recipe import Recipe, load
from tsd.storage import folders
from tsd.study import consent, provenance

RULES = "teacher={kind: rules}"
TRUST = "look at {run}/recipe.yaml, and add --trust-code if you trust it; or run `tsd study` with a recipe of your"
NAMED = {
    "an interpreter": (
        "teacher={kind: vllm, model: m, engine_python: /tmp/evil.sh}",
        "names an interpreter that would be run, teacher.engine_python=/tmp/evil.sh",
    ),
    "an engine": (
        "teacher={kind: vllm, model: /tmp/evil}",
        "names a vLLM engine that would be started, teacher.model=/tmp/evil",
    ),
    "one of several teachers": (
        "teachers={a: {kind: rules}, b: {kind: vllm, model: m}}",
        "names a vLLM engine that would be started, teachers.b.model=m",
    ),
    "a server with a key": (
        "teacher={kind: openai, model: m, base_url: 'https://evil.example/v1', key_env: AWS_SECRET}",
        "names a server that would be sent the variable AWS_SECRET, teacher.base_url=https://evil.example/v1",
    ),
    "a server with a default key": (
        "teacher={kind: openai, model: m, base_url: 'https://api.openai.com/v1'}",
        "names a server that would be sent the variable OPENAI_API_KEY, teacher.base_url=https://api",
    ),
    "a tracking server": (
        "tracking.uri=https://evil.example",
        "names a server that would be sent MLflow's credentials, tracking.uri=https://evil.example",
    ),
}
CHECKPOINTS = {
    "of students": ([RULES], "trials"),
    "of a teacher": ([], "teacher-checkpoints"),
    "of one of several teachers": (["teachers={a: {kind: rules}, b: {kind: rules}}"], "teachers/b/trials"),
}


def kept(folder: Path, *overrides: str) -> Recipe:
    """A study with a part of its series, which is damaged."""
    recipe = load("laptop", [*overrides, f"out={folder}"])
    provenance.keep(recipe, "study")
    folders.write_bytes(f"{recipe.folder}/series", "manifest.json", b"{")
    return recipe


def refused(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> str:
    """What `tsd verify --repair` says as it ends; nothing is changed."""
    before = {path: path.stat().st_mtime_ns for path in Path(recipe.folder).rglob("*")}
    with pytest.raises(SystemExit) as left:
        main(["verify", recipe.folder, "--repair"])
    said = capsys.readouterr().err
    assert left.value.code == 2
    assert said.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path(recipe.folder).rglob("*")} == before
    return said


@pytest.mark.parametrize(("override", "said"), NAMED.values(), ids=NAMED)
def test_a_repair_refuses_what_the_stored_recipe_would_run_or_send(
    override: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = kept(tmp_path, *([] if "kind" in override else [RULES]), override)
    line = refused(recipe, capsys)
    assert f"{recipe.folder} {said}" in line
    assert TRUST.format(run=recipe.folder) in line


@pytest.mark.parametrize(("overrides", "place"), CHECKPOINTS.values(), ids=CHECKPOINTS)
def test_a_repair_refuses_to_unpickle_checkpoints(
    overrides: list[str], place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = kept(tmp_path, *overrides)
    folders.write_bytes(f"{recipe.folder}/{place}/one/checkpoint_000000", ".metadata", b"a pickle")
    line = refused(recipe, capsys)
    assert f"{recipe.folder}/{place} has checkpoints, and reading them can run code: delete that folder" in line
    assert "add --trust-code if you trust whoever made it" in line


@pytest.mark.parametrize(
    "overrides",
    [
        [RULES],
        ["teacher={kind: openai, model: m}"],  # a server on this machine, without a key
        ["teachers={a: {kind: rules}, b: {kind: local, train: {pictures: 100}}}"],
        [RULES, "tracking.uri=file:///tmp/mlruns"],
    ],
)
def test_a_study_that_runs_only_tsds_own_code_needs_no_consent(overrides: list[str], tmp_path: Path) -> None:
    recipe = kept(tmp_path, *overrides)
    consent.require(recipe, recipe.folder)
    folders.write_bytes(f"{recipe.folder}/trials", "failed", b"")
    with pytest.raises(InputError, match="trials has checkpoints"):
        consent.require(recipe, recipe.folder)


def test_verify_alone_runs_nothing_of_a_folder_and_asks_for_no_consent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "evil.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    program.chmod(0o755)
    recipe = kept(tmp_path, f"teacher={{kind: vllm, model: m, gpu: false, engine_python: {program}}}")
    with pytest.raises(SystemExit):
        main(["verify", recipe.folder])
    assert "--trust-code" not in capsys.readouterr().err
    assert str(program) in refused(recipe, capsys)
    assert not (tmp_path / "ran").exists()
