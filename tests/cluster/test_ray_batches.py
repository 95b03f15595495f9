"""The annotation stage by offline batches on a real local Ray, its driver killed between submit and collect."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.asked import KEY
from support.batch_server import BatchServer, Ending
from support.commands import command, kill_once, run

from tsd.storage import datasets
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

ROWS = 3 * 1024  # in three parts


def annotate(out: Path, server: BatchServer, stage: str = "annotate") -> list[str]:
    """The command that asks in batches about a few series in small plots."""
    fields = {
        "kind": "openai",
        "model": "seer",
        "base_url": f"'{server.url}'",
        "key_env": KEY,
        "mode": "batch",
        "workers": "2",
        "batch": "{poll_seconds: 0.5, at_once: 4, most_requests: 2000}",
    }
    teacher = ", ".join(f"{name}: {value}" for name, value in fields.items())
    sets = ("series.blocks_per_part=1", "plots={width: 196, height: 140}", f"teacher={{{teacher}}}")
    return command(out, f"series.count={ROWS}", *sets, stage=stage)


def annotations(out: Path) -> dict[str, list[object]]:
    """The finished table."""
    return datasets.open_dataset(str(out / "tiny" / "annotations"), SINGLE.tables.annotations).read().to_pydict()


@pytest.mark.long("test_batch_restarts.py does the same without Ray")
def test_killed_between_submit_and_collect_the_stage_ends_with_the_same_table_and_pays_nothing_twice(
    tmp_path: Path, batch_server: BatchServer
) -> None:
    server = batch_server
    tables, drawn = [], tmp_path / "drawn"
    run(annotate(drawn, server, "generate"), cpus=2)
    for name, kill in (("undisturbed", False), ("killed", True)):
        out = tmp_path / name
        shutil.copytree(drawn / "tiny" / "series", out / "tiny" / "series")
        first, half = len(server.batches), half_at_first(server)
        server.paid.clear()
        server.ending = half
        if kill:
            server.seconds = 3600.0
            kill_once(lambda first=first: len(server.batches) - first == 3, annotate(out, server), cpus=2)
            assert server.paid.total() == 0
            server.seconds = 0.0
        printed = run(annotate(out, server), cpus=2)
        assert f" {ROWS:,} replies" in printed
        assert server.paid == {str(one): 1 for one in range(ROWS)}
        assert not list(out.rglob("batches.json"))  # nothing of what was under way stays behind
        tables.append(annotations(out))
    assert tables[0] == tables[1]
    assert set(tables[0]["status"]) == {"ok"}
    assert sorted(set(tables[0]["attempts"])) == [1, 2]


def half_at_first(server: BatchServer) -> Callable[[int], Ending]:
    """The first batch from now on that asks about series 0 expires half done."""
    before = len(server.batches)

    def ending(number: int) -> Ending:
        earlier = any(lines[0]["custom_id"] == "0" for lines in server.lines[before:number])
        first = server.lines[number][0]["custom_id"] == "0" and not earlier
        return Ending("expired", 0.5) if first else Ending()

    return ending
