"""Actor that collects the progress of trials. Imports Ray alone: its process starts with each training stage."""

import ray


@ray.remote
class Board:
    """Progress board of the trials. Ray Train's own reports would wait for its controller each time.

    Its state is expendable: after a restart it is empty, and the next reports fill it.
    """

    def __init__(self) -> None:
        self.news: dict[str, dict[str, float]] = {}
        self.latest: dict[str, tuple[str, dict[str, float]]] = {}
        self.at_work: set[str] = set()
        self.stopped: set[str] = set()
        self.unfit: dict[str, str] = {}

    def begin(self, trial: str) -> None:
        """Record that a trial has its machines."""
        self.at_work.add(trial)

    def begun(self) -> set[str]:
        """Return the trials that had their machines so far."""
        return self.at_work

    def post(self, trial: str, run_id: str, metrics: dict[str, float]) -> bool:
        """Record the metrics of a run. Only its latest metrics are kept. Returns whether the trial was stopped."""
        self.at_work.add(trial)
        self.news[run_id] = metrics
        self.latest[trial] = run_id, metrics
        return trial in self.stopped

    def stop(self, trial: str) -> None:
        """Record that Tune has stopped a trial."""
        self.stopped.add(trial)

    def is_stopped(self, trial: str) -> bool:
        """Whether Tune has stopped a trial."""
        return trial in self.stopped

    def latest_of(self, trial: str) -> tuple[str, dict[str, float]] | None:
        """Return the run that a trial trains or trained last, and its latest metrics."""
        return self.latest.get(trial)

    def exclude(self, node: str, fault: str) -> None:
        """Record that a node is unfit."""
        self.unfit[node] = fault

    def collect(self) -> tuple[dict[str, dict[str, float]], set[str], dict[str, str]]:
        """Return the metrics since the last call, the trials that had their machines, and the unfit nodes."""
        news, self.news = self.news, {}
        return news, self.at_work, self.unfit
