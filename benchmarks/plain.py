"""The plain way of the libraries in the places where tsd has code of its own for speed; `ablations.py` times both.

Contexts change which code runs inside them; functions and classes take the place of tsd's. Both ways give the same
losses, replies and weights up to rounding.
"""

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from tsd.inference import decoding
from tsd.models import forward, vision
from tsd.models.chat import chat_prompts, image_prompt_tokens
from tsd.models.weights import _once
from tsd.plots.figures import FigureCanvasAgg
from tsd.plots.plotter import Look, figure
from tsd.plots.rasterised import GRID, Curve, Pixels
from tsd.tasks import Task
from tsd.training import corpus, loop, optimizer
from tsd.training.checkpoints import PROGRESS

ADAMW_RATE = 0.2  # RMS of an update of torch's Muon with adjust_lr_fn="match_rms_adamw", in learning rates


@contextmanager
def own_forward() -> Iterator[None]:
    """Train by the forward pass of transformers, in padded rows."""
    with (
        mock.patch.object(loop, "packable", return_value=False),
        mock.patch.object(loop, "_padded_answers", _padded_answers),
    ):
        yield


def _padded_answers(
    model: PreTrainedModel, examples: corpus.Corpus, rows: Any, device: str
) -> tuple[Tensor, Tensor]:
    """As `loop._padded_answers`, with the inputs that transformers' processor would make of the images."""
    batch = corpus.collate(examples, rows)
    positions = torch.from_numpy(batch.positions).to(device)  # (positions,)
    inputs = torch.from_numpy(batch.inputs).to(device)  # (rows, length)
    targets = torch.from_numpy(batch.targets[:, batch.positions]).to(device)  # (rows, positions)
    shown = {}
    if examples.pictures:
        shown = _shown(model, inputs, examples.pictures.draw(rows))
    logits = model(input_ids=inputs, logits_to_keep=positions, use_cache=False, **shown).logits
    return logits.float().flatten(0, 1), targets.flatten()


def _shown(model: Any, inputs: Tensor, ink: Pixels) -> dict[str, Tensor]:
    """Images as arguments of a Qwen3-VL: three equal colour channels, one grid an image, the image tokens."""
    patches = vision.patches_of(ink)[:, :, None].expand(-1, -1, 3, -1)  # (batch, patches, colours, pixels)
    return {
        "pixel_values": patches.reshape(len(ink) * vision.PATCHES, -1).to(inputs.device),
        "image_grid_thw": torch.tensor([[1, GRID, GRID]] * len(ink), device=inputs.device),
        "mm_token_type_ids": (inputs == model.config.image_token_id).int(),
    }


@contextmanager
def own_operations() -> Iterator[None]:
    """Train by the patched forward pass, with torch's RMSNorm and transformers' rotation by halves."""
    with (
        mock.patch.object(forward, "_norm", _norm),
        mock.patch.object(forward, "_positions", _positions),
        mock.patch.object(vision, "make_turn", lambda cos, sin, _: (cos[:, :, None], sin[:, :, None])),
        mock.patch.object(vision, "_attend", _attend),
    ):
        yield


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, module.weight.shape, module.weight, module.variance_epsilon)


def _positions(rotary: Any, _: Any, hidden_states: Tensor, position_ids: Tensor) -> Any:
    cos, sin = type(rotary).forward(rotary, hidden_states, position_ids)
    return forward._Positions(cos, sin, {})


def _attend(attention: Any, states: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """As `vision._attend`. turn: cosines and sines, (1, PATCHES, 1, head_dim)."""
    batch, patches, width = states.shape
    cos, sin = turn
    query, key, value = attention.qkv(states).view(batch, patches, 3, attention.num_heads, -1).unbind(2)
    query, key = (x * cos + rotate_half(x) * sin for x in (query, key))  # (batch, PATCHES, num_heads, head_dim)
    mixed = scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)))
    attended: Tensor = attention.proj(mixed.transpose(1, 2).reshape(batch, patches, width))
    return attended


@contextmanager
def models_forward() -> Iterator[None]:
    """Decode by the model's own forward pass, on tsd's cache."""
    with mock.patch.object(decoding, "_is_plain", return_value=False):
        yield


