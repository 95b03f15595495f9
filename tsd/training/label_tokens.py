"""Which tokens of a reply carry a label or a number; the others are wording.

A reply may be worded in many ways, and no student can know which. So the loss of its wording has a floor, and the
loss of its labels and numbers says what the student knows of the series.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def label_tokens(
    tokenizer: "PreTrainedTokenizerBase", telling: Collection[str], others: Collection[str]
) -> npt.NDArray[np.bool_]:
    """Which tokens carry a label or a number, (vocabulary,).

    These are the tokens with a digit, and those of the words that tell classes apart, unless they are also pieces
    of another word. telling, others: words in small letters, as `Task.words` gives them.
    """
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    found = np.array([any(sign.isdigit() for sign in piece) for piece in pieces])
    found[list(_tokens_of(tokenizer, telling) - _tokens_of(tokenizer, others))] = True
    found[tokenizer.all_special_ids] = False
    return found


def _tokens_of(tokenizer: "PreTrainedTokenizerBase", words: Collection[str]) -> set[int]:
    """The tokens of words, wherever they stand in a sentence."""
    forms = [
        f"{before}{form}" for word in sorted(words) for form in (word, word.capitalize()) for before in ("", " ")
    ]
    return {token for form in forms for token in tokenizer(form, add_special_tokens=False)["input_ids"]}
