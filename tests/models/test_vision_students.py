"""Students that look: the same numbers as transformers' own model gives, from the folder that anyone can load."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForImageTextToText

from tsd.generation import generator
from tsd.inference.decoding import describe
from tsd.models import students, vision, vision_students
from tsd.models.chat import image_prompt_tokens
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import RulesTeacher, Student, TrainingConfig, load
from tsd.tasks import SINGLE
from tsd.teachers.rules import Rules
from tsd.training.corpus import Corpus, tokenise
from tsd.training.loop import Progress, WorkerContext, evaluate, make_optimizer, summed_loss, train

RECIPE = load("laptop", [])
SMALL = Student(name="0.1M", modality="image")


@pytest.fixture(scope="module")
def series() -> pa.Table:
    return generator.draw_table(SINGLE, RECIPE.series, 3, 0, 256)


@pytest.fixture(scope="module")
def examples(series: pa.Table) -> pa.Table:
    said = Rules(RulesTeacher(error_rate=0.0), SINGLE, 3).annotate(series)
    prompts = [SINGLE.student_prompt(values) for values in series["values"].to_pylist()]
    return pa.table({"prompt": prompts, "completion": said["text"]})


@pytest.fixture(scope="module")
def tokenizer(examples: pa.Table) -> Any:
    texts = [SINGLE.image_prompt, *examples["prompt"].to_pylist(), *examples["completion"].to_pylist()]
    return build_tokenizer(texts, 2048, pictures=True)


@pytest.fixture(scope="module")
def corpus(examples: pa.Table, tokenizer: Any) -> Corpus:
    return tokenise(examples, tokenizer, 2048, SINGLE)


def processed(ink: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures as transformers' processor hands them to the model."""
    patches = vision.patches_of(ink)[:, :, None].expand(-1, -1, 3, -1)  # (batch, patches, colours, pixels)
    return patches.reshape(len(ink) * vision.PATCHES, -1), torch.tensor([[1, 8, 8]] * len(ink))


def own_logits(model: Any, tokenizer: Any, rows: torch.Tensor, ink: Any) -> torch.Tensor:
    pixels, grid = processed(ink)
    kinds = (rows == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
    found: torch.Tensor = model(
        input_ids=rows, pixel_values=pixels, image_grid_thw=grid, mm_token_type_ids=kinds
    ).logits
    return found


def test_logits_and_gradients_are_those_of_transformers(corpus: Corpus, tokenizer: Any) -> None:
    model = students.build(SMALL, tokenizer, 0, 2048)
    rows = np.arange(6)
    assert corpus.pictures is not None
    loss = summed_loss(model, corpus, rows, "cpu")
    loss.backward()  # type: ignore[no-untyped-call]
    ours = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    total = torch.zeros(())
    for row in rows:
        tokens, answer = torch.from_numpy(corpus.tokens[row])[None], int(corpus.answers[row])
        logits = own_logits(model, tokenizer, tokens[:, :-1], corpus.pictures.draw([row]))
        total = total + torch.nn.functional.cross_entropy(
            logits[0, answer - 1 :], tokens[0, answer:], reduction="sum"
        )
    total.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, rtol=1e-3, atol=1e-6 * total.item()), name


def test_replies_are_those_of_generate(corpus: Corpus, tokenizer: Any, tmp_path: Path) -> None:
    trained = students.build(SMALL, tokenizer, 0, 2048)
    learn(trained, corpus, epochs=1)
    students.export(trained, tokenizer, tmp_path, {"task": "single"})
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32)
    assert corpus.pictures is not None
    ink = corpus.pictures.draw(range(40))
    said = describe(students.load_model(str(tmp_path)), tokenizer, SINGLE, ink, 60)
    prompt = torch.tensor([image_prompt_tokens(SINGLE, tokenizer)])
    for picture, text in zip(ink[:12], said, strict=False):
        pixels, grid = processed(picture[None])
        kinds = (prompt == tokenizer.convert_tokens_to_ids("<|image_pad|>")).int()
        reply = model.generate(
            input_ids=prompt,
            pixel_values=pixels,
            image_grid_thw=grid,
            mm_token_type_ids=kinds,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=60,
        )
        assert tokenizer.decode(reply[0, prompt.shape[1] :], skip_special_tokens=True) == text
    assert describe(trained, tokenizer, SINGLE, ink[7:9], 60) == said[7:9]  # whoever else is looked at


def learn(model: Any, corpus: Corpus, epochs: int) -> Progress:
    settings = TrainingConfig(epochs=epochs, batch_size=16)
    optimizer, progress = make_optimizer(model, settings), Progress()
    train(
        model,
        corpus,
        settings,
        learning_rate=4e-3,
        seed=0,
        place=WorkerContext(),
        optimizer=optimizer,
        progress=progress,
    )
    return progress


def test_a_student_that_looks_learns(corpus: Corpus, tokenizer: Any) -> None:
    model = students.build(SMALL, tokenizer, 0, 2048)
    before = evaluate(model, corpus, 64, WorkerContext())
    learn(model, corpus, epochs=6)
    assert evaluate(model, corpus, 64, WorkerContext()) < before / 5


@pytest.mark.parametrize("name", vision_students.SCRATCH)
def test_students_that_look_are_as_large_as_those_that_read(name: str, tokenizer: Any) -> None:
    looking, reading = (
        students.parameter_counts(students.build(Student(name=name, modality=modality), tokenizer, 0, 2048))[1]
        for modality in ("image", "text")
    )
    assert looking == pytest.approx(reading, rel=0.01)