@torch.inference_mode()
def generate(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], max_new_tokens: int
) -> list[str]:
    """`tsd.inference.decoding.decode` by transformers, as one batch."""
    model.eval()
    asked: Any = tokenizer(
        chat_prompts(prompts, tokenizer),
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    return _replies(model, tokenizer, max_new_tokens, **asked)


@torch.inference_mode()
def generate_from_images(
    model: Any, tokenizer: PreTrainedTokenizerBase, task: Task, ink: Pixels, max_new_tokens: int
) -> list[str]:
    """`tsd.inference.decoding.describe` by transformers, as one batch."""
    model.eval()
    inputs = torch.tensor([image_prompt_tokens(task, tokenizer)] * len(ink))  # (batch, length)
    shown = _shown(model, inputs, ink)
    return _replies(
        model, tokenizer, max_new_tokens, input_ids=inputs, attention_mask=torch.ones_like(inputs), **shown
    )


def _replies(model: Any, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, **asked: Tensor) -> list[str]:
    replies = model.generate(
        **asked,
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(replies[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


class Muon(torch.optim.AdamW):
    """The steps of `tsd.training.optimizer.Muon` by torch's own Muon beside AdamW. It does not know shards."""

    def __init__(self, groups: list[dict[str, Any]], **settings: Any) -> None:
        super().__init__([group for group in groups if not group.get("matrices")], **settings)
        (matrices,) = (group for group in groups if group.get("matrices"))
        self.longer = optimizer.RATE / ADAMW_RATE  # an update, as a multiple of torch's
        self.muon = torch.optim.Muon(
            matrices["params"],
            lr=0.0,
            weight_decay=matrices["weight_decay"] / self.longer,
            momentum=optimizer.MOMENTUM,
            ns_steps=optimizer.ITERATIONS,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self, closure: Any = None) -> Any:
        """Take a step of both."""
        for group in self.muon.param_groups:
            group["lr"] = self.longer * self.param_groups[0]["lr"]
        self.muon.step()
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Of both."""
        self.muon.zero_grad(set_to_none)
        super().zero_grad(set_to_none)


def make_optimizer(model: PreTrainedModel, config: Any) -> torch.optim.Optimizer:
    """`loop.make_optimizer` for Muon, by torch's."""
    return Muon(loop.make_optimizer(model, config).param_groups, lr=0.0, betas=config.betas, fused=True)


def save_checkpoint(
    model: PreTrainedModel,
    made: torch.optim.Optimizer,
    keep: Callable[[Path, loop.Progress], None],
    progress: loop.Progress,
) -> None:
    """Write a checkpoint as `tsd.training.checkpoints` does, while training waits. keep: stores the folder."""
    weights, moments = get_state_dict(model, made)
    with tempfile.TemporaryDirectory() as folder:
        save({"model": weights, "optimizer": moments}, checkpoint_id=folder)
        torch.save({"cpu": torch.get_rng_state()}, Path(folder, "random-0.pt"))
        Path(folder, PROGRESS).write_text(json.dumps(asdict(progress)))
        keep(Path(folder), progress)


class Plotter:
    """Plots of one series each: matplotlib draws the line on a background that it drew once, Pillow encodes."""

    def __init__(self) -> None:
        self.sheets: dict[tuple[Any, ...], tuple[Any, Any, Any]] = {}

    def __call__(self, batch: Sequence[Any], looks: Sequence[Look]) -> list[bytes]:
        """PNGs in RGB, in order. batch: series, (length,) uint8, or lists of one."""
        curves = [item if isinstance(item, np.ndarray) else item[0] for item in batch]
        return [self._draw(curve, look) for curve, look in zip(curves, looks, strict=True)]

    def _draw(self, curve: Curve, look: Look) -> bytes:
        canvas, background, line = self._sheet(look, len(curve))
        canvas.restore_region(background)
        line.set(ydata=curve, color=look.colours[0], linewidth=look.line_width)
        for artist in (line, *line.axes.spines.values()):  # the frame is above the line
            line.axes.draw_artist(artist)
        file = io.BytesIO()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(file, "PNG", compress_level=1)
        return file.getvalue()

    def _sheet(self, look: Look, length: int) -> tuple[Any, Any, Any]:
        """Canvas, background and line of a layout, cached."""
        layout = look.style, look.width, look.height, length
        if layout not in self.sheets:
            drawn = figure([np.zeros(length, np.uint8)], look)
            canvas: Any = FigureCanvasAgg(drawn)
            (line,) = drawn.axes[0].lines
            line.set_animated(True)  # left out of the background
            canvas.draw()
            self.sheets[layout] = canvas, canvas.copy_from_bbox(drawn.bbox), line
        return self.sheets[layout]


@torch.no_grad()
def fill(model: PreTrainedModel, source: str) -> PreTrainedModel:
    """`tsd.models.weights.fill` by torch.distributed.checkpoint, for a model without adapters.

    Collective if the model is sharded.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device="cpu")
    model.tie_weights()
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    load(_once(model.state_dict(keep_vars=True)), storage_reader=HuggingFaceStorageReader(source))
    return model
