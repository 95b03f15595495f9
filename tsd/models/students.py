"""Text students: Qwen3 models from scratch, or any causal language model from a hub or a folder.

Also their parameter and FLOP counts, and their export as a plain Hugging Face folder. `vision_students` holds the
vision-language models.
"""

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tsd.errors import InputError
from tsd.models import sources, vision, vision_students, weights
from tsd.models.card import CARD
from tsd.models.tokenizer import load_tokenizer
from tsd.recipe import Lora, Student
from tsd.series.truth import TOP

PROCESSOR = "preprocessor_config.json"  # present in the folder of a vision-language model
SAMPLE = "Describe: 1 2 3"  # a prompt to test a chat template with
# Inputs that decoding needs.
FORWARD = ("input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep")
ADAPTER = "adapter_config.json"  # present in a folder that holds adapters only


@dataclass(frozen=True)
class Size:
    """An architecture to train from scratch: dimensions and peak learning rate."""

    hidden: int
    mlp: int
    layers: int
    head: int
    learning_rate: float


# Parameters without embeddings: 31,040 · 102,000 · 302,960 · 1,005,248 · 10,041,664. Learning rates fall with
# size. The models are deep rather than wide: locating an extremum takes one layer for positions and one to compare
# values.
SCRATCH = {
    "0.03M": Size(hidden=32, mlp=64, layers=3, head=16, learning_rate=4e-3),
    "0.1M": Size(hidden=48, mlp=112, layers=4, head=24, learning_rate=3e-3),
    "0.3M": Size(hidden=80, mlp=208, layers=4, head=20, learning_rate=2e-3),
    "1M": Size(hidden=128, mlp=352, layers=5, head=32, learning_rate=1.5e-3),
    "3M": Size(hidden=192, mlp=496, layers=7, head=48, learning_rate=1.1e-3),
    "10M": Size(hidden=320, mlp=880, layers=8, head=64, learning_rate=8e-4),
}


def learning_rate(student: Student) -> float:
    """Peak learning rate of a student: its own if set, else that of its size."""
    sizes = vision_students.SCRATCH if student.is_multimodal else SCRATCH
    return student.learning_rate or sizes[student.architecture].learning_rate


def build(
    student: Student,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    max_length: int,
    divide: Callable[[PreTrainedModel], PreTrainedModel] = lambda model: model,
    device: str = "cpu",
) -> PreTrainedModel:
    """A student ready for training, in float32: from scratch with this seed, or loaded from its source.

    divide: shards a model over the workers. A model with a source is sharded on the meta device, before its
    weights are loaded, so that no worker ever holds all of them. Raises InputError if the source cannot be loaded.
    """
    if student.source is None:
        torch.manual_seed(seed)
        return divide(_scratch(student, tokenizer, max_length).to(device))
    adapt = _adapter(student.lora, student.source) if student.lora else None
    return weights.fill(divide(weights.outline(student.source, adapt)), student.source, device, seed)


def require_usable(source: str) -> PreTrainedTokenizerBase:
    """Raise InputError unless a student can start from a source and be decoded. Returns the tokenizer.

    Checks tokenizer, chat template, weight names and shapes, and the inputs of the model's forward pass. No
    weights are read.
    """
    tokenizer = load_tokenizer(source)
    turn = [{"role": "user", "content": SAMPLE}]
    try:
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates can raise any exception
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the chat template of {source} does not accept a user turn: {reason}") from None
    if SAMPLE not in prompt:
        raise InputError(f"the chat template of {source} omits the user's message: use an Instruct model")
    tokens = tokenizer(f"{prompt}{SAMPLE}{tokenizer.eos_token}", add_special_tokens=False)["input_ids"]
    if tokens[-1] != tokenizer.eos_token_id:
        raise InputError(
            f"the tokenizer of {source} does not encode its eos_token {tokenizer.eos_token!r} as one token"
        )
    model = weights.require_loadable(source)
    rows = model.get_input_embeddings().weight.shape[0]
    if max(*tokens, tokenizer.pad_token_id) >= rows:
        raise InputError(f"the tokenizer of {source} has more tokens than its model's {rows:,}")
    takes = inspect.signature(type(model).forward).parameters
    lacking = [name for name in FORWARD if name not in takes]
    if lacking or getattr(type(model), "_is_stateful", False):
        why = f"takes no {lacking[0]}" if lacking else "keeps a recurrent state instead of keys and values"
        raise InputError(f"{source} cannot be decoded: its {type(model).__name__} {why}")
    return tokenizer


def load_model(source: str, **options: Any) -> PreTrainedModel:
    """The causal or vision-language model of a hub name, folder or URI, in float32.

    A folder of adapters gives the base model with the adapters loaded. Raises InputError if it cannot be loaded.
    """
    folder = Path(sources.local(source))
    is_vision = (folder / PROCESSOR).is_file()
    kind = AutoModelForImageTextToText if is_vision else AutoModelForCausalLM
    base = _adapted(folder)
    if base is not None and sources.is_uri(base):  # transformers would take the URI for a hub name
        model = _load(kind, base, dtype=torch.float32, **options)
        with sources.readable(source):
            (model[0] if isinstance(model, tuple) else model).load_adapter(str(folder))
        return model
    return _load(kind, source, dtype=torch.float32, **options)


