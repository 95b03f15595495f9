"""The replies of `decoding.decode`, from an engine of vLLM's: for students of hub models on a GPU.

They are the same but for rounding: an engine on a GPU computes in bfloat16, and a near tie may fall the other way.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transformers import PreTrainedTokenizerBase

from tsd.models.card import CARD
from tsd.training.corpus import chat_tokens

MEMORY = 0.85  # of a GPU's, for weights and the keys and values of as many replies as there is room for


def fits(folder: Path) -> bool:
    """Whether a student's folder is one that an engine is started for: a whole model that came from elsewhere.

    One from scratch has replied before an engine is ready; adapters alone are loaded with the model they adapt.
    """
    about = json.loads((folder / CARD).read_text()).get("about", {})
    return about.get("source") is not None and not about.get("alone", False)


class Engine:
    """A student in an engine, which is a process of its own. A context, at whose end it is gone."""

    def __init__(
        self, folder: Path, tokenizer: PreTrainedTokenizerBase, longest: int, max_new_tokens: int, gpu: bool
    ) -> None:
        """longest: tokens of any prompt that will come."""
        from vllm import LLM, SamplingParams

        self.tokenizer = tokenizer
        self.greedy = SamplingParams(
            temperature=0,
            max_tokens=max_new_tokens,
            stop_token_ids=[tokenizer.eos_token_id],
            ignore_eos=True,  # a model's own config may name other tokens that end a reply
            detokenize=False,
        )
        self.llm: Any = LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            dtype="bfloat16" if gpu else "float32",
            max_model_len=longest + max_new_tokens,
            gpu_memory_utilization=MEMORY,
            enforce_eager=not gpu,
            generation_config="vllm",  # the folder's own is for those who sample
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.llm.llm_engine.engine_core.shutdown()

    def decode(self, prompts: Sequence[str]) -> list[str]:
        """Reply greedily to each prompt, in their order."""
        asked = [{"prompt_token_ids": tokens} for tokens in chat_tokens(prompts, self.tokenizer)]
        outputs = self.llm.generate(asked, self.greedy, use_tqdm=False)
        replies = [output.outputs[0].token_ids for output in outputs]
        texts: list[str] = self.tokenizer.batch_decode(replies, skip_special_tokens=True)
        return texts
