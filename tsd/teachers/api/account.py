"""Cost accounting of a run: billed cost, reservations for requests in flight, and unconfirmed cost.

An upper bound of a request's cost is reserved before it is sent. The bill replaces the bound. A request that was
sent but got no response keeps its bound, since the provider may have billed it. This module is pure arithmetic: it
uses no clock, server or file.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tsd.recipe import ApiTeacher

FEW_USAGES = 10  # replies with known usage that are required before more than FEW_IN_FLIGHT requests run
FEW_IN_FLIGHT = 4
WINDOW_SECONDS = 60.0  # window of a provider's limit of tokens per minute
BURST_SECONDS = 1.0  # seconds' worth of a limit that may be used at once


@dataclass(frozen=True)
class Cost:
    """Tokens and US dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """Input and output tokens together."""
        return self.input_tokens + self.output_tokens

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.usd + other.usd,
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return self + Cost(-other.input_tokens, -other.output_tokens, -other.usd)

    def __mul__(self, times: int) -> "Cost":
        return Cost(times * self.input_tokens, times * self.output_tokens, times * self.usd)

    def as_list(self) -> list[float]:
        """Return a list for JSON; `Cost(*cost.as_list())` restores the cost."""
        return [self.input_tokens, self.output_tokens, self.usd]


