"""Knowledge distillation: the divergence between the next-token distributions of student and teacher.

In: logits of both for the same supervised tokens. Out: a divergence in nats, summed over the tokens like the SFT
loss. No model or corpus is loaded here.
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
    """The teacher of a run and the settings of the loss. The teacher is sharded like the student."""

    teacher: PreTrainedModel
    settings: Distil

    def mixed(self, words: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
        """The summed loss of a batch: SFT loss and divergence, weighted.

        words: the summed SFT loss. student, teacher: (tokens, vocabulary) logits, see `divergence`.
        """
        weight = self.settings.weight
        return (1 - weight) * words + weight * divergence(student, teacher, self.settings)


def divergence(student: Tensor, teacher: Tensor, settings: Distil) -> Tensor:
    """Divergence between two models' distributions, in nats, summed over tokens.

    student, teacher: (tokens, vocabulary) logits. Their vocabularies may be padded to different sizes, as those of
    Qwen2.5 are; only the common entries are compared. The result is multiplied by temperature², so that the scale
    of the gradients does not depend on it (Hinton et al. 2015, section 2.1).
    """
    shared = min(student.shape[-1], teacher.shape[-1])
    temperature = settings.temperature
    # (tokens, shared) log-probabilities
    ours, theirs = (torch.log_softmax(logits[..., :shared] / temperature, dim=-1) for logits in (student, teacher))
    if settings.divergence == "forward":
        apart = _kl(theirs, ours)
    elif settings.divergence == "reverse":
        apart = _kl(ours, theirs)
    else:  # generalised Jensen-Shannon divergence, Agarwal et al. 2024, eq. 1
        beta = settings.beta
        mixture = torch.logaddexp(theirs + math.log(beta), ours + math.log1p(-beta))
        apart = beta * _kl(theirs, mixture) + (1 - beta) * _kl(ours, mixture)
    return temperature**2 * apart


def require_same_tokens(
    student: str, theirs: PreTrainedTokenizerBase, teacher: str, given: PreTrainedTokenizerBase
) -> None:
    """Raise InputError unless both tokenizers have the same vocabulary, names and ids.

    student, teacher: names for the message. theirs, given: the student's and the teacher's tokenizer.
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
    """KL(p ‖ q), summed over tokens. p, q: (tokens, vocabulary) log-probabilities."""
    return (p.exp() * (p - q)).sum()
