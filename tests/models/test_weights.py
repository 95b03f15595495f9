"""Weights between disk and memory: what two workers load, share and export is what transformers loads alone."""

import dataclasses
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.tiny_qwen import CHAT
from support.workers import WORKERS, joined, together
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, Qwen2Config, Qwen3Config

from tsd.errors import InputError
from tsd.inference.decoding import decode
from tsd.models import weights
from tsd.models.students import build, export, load_model
from tsd.models.tokenizer import build_tokenizer, load_tokenizer
from tsd.recipe import Lora, Student, TrainingConfig
from tsd.training.corpus import Corpus
from tsd.training.loop import Progress, WorkerContext, make_optimizer, shard, train

VOCABULARY = 151_936  # as Qwen2.5 and Qwen3 have
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
}
KINDS = {
    "tied": Qwen2Config(
        **SHAPE, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    "untied": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """What two worker processes do, one after the other."""

    sources: dict[str, str]
    out: Path


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders as a hub has them: bfloat16, in several files with an index, of models with random weights."""
    folders = {}
    for kind, config in KINDS.items():
        folder = tmp_path_factory.mktemp("hub") / kind
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="6KB")
        tokenizer = build_tokenizer(["Describe the series: 1 2"] * 2, 512)
        tokenizer.chat_template = CHAT
        tokenizer.save_pretrained(folder)
        assert len(list(folder.glob("*.safetensors"))) > 2
        folders[kind] = str(folder)
    return folders


def student(source: str, **lora: Any) -> Student:
    """One that starts from a source, in full or by adapters."""
    return Student(name="one", source=source, learning_rate=1e-3, lora=Lora(**lora) if lora else None)


def corpus() -> Corpus:
    """Sixteen examples of random tokens, the last four of each an answer."""
    rng = np.random.default_rng(0)
    return Corpus([rng.integers(0, 90, 20).astype(np.int32) for _ in range(16)], np.full(16, 16), 0)


def learn(model: PreTrainedModel, place: WorkerContext) -> None:
    """Two steps."""
    config = TrainingConfig(batch_size=8, workers=place.workers)
    train(
        model,
        corpus(),
        config,
        learning_rate=1e-2,
        seed=0,
        place=place,
        optimizer=make_optimizer(model, config),
        progress=Progress(),
    )


def whole(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every weight of a model, gathered."""
    return {
        name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).clone()
        for name, tensor in model.state_dict().items()
    }


def work(rank: int, job: Job) -> None:
    """One worker: load, look at what it got, train, export."""
    with joined(rank, job.out) as place:
        for kind, source in job.sources.items():
            for name, one in {"full": student(source), "lora": student(source, r=2)}.items():
                tokenizer = load_tokenizer(source)
                model = build(one, tokenizer, 3, 512, partial(shard, place=place))
                mine = sum(p.to_local().numel() for p in model.parameters())
                found = {"mine": mine, "all": sum(p.numel() for p in model.parameters())}
                (job.out / f"{kind}-{name}-{rank}.json").write_text(json.dumps(found))
                state = whole(model)
                if rank == 0:
                    torch.save(state, job.out / f"{kind}-{name}.pt")
                learn(model, place)
                for adapters in (False, True) if one.lora else (False,):
                    folder = job.out / f"{kind}-{name}-{'adapter' if adapters else 'merged'}"
                    export(model, tokenizer, None if rank else folder, {}, adapters)


@pytest.fixture(scope="module")
def job(sources: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Job:
    """What two gloo workers left behind."""
    job = Job(sources, tmp_path_factory.mktemp("job"))
    together(work, job)
    return job


@pytest.mark.parametrize("kind", KINDS)
def test_two_workers_have_the_weights_that_transformers_loads_and_half_of_them_each(job: Job, kind: str) -> None:
    expected = AutoModelForCausalLM.from_pretrained(job.sources[kind], dtype=torch.float32).state_dict()
    found = torch.load(job.out / f"{kind}-full.pt")
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name
    shares = [json.loads((job.out / f"{kind}-full-{rank}.json").read_text()) for rank in range(WORKERS)]
    assert sum(share["mine"] for share in shares) == shares[0]["all"]
    assert all(share["mine"] == pytest.approx(share["all"] / WORKERS, rel=1e-4) for share in shares)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_has_them_too_and_computes_what_transformers_does(sources: dict[str, str], kind: str) -> None:
    mine = build(student(sources[kind]), load_tokenizer(sources[kind]), 0, 512).eval()
    theirs = AutoModelForCausalLM.from_pretrained(sources[kind], dtype=torch.float32)
    ids = torch.arange(60)[None]  # far enough for the rotary angles to matter
    with torch.inference_mode():
        assert torch.equal(mine(input_ids=ids).logits, theirs(input_ids=ids).logits)
    assert (mine.get_input_embeddings().weight is mine.get_output_embeddings().weight) == (kind == "tied")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_start_the_same_on_one_worker_and_on_two(job: Job, kind: str) -> None:
    alone = build(student(job.sources[kind], r=2), load_tokenizer(job.sources[kind]), 3, 512)
    found = torch.load(job.out / f"{kind}-lora.pt")
    for name, weight in alone.state_dict().items():
        assert torch.equal(found[name], weight), name
    starts = {name: weight for name, weight in found.items() if "lora" in name}
    assert len(starts) == 8
    assert all(bool(weight.any()) == ("lora_A" in name) for name, weight in starts.items())


@pytest.mark.parametrize("way", ["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_two_workers_export_is_what_one_process_trains(job: Job, kind: str, way: str) -> None:
    source = job.sources[kind]
    alone = build(student(source, r=2) if way == "lora" else student(source), load_tokenizer(source), 3, 512)
    learn(alone, WorkerContext())
    before = load_model(source).state_dict()
    expected = alone.merge_and_unload() if way == "lora" else alone
    loaded = AutoModelForCausalLM.from_pretrained(job.out / f"{kind}-{way}-merged", dtype=torch.float32)
    assert type(loaded).__name__ == type(load_model(source)).__name__
    for name, weight in loaded.state_dict().items():
        assert torch.allclose(weight, expected.state_dict()[name], atol=2e-4), name
    changed = [name for name, weight in loaded.state_dict().items() if not torch.equal(weight, before[name])]
    assert len(changed) == (4 if way == "lora" else len(before))


@pytest.mark.parametrize("kind", KINDS)
def test_exported_adapters_answer_as_the_merged_model_does(job: Job, kind: str) -> None:
    folders = [job.out / f"{kind}-lora-{form}" for form in ("adapter", "merged")]
    assert {path.name for path in folders[0].glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert len(load_file(folders[0] / "adapter_model.safetensors")) == 8
    models = [load_model(str(folder)).eval() for folder in folders]
    ids = torch.arange(60)[None]
    with torch.inference_mode():
        adapted, merged, plain = (
            model(input_ids=ids).logits for model in (*models, load_model(job.sources[kind]).eval())
        )
    assert torch.allclose(adapted, merged, atol=1e-4)
    assert not torch.allclose(adapted, plain, atol=1e-3)
    replies = [decode(model, load_tokenizer(str(f)), ["1 2"], 5) for model, f in zip(models, folders, strict=True)]
    assert replies[0] == replies[1]
    _, info = load_model(str(folders[0]), output_loading_info=True)  # as `tsd explain` loads it
    assert not info["missing_keys"]


def test_a_model_larger_than_a_file_is_written_in_several_that_transformers_loads(
    sources: dict[str, str], tmp_path: Path
) -> None:
    model = load_model(sources["untied"])
    model.config.save_pretrained(tmp_path)
    weights.write(weights.merged(model), tmp_path, part_bytes=6_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 4
    sizes = [sum(t.nbytes for t in load_file(tmp_path / name).values()) for name in files]
    assert all(
        size <= 6_000 or len(load_file(tmp_path / name)) == 1 for size, name in zip(sizes, files, strict=True)
    )
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items())


def damaged(source: str, folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> str:
    """A copy of a source in one file, with its weights changed."""
    folder.mkdir()
    state = {}
    for path in Path(source).iterdir():
        if path.suffix == ".safetensors":
            state |= load_file(path)
        elif "index" not in path.name:
            (folder / path.name).write_bytes(path.read_bytes())
    change(state)
    save_file(state, folder / "model.safetensors")
    return str(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("model.norm.weight"), r"lacks the weights model\.norm\.weight$"),
        (lambda state: [state.pop(name) for name in sorted(state)[2:7]], "lacks the weights .* and 2 more$"),
        (lambda state: state.update(extra=torch.zeros(2)), "has weights that the model lacks: extra$"),
        (lambda state: state.update({"model.norm.weight": torch.ones(17)}), r"of shape \(17,\).*are \(16,\)$"),
    ],
    ids=["one missing", "five missing", "one left over", "a wrong shape"],
)
def test_weights_that_are_not_the_models_are_named_in_one_line(
    sources: dict[str, str], tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None], says: str
) -> None:
    folder = damaged(sources["tied"], tmp_path / "damaged", change)
    with pytest.raises(InputError, match=says) as caught:
        build(student(folder), load_tokenizer(folder), 0, 512)
    assert folder in str(caught.value)


def test_a_tied_head_that_was_stored_besides_is_no_stranger(sources: dict[str, str], tmp_path: Path) -> None:
    def add(state: dict[str, torch.Tensor]) -> None:
        state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
        state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)

    folder = damaged(sources["tied"], tmp_path / "older", add)
    assert build(student(folder), load_tokenizer(folder), 0, 512)


def test_a_folder_without_safetensors_and_one_that_is_not_there_are_named(
    sources: dict[str, str], tmp_path: Path
) -> None:
    folder = damaged(sources["tied"], tmp_path / "empty", lambda state: None)
    tokenizer = load_tokenizer(folder)
    (tmp_path / "empty" / "model.safetensors").unlink()
    for source in (folder, str(tmp_path / "gone")):
        with pytest.raises(InputError) as caught:
            build(student(source), tokenizer, 0, 512)
        assert source in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
