"""Load and save model weights one tensor at a time, so that no process holds a full model.

`outline` creates a model on the meta device. `fill` loads safetensors files into it, sharded or not. `write` saves
a model as safetensors files, with adapters merged or alone.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_safetensors_metadata, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError
from pyarrow import fs
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tsd.errors import InputError
from tsd.models import sources
from tsd.storage import folders

INDEX = "model.safetensors.index.json"
WEIGHT_FILES = ["model*.safetensors", INDEX]
PART_BYTES = 4 * 10**9  # of one file of weights; rank 0 holds one such file in memory
A, B = "lora_A.default.weight", "lora_B.default.weight"
NAMED = 3  # weights listed in an error message


@dataclass(frozen=True)
class Weight:
    """One tensor of an exported model, before it is gathered."""

    name: str
    base: Tensor
    low_rank: tuple[Tensor, Tensor, float] | None = None  # A (r, in), B (out, r), scale of B·A

    @property
    def bytes(self) -> int:
        """Size of the full tensor in bytes."""
        return self.base.numel() * self.base.element_size()

    def whole(self) -> Tensor:
        """The full tensor with its adapter merged. Collective: all workers must call it."""
        if self.low_rank is None:
            return _gather(self.base)
        a, b, factor = self.low_rank
        return _gather(self.base) + (_gather(b) @ _gather(a)) * factor


def outline(source: str, adapt: Callable[[PreTrainedModel], PreTrainedModel] | None = None) -> PreTrainedModel:
    """The causal language model of a hub name or folder in float32, with parameters on the meta device.

    adapt: adds adapters. Buffers are computed rather than stored, and hold their values. Raises InputError if the
    source cannot be loaded.
    """
    from accelerate import init_empty_weights  # slow import, not needed for students from scratch

    with sources.readable(source):
        config = AutoConfig.from_pretrained(sources.local(source, weights=False))
        config.name_or_path = source  # not the local copy: adapters record it as their base model
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model = adapt(model) if adapt else model
        model.tie_weights()
    return model


@torch.no_grad()
def fill(model: PreTrainedModel, source: str, device: str, seed: int) -> PreTrainedModel:
    """Load the weights of a model on the meta device. Of a sharded model, each worker reads its own shard.

    Adapters are initialised as in peft: A random from this seed, B zero, the same for any number of workers.
    Raises InputError if the weights of the source do not match the model.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.to_empty(device=device)
    model.tie_weights()  # restores the ties that to_empty broke
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    with sources.readable(source):
        places = _places(source)
        wanted = _match(model, places, source)
        for file in sorted(set(places.values())):
            with safe_open(file, "pt") as stored:
                for name, tensor in wanted.items():
                    if places[name] == file:
                        _read(stored, name, tensor, source)
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name.endswith(A):
            started = torch.empty(parameter.shape)
            torch.nn.init.kaiming_uniform_(started, a=math.sqrt(5))
            rows = _rows(parameter)
            _local(parameter).copy_(started[rows.start : rows.stop])
        elif name.endswith(B):
            _local(parameter).zero_()
    return model


def merged(model: PreTrainedModel) -> list[Weight]:
    """The tensors of the plain model: tied weights once, adapters to be merged."""
    state = model.state_dict(keep_vars=True)
    found = []
    for name, tensor in _once(state).items():
        stem = name.removesuffix("base_layer.weight")
        low_rank = None
        if f"{stem}{A}" in state:
            factor = model.get_submodule(stem.removesuffix(".")).scaling["default"]
            low_rank = (state[f"{stem}{A}"], state[f"{stem}{B}"], factor)
        if not name.endswith((A, B)):
            found.append(Weight(_plain(name), tensor, low_rank))
    return found


def adapters(model: PreTrainedModel) -> list[Weight]:
    """The adapter tensors only, under the names of peft's files."""
    state = model.state_dict(keep_vars=True)
    return [Weight(n.replace(".default.", "."), tensor) for n, tensor in state.items() if n.endswith((A, B))]


def write(
    gathered: Sequence[Weight], folder: Path | None, stem: str = "model", part_bytes: int = PART_BYTES
) -> None:
    """Write weights as safetensors files of at most `part_bytes` each, with an index if there are several.

    Collective: all workers that share the model must call it. folder: None on workers that write nothing.
    """
    parts: list[list[Weight]] = [[]]
    for weight in gathered:
        if parts[-1] and sum(w.bytes for w in parts[-1]) + weight.bytes > part_bytes:
            parts.append([])
        parts[-1].append(weight)
    files = {}
    for number, part in enumerate(parts, 1):
        alone = len(parts) == 1
        file = f"{stem}.safetensors" if alone else f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors"
        tensors = {}
        for weight in part:
            whole = weight.whole().detach()
            if folder is not None:
                tensors[weight.name] = whole.cpu().contiguous()
                files[weight.name] = file
            del whole
        if folder is not None:
            save_file(tensors, folder / file, metadata={"format": "pt"})
    if folder is not None and len(parts) > 1:
        index = {"metadata": {"total_size": sum(weight.bytes for weight in gathered)}, "weight_map": files}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def require_loadable(source: str) -> PreTrainedModel:
    """Raise InputError unless a source has exactly the weights of its model, by names, shapes and file sizes.

    Reads config and file headers but no weights. Returns the model on the meta device.
    """
    with sources.readable(source):
        stored = _shapes(source)
        model = outline(source)
        for name, tensor in _match(model, dict.fromkeys(stored, Path()), source).items():
            _require_shape(source, name, stored[name], tensor)
    return model


