"""The prompts, and sentences <-> labels: `writing` goes from labels to text, `reading` back."""

from tsd.language.reading import Parsed, parse_reply, sentences
from tsd.language.writing import (
    EXTREMA_PHRASINGS,
    NOISE_PHRASINGS,
    PHRASING_COUNTS,
    PROMPT_VERSION,
    TREND_PHRASINGS,
    Labels,
    reply_text,
    student_prompt,
    teacher_prompt,
)

__all__ = [
    "EXTREMA_PHRASINGS",
    "NOISE_PHRASINGS",
    "PHRASING_COUNTS",
    "PROMPT_VERSION",
    "TREND_PHRASINGS",
    "Labels",
    "Parsed",
    "parse_reply",
    "reply_text",
    "sentences",
    "student_prompt",
    "teacher_prompt",
]
