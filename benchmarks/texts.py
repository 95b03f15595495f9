"""How varied a study's annotations are: distinct texts, and distinct texts with numbers and class words masked.

Reads the annotations of a finished study, by default those of `make study`, and holds their numbers for every
64,000 against bounds. Prints the most frequent masked texts. Writes texts.json beside itself. A few seconds.

    python benchmarks/texts.py [RUN] --check
"""

import re
from collections import Counter

from measured import Bound, finish, parser

from tsd.recipe import load
from tsd.storage import datasets

SHOWN = 3
MASK = "#"
MANY = 64_000


def main() -> None:
    """Count, print, keep, check."""
    options = parser(__doc__)
    options.add_argument("run", nargs="?", default="runs/laptop", help="the folder of a study")
    asked = options.parse_args()
    recipe = load(f"{asked.run}/recipe.yaml")
    table = datasets.open_dataset(f"{asked.run}/annotations", recipe.asks.tables.annotations).read()
    texts = [text for text in table["text"].to_pylist()[:MANY] if text]
    telling, _ = recipe.asks.words
    words = re.compile(rf"\b(?:{'|'.join(sorted(telling, key=len, reverse=True))})\b|\d+(?:\.\d+)?", re.IGNORECASE)
    masked = Counter(words.sub(MASK, text) for text in texts)
    for text, count in masked.most_common(SHOWN):
        print(f"{count / len(texts):.2%} {text}")
    distinct, (_, most) = len(set(texts)), masked.most_common(1)[0]
    finish(
        __file__,
        {"annotations": len(texts), "distinct": distinct, "distinct when masked": len(masked)},
        [
            Bound("distinct texts", distinct, least=20_000),
            Bound("distinct texts with numbers and class words masked", len(masked), least=2_000),
            Bound("share of the most frequent masked text", most / len(texts), most=0.02),
        ],
        asked.check,
    )


if __name__ == "__main__":
    main()