def require_whole(source: str) -> None:
    """Raise InputError if a weight file of the source is missing, truncated or too long."""
    with sources.readable(source):
        _shapes(source)


def _shapes(source: str) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of a source, from the headers of its safetensors files."""
    if not sources.is_uri(source) and not Path(source).is_dir():
        try:
            folder = snapshot_download(
                source, allow_patterns=[*WEIGHT_FILES, "config.json"], local_files_only=True
            )
        except LocalEntryNotFoundError:
            there = get_safetensors_metadata(source).files_metadata.values()
            return {name: tuple(info.shape) for file in there for name, info in file.tensors.items()}
        if not any(Path(folder).glob("*.safetensors")):  # only config and tokenizer are in the cache
            there = get_safetensors_metadata(source).files_metadata.values()
            return {name: tuple(info.shape) for file in there for name, info in file.tensors.items()}
    else:
        folder = source
    index = folders.read_json(folder, INDEX)
    if index is None:
        return _header(source, folder, "model.safetensors")
    placed: dict[str, str] = index["weight_map"]
    headers = {file: _header(source, folder, file) for file in sorted(set(placed.values()))}
    for name, file in placed.items():
        if name not in headers[file]:
            raise InputError(f"{source}: {file} lacks {name}, which {INDEX} lists there: fetch it again")
    return {name: headers[file][name] for name, file in placed.items()}


def _header(source: str, folder: str, file: str) -> dict[str, tuple[int, ...]]:
    """The shapes in one safetensors file. Raises InputError if it is missing, truncated or too long."""
    files, root = folders.filesystem(folder)
    info = files.get_file_info(f"{root}/{file}")
    if info.type != fs.FileType.File:
        raise InputError(f"{source} has no {file}: its weights must be in safetensors files")
    with files.open_input_file(f"{root}/{file}") as stored:
        length = int.from_bytes(stored.read(8), "little")
        if info.size < 8 + length:
            raise InputError(f"{source}: {file} is cut off: fetch it again")
        header = json.loads(stored.read(length))
    header.pop("__metadata__", None)
    ends = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if info.size != ends:
        raise InputError(f"{source}: {file} has {info.size:,} bytes and should have {ends:,}: fetch it again")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}


def _places(source: str) -> dict[str, Path]:
    """The file of each tensor of a source."""
    folder = Path(sources.local(source))
    if not folder.is_dir():
        folder = Path(snapshot_download(source, allow_patterns=WEIGHT_FILES))
    if (folder / INDEX).exists():
        return {
            name: folder / file for name, file in json.loads((folder / INDEX).read_text())["weight_map"].items()
        }
    file = folder / "model.safetensors"
    if not file.exists():
        raise InputError(f"{source} has no weights in safetensors files")
    with safe_open(file, "pt") as stored:
        return dict.fromkeys(stored.keys(), file)


def _match(model: PreTrainedModel, places: dict[str, Path], source: str) -> dict[str, Tensor]:
    """The model's tensors by their names in the source. Raises InputError unless the two sets match exactly."""
    names: dict[int, list[str]] = {}  # tied weights have several names
    tensors = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not name.endswith((A, B)):
            names.setdefault(id(tensor), []).append(_plain(name))
            tensors[id(tensor)] = tensor
    matched = {key: next((name for name in same if name in places), None) for key, same in names.items()}
    known = {name for same in names.values() for name in same}
    missing = [names[key][0] for key, name in matched.items() if name is None]
    # Old checkpoints store the frequencies of rotary embeddings, which are computed.
    left = [name for name in places if name not in known and not name.endswith("rotary_emb.inv_freq")]
    for these, fault in ((missing, "lacks the weights"), (left, "has weights that the model lacks:")):
        if these:
            more = f" and {len(these) - NAMED} more" if len(these) > NAMED else ""
            raise InputError(f"{source} {fault} {', '.join(these[:NAMED])}{more}")
    return {name: tensors[key] for key, name in matched.items() if name is not None}


def _read(stored: Any, name: str, tensor: Tensor, source: str) -> None:
    """Copy one stored tensor, or this worker's rows of it, into the model."""
    piece = stored.get_slice(name)
    _require_shape(source, name, tuple(piece.get_shape()), tensor)
    rows = _rows(tensor)
    if len(rows) or not tensor.ndim:
        _local(tensor).copy_(piece[rows.start : rows.stop] if tensor.ndim else stored.get_tensor(name))


def _require_shape(source: str, name: str, shape: tuple[int, ...], tensor: Tensor) -> None:
    """Raise InputError if a stored tensor and the model's have different shapes."""
    if shape != tuple(tensor.shape):
        raise InputError(
            f"{source} has weights {name} of shape {shape}, and the model's are {tuple(tensor.shape)}"
        )


def _rows(tensor: Tensor) -> range:
    """The rows of a tensor that this worker holds. FSDP2 shards as `torch.chunk` does."""
    count = tensor.shape[0] if tensor.ndim else 0
    if not isinstance(tensor, DTensor):
        return range(count)
    each = -(-count // tensor.device_mesh.size())
    first = min(count, each * tensor.device_mesh.get_local_rank())
    return range(first, min(count, first + each))


def _local(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _gather(tensor: Tensor) -> Tensor:
    """The full tensor. Collective if it is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _once(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Each tied weight under its first name only."""
    seen: dict[int, str] = {}
    return {name: tensor for name, tensor in state.items() if seen.setdefault(id(tensor), name) == name}


def _plain(name: str) -> str:
    """The name that a weight wrapped by peft has in the plain model."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")
