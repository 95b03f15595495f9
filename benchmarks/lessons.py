"""What benchmarks teach: the `rules` teacher's curated replies about a recipe's series."""

from typing import Any

import pyarrow as pa

from tsd.curation import curate
from tsd.generation.generator import draw_table
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Recipe, RulesTeacher
from tsd.teachers.rules import Rules


def lessons(recipe: Recipe, count: int) -> tuple[pa.Table, pa.Table, Any]:
    """The first `count` series, the examples made of the replies about them, and a tokenizer of their texts."""
    series = draw_table(recipe.asks, recipe.series, recipe.seed, 0, count)
    replies = Rules(RulesTeacher(), recipe.asks, recipe.seed).annotate(series)
    examples, *_ = curate(recipe.asks, replies, series, recipe.curation)
    texts = [*examples["prompt"].to_pylist(), *examples["completion"].to_pylist()]
    return series, examples, build_tokenizer(texts, 2048)