def _adapted(folder: Path) -> str | None:
    """The base model of a folder of adapters; None if the folder holds a full model."""
    config = folder / ADAPTER
    return json.loads(config.read_text()).get("base_model_name_or_path") if config.is_file() else None


def export(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path | None,
    card: dict[str, Any],
    adapters: bool = False,
) -> None:
    """Write a student as a plain Hugging Face folder: weights, config, tokenizer, chat template.

    Collective: all workers that share the model must call it. folder: None on all but one of them.
    card: model metadata, written to `tsd.json` and read by `tsd explain`.
    adapters: write the adapters only, in peft's format, instead of merging them into the model.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if adapters:
        weights.write(weights.adapters(model), folder, "adapter_model")
    else:
        weights.write(weights.merged(model), folder)
    if folder is None:
        return
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    if adapters:
        model.peft_config["default"].save_pretrained(folder)
    else:
        plain.config.architectures = [type(plain).__name__.removeprefix("FSDP")]
        plain.config.dtype = str(plain.dtype).removeprefix("torch.")
        plain.config.save_pretrained(folder)
    GenerationConfig(
        do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if vision.is_vision_model(plain):
        vision_students.save_processor(folder)
    (folder / CARD).write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")


def parameter_counts(model: PreTrainedModel) -> tuple[int, int]:
    """Parameters with and without embeddings. Tied weights count once; an untied head is an embedding."""
    embeddings = {
        id(p)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        for p in module.parameters()
    }
    parameters = {id(p): p.numel() for p in model.parameters()}
    return sum(parameters.values()), sum(n for key, n in parameters.items() if key not in embeddings)


def training_flops(model: PreTrainedModel, body: int, tokens: int, supervised: int, length: float) -> float:
    """FLOPs of a forward and a backward pass over `tokens` tokens in rows of `length`.

    6·N·D without embeddings, plus 12·layers·width·length/2 per token for causal attention (Chowdhery et al. 2022,
    appendix B), plus the output head at supervised positions only. For a vision-language model, N is that of the
    language model, and the vision encoder is counted per image.
    body: N, parameters without embeddings.
    """
    config = model.config.get_text_config()
    width = config.num_attention_heads * getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )
    attention = 12 * config.num_hidden_layers * width * length / 2
    head = 6 * config.hidden_size * config.vocab_size
    seeing = 0.0
    if vision.is_vision_model(model):
        seeing = tokens / length * 3 * vision.flops(model.model.visual)
        body -= sum(p.numel() for p in model.model.visual.parameters())
    return float(tokens * (6 * body + attention) + supervised * head + seeing)


def forward_flops(model: PreTrainedModel, tokens: int, supervised: int, length: float) -> float:
    """FLOPs of a forward pass, one third of `training_flops`: the cost of a teacher's distributions."""
    return training_flops(model, parameter_counts(model)[1], tokens, supervised, length) / 3


def _scratch(student: Student, tokenizer: PreTrainedTokenizerBase, max_length: int) -> PreTrainedModel:
    """A model of a built-in size, initialised from torch's current random state."""
    if student.is_multimodal:
        return vision_students.build(vision_students.SCRATCH[student.architecture], tokenizer)
    model = Qwen3ForCausalLM(_scratch_config(SCRATCH[student.architecture], tokenizer, max_length))
    _initialise(model, tokenizer)
    return model


def _scratch_config(size: Size, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Qwen3Config:
    """A Qwen3 config with full multi-head attention and tied embeddings."""
    heads = size.hidden // size.head
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=size.hidden,
        intermediate_size=size.mlp,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=size.head,
        max_position_embeddings=max_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


@torch.no_grad()
def _initialise(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """Initialise matrices with unit gain and the embeddings of 0–99 as a smooth code of their value.

    Neighbouring values start with similar embeddings. The initialisation of transformers (std 0.02, unrelated
    values) needs more examples at these sizes; see docs/experiments.md.
    """
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    table = model.get_input_embeddings().weight  # (vocabulary, width)
    width = table.shape[1]
    frequency = torch.arange(1, width // 2 + 1) / 2  # low frequencies get the largest amplitude
    phase = torch.linspace(0, 1, TOP + 1)[:, None] * frequency * torch.pi / 2  # (TOP + 1, width // 2)
    code = torch.cat([phase.sin() / frequency.sqrt(), phase.cos() / frequency.sqrt()], dim=1)
    code = code - code.mean(0)
    values = tokenizer.convert_tokens_to_ids([f" {value}" for value in range(TOP + 1)])
    table[values] = code / code.std() * table.std()


def _adapter(lora: Lora, source: str) -> Callable[[PreTrainedModel], PreTrainedModel]:
    """A function that adds LoRA adapters to a model."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        task_type="CAUSAL_LM",
        base_model_name_or_path=source,
    )
    return lambda model: get_peft_model(model, settings)


def _load(auto: Any, source: str, **options: Any) -> Any:
    """`from_pretrained` of an auto class, with loading errors turned into InputError."""
    with sources.readable(source):
        return auto.from_pretrained(sources.local(source), **options)
