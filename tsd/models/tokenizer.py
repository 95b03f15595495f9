"""Tokenizers: the small one of students from scratch, and those of sources. Building one needs no torch."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tsd.errors import InputError
from tsd.models import sources
from tsd.plots.rasterised import PICTURE, PICTURE_END, PICTURE_START, VIDEO
from tsd.series.truth import TOP
from tsd.storage import keys

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}"
    "{% if item['type'] == 'text' %}{{ item['text'] }}{% else %}{{ '"
    + PICTURE_START
    + PICTURE
    + PICTURE_END
    + "' }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# A word or a number with the space before it, or a run of other characters. Concatenated, the pieces give the
# text.
PIECES = r" ?[A-Za-z]+| ?[0-9]+|[^A-Za-z0-9]+?(?= ?[A-Za-z0-9])|[^A-Za-z0-9]+"
MAX_WORDS = 512
EXAMPLES = 20_000  # the first training examples, whose frequent words become tokens


def build_tokenizer(texts: Iterable[str], max_length: int, pictures: bool = False) -> PreTrainedTokenizerFast:
    """A small tokenizer with one token for each value 0–99 and each frequent word of the texts.

    Other printable ASCII characters are spelt one by one, so that any such text round-trips. The result does not
    depend on the order of the texts.
    pictures: add the special tokens of image inputs.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(re.findall(PIECES, text))
    numbers = [f" {value}" for value in range(TOP + 1)]
    roles = ["user", "assistant", "system", "\n"]
    characters = [chr(code) for code in range(32, 127)]
    by_count = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))
    words = [word for word in by_count if not word.strip().isdigit()][:MAX_WORDS]
    specials = [PAD, START, END, "<unk>"]
    pieces = list(dict.fromkeys([*specials, *roles, *numbers, *characters, *words]))
    # All pieces have the same score, so the most probable segmentation has the fewest pieces.
    tokenizer = Tokenizer(Unigram([(piece, -1.0) for piece in pieces], unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(specials[:3])
    if pictures:
        tokenizer.add_special_tokens([PICTURE_START, PICTURE_END, PICTURE, VIDEO])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token="<unk>",
        model_max_length=max_length,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub name, folder or URI. Without a pad token, the end-of-sequence token is used.

    Raises InputError if there is none, or if it has no chat template or no end-of-sequence token.
    """
    with sources.readable(source):
        folder = sources.local(source, weights=False)
        tokenizer: PreTrainedTokenizerBase = _tokenizer_class(folder).from_pretrained(folder)
    if not tokenizer.chat_template:
        raise InputError(f"the tokenizer of {source} has no chat template: use an Instruct model")
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"the tokenizer of {source} has no eos_token, so no reply would end: name one in its "
            "tokenizer_config.json, or use an Instruct model"
        )
    if tokenizer.pad_token_id is None:  # any token will do: padding is masked and never supervised
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer_class(folder: str) -> Any:
    """transformers' loader for a tokenizer folder or hub name: AutoTokenizer, or where the folder names it, the
    plain class that `build_tokenizer` returns. The latter loads in a third of the time, without torch.
    """
    with suppress(OSError, ValueError, KeyError, TypeError):  # hub names; AutoTokenizer names what is damaged
        said = json.loads((Path(folder) / "tokenizer_config.json").read_text())
        if said["tokenizer_class"] == PreTrainedTokenizerFast.__name__ and "auto_map" not in said:
            return PreTrainedTokenizerFast
    from transformers import AutoTokenizer  # imports torch

    return AutoTokenizer


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what a tokenizer makes of a text: its vocabulary and rules, special tokens, and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)  # None for tokenizers in plain Python
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return keys.digest([type(tokenizer).__name__, rules, special, tokenizer.chat_template])
