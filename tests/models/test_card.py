"""The model card: what a student learned from and how well, and no place on this machine."""

from typing import Any

import pytest
import yaml

from tsd.models.card import render
from tsd.tasks import SINGLE, TASKS

RUN = {
    "run_id": "0.03M-500-s0-abc",
    "parameters": 31_999,
    "examples": 500,
    "tokens": 81_000,
    "steps": 62,
    "flops": 3.2e10,
    "seed": 4,
    "validation_loss": 1.23456,
}


def card(task: str = "single", **about: Any) -> dict[str, Any]:
    """What `tsd.json` says of a student."""
    known = {
        "study": "mine",
        "recipe": "f00d",
        "teacher": "rules",
        "source": None,
        "adapters": False,
        "alone": False,
    }
    return {"run": RUN, "length": [64, 128], "task": task, "modality": "text", "about": known | about}


def front(text: str) -> dict[str, Any]:
    """The front matter of a card."""
    found: dict[str, Any] = yaml.safe_load(text.split("---")[1])
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_card_says_data_teacher_loss_and_where_it_comes_from(task: str) -> None:
    text = render(card(task))
    said = (
        "500 descriptions by the teacher rules",
        "64 or 128 points",
        "1.2346 nats",
        "study mine",
        "f00d",
        "Seed 4",
    )
    assert [words for words in (*said, RUN["run_id"]) if words not in text] == []
    assert "trained from scratch" in text
    assert "| score |" not in text
    compile(text.split("```python")[1].split("```")[0], "card", "exec")


def test_scores_stand_with_their_intervals_once_they_are_known() -> None:
    text = render(card(), {"trend": {"value": 0.9, "low": 0.8712, "high": 0.95}})
    assert "| trend | 0.900 | 0.871–0.950 |" in text


def test_a_base_model_is_named_for_a_hub_and_a_folder_by_its_name_alone() -> None:
    hub = render(card(source="Qwen/Qwen3-0.6B"))
    assert front(hub)["base_model"] == "Qwen/Qwen3-0.6B"
    assert front(hub)["library_name"] == "transformers"
    folder = render(card(source="/home/somebody/models/small/", adapters=True))
    assert "base_model" not in front(folder)
    assert "the model folder small and trained with low-rank adapters, merged into it" in folder
    assert "somebody" not in folder


def test_adapters_that_stand_alone_say_so() -> None:
    text = render(card(source="Qwen/Qwen3-0.6B", adapters=True, alone=True))
    assert front(text)["library_name"] == "peft"
    assert "stored here without the base model" in text


def test_the_card_of_a_student_that_looks_says_how_to_show_it_a_plot() -> None:
    text = render({**card(), "modality": "image"})
    assert "from their plots" in text
    assert front(text)["pipeline_tag"] == "image-text-to-text"
    code = text.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")
    assert "AutoProcessor" in code
    assert SINGLE.image_prompt in code
