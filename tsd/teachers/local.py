"""Local teacher in this process: a small model trained by tsd describes the rasterised plot of each series."""

from pathlib import Path

import pyarrow as pa

from tsd import inference
from tsd.inference.decoding import describe
from tsd.models.chat import image_prompt_tokens
from tsd.models.students import load_model
from tsd.models.tokenizer import load_tokenizer
from tsd.plots import rasterised
from tsd.recipe import LocalTeacher
from tsd.tasks import Task
from tsd.teachers import Reply, annotations, request_keys
from tsd.training import runs


def keys(teacher: LocalTeacher, task: Task, series: pa.Table) -> list[str]:
    """Return the key of each series' response."""
    made = [rasterised.VERSION, inference.VERSION, *([runs.VERSION] if teacher.train else [])]
    return request_keys(task, [*made, teacher.identity], series)


class Local:
    """Generates descriptions of series with a locally trained model. Keeps the model loaded."""

    def __init__(self, config: LocalTeacher, task: Task, folder: Path) -> None:
        """folder: local folder of the model. Raises InputError if it holds no model."""
        self.config, self.task = config, task
        self.tokenizer, self.model = load_tokenizer(str(folder)), load_model(str(folder))
        self.asked = len(image_prompt_tokens(task, self.tokenizer)) + len(task.style(""))

    def annotate(self, series: pa.Table) -> pa.Table:
        """series: the task's series table.

        Returns its annotations table; each row depends only on its own series.
        """
        items, made = self.task.items(series), keys(self.config, self.task, series)
        styles = list(map(self.task.style, made))
        replies: list[Reply] = []
        for first in range(0, len(items), self.config.batch_size):
            some = slice(first, first + self.config.batch_size)
            ink = rasterised.draw(items[some])
            said = describe(self.model, self.tokenizer, self.task, ink, self.config.max_tokens, styles[some])
            replies += map(self._reply, said)
        return annotations(self.task, self.config.name, series, made, replies)

    def _reply(self, text: str) -> Reply:
        words = len(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if words >= self.config.max_tokens:
            reason = "the reply reached teacher.max_tokens"
            return Reply(text, "truncated", reason, input_tokens=self.asked, output_tokens=words)
        return Reply(text, input_tokens=self.asked, output_tokens=words + 1)  # plus the end-of-sequence token
