"""Decoding of students and of local teachers, in this process or in a vLLM engine."""

from typing import Final

VERSION: Final = (
    1  # raise it with whatever changes a response of the same weights: prompts, decoding, engine settings
)