@dataclass(frozen=True)
class Estimator:
    """Upper bounds of request costs, learned from earlier replies.

    The prompt estimate is multiplied by the largest ratio of billed to estimated input tokens so far. The output
    bound is `max_tokens`, or twice the longest reply if a server has exceeded that.
    """

    input_ratio: float = 1.0
    longest_output: int = 0

    def bound(self, teacher: ApiTeacher, estimate: int) -> Cost:
        """Return the cost bound of one request. estimate: approximate tokens of its prompt."""
        asked = -int(-estimate * self.input_ratio // 1)
        longest = self.longest_output
        said = teacher.max_tokens if longest <= teacher.max_tokens else 2 * longest
        return Cost(asked, said, teacher.usd(asked, said))

    def after(self, billed: Cost, estimate: int) -> "Estimator":
        """Return the estimator updated with one more bill. estimate: approximate tokens of the request's
        prompt.
        """
        ratio = billed.input_tokens / estimate if estimate > 0 else 1.0
        return Estimator(max(self.input_ratio, ratio), max(self.longest_output, billed.output_tokens))

    def merged(self, other: "Estimator") -> "Estimator":
        """Return the estimator that covers the bills of both."""
        return Estimator(max(self.input_ratio, other.input_ratio), max(self.longest_output, other.longest_output))


@dataclass
class Earlier:
    """Requests of earlier starts as recorded in a run's journals. `add` sums the journals of several parts."""

    billed: Cost = Cost()
    open: dict[str, Cost] = field(default_factory=dict)
    """Bounds of requests that were sent and have no response, by request."""
    ended: set[str] = field(default_factory=set)
    """Requests whose bill is included in `billed`."""
    replies: int = 0
    """Responses with known usage."""
    estimator: Estimator = Estimator()
    recent: list[tuple[float, int]] = field(default_factory=list)
    """Requests of the last minute: time (`time.time`, seconds) and tokens, reserved or billed."""
    models: Counter[str] = field(default_factory=Counter)
    """Number of responses by model."""

    def add(self, other: "Earlier") -> None:
        """Add the records of another journal."""
        self.billed += other.billed
        self.open |= other.open
        self.ended |= other.ended
        self.replies += other.replies
        self.estimator = self.estimator.merged(other.estimator)
        self.recent += other.recent
        self.models.update(other.models)

    @property
    def unconfirmed(self) -> Cost:
        """Sum of the bounds of requests that were sent and got no response."""
        return total(self.open.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the sums as a dict for JSON."""
        return {
            "billed": self.billed.as_list(),
            "unconfirmed": self.unconfirmed.as_list(),
            "replies": self.replies,
            "input_ratio": self.estimator.input_ratio,
            "longest_output": self.estimator.longest_output,
            "models": dict(self.models),
        }

    @staticmethod
    def from_dict(kept: Mapping[str, Any], name: str) -> "Earlier":
        """Restore the sums from JSON. name: key under which the unconfirmed sum is stored in `open`."""
        lost = Cost(*kept["unconfirmed"])
        return Earlier(
            billed=Cost(*kept["billed"]),
            open={name: lost} if lost != Cost() else {},
            replies=kept["replies"],
            estimator=Estimator(kept["input_ratio"], kept["longest_output"]),
            models=Counter(kept["models"]),
        )


def total(costs: Iterable[Cost]) -> Cost:
    """Return the sum of the costs."""
    together = Cost()
    for cost in costs:
        together += cost
    return together


class Account:
    """Total cost of a run, earlier starts included, checked against its budget."""

    def __init__(self, teacher: ApiTeacher, earlier: Earlier) -> None:
        """earlier: records of the journals. Requests open there were sent by a process that no longer exists."""
        self._teacher = teacher
        self.billed = earlier.billed
        self.estimator = earlier.estimator
        self.replies = earlier.replies
        self._lost = dict(earlier.open)  # sent without response; a late response still corrects it
        self._open: dict[str, Cost] = {}
        self._ended = set(earlier.ended)
        self._asked = self._estimated = 0  # prompt tokens, as billed and as estimated
        self.unconfirmed = earlier.unconfirmed
        self.reserved = Cost()

    @property
    def in_flight(self) -> int:
        """Number of open reservations."""
        return len(self._open)

    def bound(self, estimate: int) -> Cost:
        """Return the cost bound of a request. estimate: approximate tokens of its prompt."""
        return self.estimator.bound(self._teacher, estimate)

    def expected(self, estimate: int) -> int:
        """Expected maximum of tokens for a request, used for limits per minute.

        It is the prompt estimate times the average ratio of billed to estimated tokens, plus `max_tokens`. One
        expensive reply does not raise later expectations: its excess only delays the next requests.
        """
        usual = self._asked / self._estimated if self._estimated else 1.0
        return round(estimate * usual) + self._teacher.max_tokens

    def few_only(self) -> bool:
        """Whether too few usages are known to send more than the requests in flight."""
        return self.replies < FEW_USAGES and self.in_flight >= FEW_IN_FLIGHT

    def excess(self, bound: Cost, what: str = "request") -> str | None:
        """Return why the budget does not cover a request or batch with this bound, or None if it does."""
        teacher, taken = self._teacher, self.billed + self.unconfirmed + self.reserved
        spent = self.billed + self.unconfirmed
        lost = ""
        if teacher.budget_usd and taken.usd + bound.usd > teacher.budget_usd:
            if self.unconfirmed.usd:
                lost = f", of which ${self.unconfirmed.usd:,.4g} unconfirmed (sent and never answered)"
            return (
                f"teacher.budget_usd is used up: ${spent.usd:,.4g} of ${teacher.budget_usd:,.4g}{lost}, and "
                f"the next {what} may cost ${bound.usd:,.4g}"
            )
        if teacher.budget_tokens and taken.tokens + bound.tokens > teacher.budget_tokens:
            if self.unconfirmed.tokens:
                lost = f", of which {self.unconfirmed.tokens:,} unconfirmed (sent and never answered)"
            return (
                f"teacher.budget_tokens is used up: {spent.tokens:,} of {teacher.budget_tokens:,}{lost}, and "
                f"the next {what} may take {bound.tokens:,}"
            )
        return None

    def reserve(self, request: str, bound: Cost) -> None:
        """Reserve the bound of a request that is about to be sent or was sent by an earlier start."""
        self._release(request)
        self._open[request] = bound
        self.reserved += bound

    def settle(self, request: str, billed: Cost, estimate: int = 0, replies: int = 0) -> None:
        """Replace the bound of a request with its bill. A bill already recorded by an earlier start counts once.

        estimate: approximate tokens of the prompt. replies: number of responses with usage that this bill covers.
        """
        if request in self._ended:
            self._ended.discard(request)
            return
        self._release(request)
        self.billed += billed
        self.replies += replies
        if replies == 1:
            self.estimator = self.estimator.after(billed, estimate)
            self._asked += billed.input_tokens
            self._estimated += estimate

    def lose(self, request: str, bound: Cost = Cost()) -> None:
        """Record a request without response as unconfirmed: it may have been billed and keeps its bound.

        bound: used for a request that has no reservation here.
        """
        if request in self._ended or request in self._lost:
            return
        if request in self._open:
            bound = self._release(request)
        self._lost[request] = bound
        self.unconfirmed += bound

    def _release(self, request: str) -> Cost:
        if request in self._lost:
            bound = self._lost.pop(request)
            self.unconfirmed -= bound
            return bound
        bound = self._open.pop(request, Cost())
        self.reserved -= bound
        return bound


class TokenWindow:
    """Token limit per minute over reserved and billed tokens, with pacing.

    A request counts from when it is sent until one minute after it was settled. So the limit holds whether the
    provider counts at a request's start or at its end. Tokens beyond the reservation delay the next requests.
    clock: monotonic time in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = per_minute, clock
        self._open: dict[str, int] = {}
        self._settled: deque[tuple[float, int]] = deque()  # (time, tokens), in order
        self._sum = 0
        self._level, self._drained = 0.0, clock()  # level of the pacing bucket: tokens that are not yet due

    def remember(self, age: float, tokens: int) -> None:
        """Count tokens that an earlier start sent `age` seconds ago. Call it for the oldest first."""
        self._settled.append((self._clock() - age, tokens))
        self._sum += tokens

    def wait(self, tokens: int) -> float:
        """Seconds until this many tokens may be sent; 0 if now, infinite if only a response can free capacity."""
        now = self._clock()
        self._drain(now)
        while self._settled and self._settled[0][0] + WINDOW_SECONDS <= now:
            self._sum -= self._settled.popleft()[1]
        rate = self._limit / WINDOW_SECONDS
        at_once = rate * BURST_SECONDS
        pace = max(0.0, (self._level - at_once) / rate)
        room = self._limit - min(tokens, self._limit)  # a request above the limit waits for an empty window
        excess = self._sum - room
        if excess <= 0:
            return pace
        for moment, freed in self._settled:
            excess -= freed
            if excess <= 0:
                return max(pace, moment + WINDOW_SECONDS - now)
        return float("inf")

    def take(self, request: str, tokens: int) -> None:
        """Count a request that is sent now."""
        self._drain(self._clock())
        self._open[request] = tokens
        self._sum += tokens
        self._level += tokens

    def settle(self, request: str, tokens: int | None) -> None:
        """Record the tokens of a finished request. None means unknown: the reservation is kept."""
        reserved = self._open.pop(request, None)
        if reserved is None:
            return
        taken = reserved if tokens is None else tokens
        self._settled.append((self._clock(), taken))
        self._sum += taken - reserved
        self._level = max(0.0, self._level + taken - reserved)

    def _drain(self, now: float) -> None:
        self._level = max(0.0, self._level - (now - self._drained) * self._limit / WINDOW_SECONDS)
        self._drained = now
