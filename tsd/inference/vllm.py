"""Greedy decoding with a vLLM engine, for students of hub models on a GPU.

Responses equal those of `decoding.decode` up to rounding: on a GPU the engine computes in bfloat16, which may
decide a near tie differently.
"""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from tsd.models.chat import chat_tokens

MEMORY = 0.85  # fraction of GPU memory for weights and KV cache


class Engine:
    """A student in a vLLM engine with its own process. A context manager that ends the engine on exit."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, longest: int, max_new_tokens: int, gpu: bool
    ) -> None:
        """longest: most tokens of any prompt. gpu: bfloat16 on a GPU, else float32 on CPU."""
        from vllm import LLM, SamplingParams

        self.tokenizer = tokenizer
        self.greedy = SamplingParams(
            temperature=0,
            max_tokens=max_new_tokens,
            stop_token_ids=[tokenizer.eos_token_id],
            ignore_eos=True,  # the model's generation config may name other end tokens
            detokenize=False,
        )
        self.llm: Any = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype="bfloat16" if gpu else "float32",
            max_model_len=longest + max_new_tokens,
            gpu_memory_utilization=MEMORY,
            enforce_eager=not gpu,
            generation_config="vllm",  # the folder's own is meant for sampling
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def decode(self, prompts: Sequence[str]) -> list[str]:
        """Respond greedily to each prompt, in their order."""
        asked = [{"prompt_token_ids": tokens} for tokens in chat_tokens(prompts, self.tokenizer)]
        outputs = self.llm.generate(asked, self.greedy, use_tqdm=False)
        replies = [output.outputs[0].token_ids for output in outputs]
        texts: list[str] = self.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return texts
