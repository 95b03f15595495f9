"""The small tokenizer of students from scratch. A study's driver needs it, and not torch with it."""

import re
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from tsd.plots.rasterised import PICTURE, PICTURE_END, PICTURE_START, VIDEO
from tsd.series.truth import TOP

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
# A word or a number with the space before it, or a run of anything else: pieces put side by side give the text.
PIECES = r" ?[A-Za-z]+| ?[0-9]+|[^A-Za-z0-9]+?(?= ?[A-Za-z0-9])|[^A-Za-z0-9]+"
MAX_WORDS = 512


def build_tokenizer(texts: Iterable[str], max_length: int, pictures: bool = False) -> PreTrainedTokenizerFast:
    """A small tokenizer: one token for each value 0–99 and for each of the texts' frequent words.

    pictures: with the tokens that stand round a picture and in its place.

    Whatever else is printable ASCII is spelt character by character, so that every such text comes back as
    it was. The same texts, in any order, give the same tokenizer.
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
    # One piece always beats two: each costs the same, and the best segmentation is the cheapest.
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
