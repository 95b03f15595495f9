"""Detect contradictions by natural-language inference: a cross-encoder compares each text with a true sentence."""

from collections.abc import Mapping, Sequence

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from tsd.errors import InputError
from tsd.models import sources
from tsd.recipe import NliConfig


class Inference:
    """A cross-encoder of any architecture that transformers supports, on a GPU if there is one."""

    def __init__(self, config: NliConfig) -> None:
        self.config = config
        self.contradiction = require_contradiction(config.model)
        folder = sources.local(config.model)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).to(self.device).eval()

    def find(self, pairs: Sequence[tuple[str, str]]) -> list[bool]:
        """Which hypotheses contradict their premise. pairs: (premise, hypothesis)."""
        found: list[bool] = []
        for first in range(0, len(pairs), self.config.batch_size):
            shares = self._probabilities(pairs[first : first + self.config.batch_size])
            contradicted = shares[:, self.contradiction]
            most = (shares.argmax(1) == self.contradiction) & (contradicted >= self.config.threshold)
            found += most.tolist()
        return found

    @torch.inference_mode()
    def _probabilities(self, pairs: Sequence[tuple[str, str]]) -> torch.Tensor:
        """Label probabilities, (pairs, labels) float32."""
        premises, hypotheses = zip(*pairs, strict=True)
        tokens = self.tokenizer(
            list(premises), list(hypotheses), padding=True, truncation=True, return_tensors="pt"
        ).to(self.device)
        logits: torch.Tensor = self.model(**tokens).logits
        return logits.float().softmax(1)


def require_contradiction(model: str) -> int:
    """The index of the model's contradiction label, from its config only.

    Raises InputError if there is no such model, or not exactly one such label.
    """
    try:
        labels: Mapping[int, str] = AutoConfig.from_pretrained(sources.local(model)).id2label
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"curation.nli.model {model} cannot be loaded: {reason}") from None
    found = [index for index, label in labels.items() if str(label).lower().startswith("contradict")]
    if len(found) != 1:
        said = ", ".join(map(str, labels.values()))
        raise InputError(f"curation.nli.model {model} has no label for a contradiction, only {said}")
    return int(found[0])
