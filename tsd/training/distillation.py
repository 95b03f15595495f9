"""Distilling one model into another: how far a student's next-token distributions are from its teacher's.

In: logits of both over the same supervised tokens. Out: a divergence in nats, summed over the tokens as the loss
of words is. It loads no model and knows no corpus.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tsd.errors import InputError
from tsd.recipe import Distil


@dataclass(frozen=True)
class Distillation:
    """Whom a run learns from besides words, and how. The teacher is sharded where the student is."""

    teacher: PreTrainedModel
    settings: Distil

    def mixed(self, words: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """The summed loss of a batch. words: its loss of words; student, teacher: logits, see `divergence`."""
        weight = self.settings.weight
        return (1 - weight) * words + weight * divergence(student, teacher, self.settings)


def divergence(student: Tensor, teacher: Tensor, settings: Distil) -> Tensor:
    """How far two models' distributions are apart, in nats, summed over tokens.

    student, teacher: (tokens, vocabulary) logits. One vocabulary may be padded to more rows than the other, as
    those of Qwen2.5 are; what only one of them has is no token, and left out.
    Times temperature², so that gradients keep their scale (Hinton et al. 2015, section 2.1).
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    temperature = settings.temperature
    ours, theirs = (torch.log_softmax(logits[..., :shared] / temperature, dim=-1) for logits in (student, teacher))
    if settings.divergence == "forward":
        apart = _kl(theirs, ours)
    elif settings.divergence == "reverse":
        apart = _kl(ours, theirs)
    else:  # Agarwal et al. 2024, eq. 1
        beta = settings.beta
        mixture = torch.logaddexp(theirs + math.log(beta), ours + math.log1p(-beta))
        apart = beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)
    return temperature**2 * apart


def require_same_tokens(
    student: str, theirs: PreTrainedTokenizerBase, teacher: str, given: PreTrainedTokenizerBase
) -> None:
    """Raise InputError unless a token means the same to both, by name and by id.

    student, teacher: what to call them. theirs, given: the student's tokenizer and the teacher's.
    """
    mine, other = theirs.get_vocab(), given.get_vocab()
    if mine == other:
        return
    differ = len({name for name, _ in mine.items() ^ other.items()})
    raise InputError(
        f"{student} cannot be distilled from {teacher}: their vocabularies have {len(mine):,} and {len(other):,} "
        f"tokens and differ in {differ:,}; take a teacher with the student's tokens, such as a larger student of "
        "this study, or start the student from a `source` that has the teacher's"
    )


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log probabilities, (tokens, vocabulary), summed over both."""
    return (p.exp() * (p - q)).sum()
