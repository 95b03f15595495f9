"""The money of a run: what was billed, what is reserved for requests under way, and what was never confirmed.

Nothing is sent before a bound of its cost is reserved; the bill replaces the bound. A request that was sent and
never answered stays at its bound, since the provider may have billed it. Everything here is arithmetic without a
clock of its own, a server or a file.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tsd.recipe import ApiTeacher

FEW_USAGES = 10  # replies whose usage must be known before more than a few requests may be in flight
FEW_IN_FLIGHT = 4
WINDOW_SECONDS = 60.0  # of a provider's limit of tokens per minute
BURST_SECONDS = 1.0  # of a limit that may be used at once


@dataclass(frozen=True)
class Cost:
    """Tokens and dollars."""

    input_tokens: int = 0
    output_tokens: int = 0
    usd: float = 0.0

    @property
    def tokens(self) -> int:
        """In and out together."""
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
        """For JSON; `Cost(*cost.as_list())` is the same cost."""
        return [self.input_tokens, self.output_tokens, self.usd]


@dataclass(frozen=True)
class Estimator:
    """What a request may cost at most, as far as earlier replies tell.

    The prompt's estimate is scaled by the largest ratio of billed to estimated input tokens so far. The output is
    `max_tokens`, or twice the longest reply where a server has exceeded that.
    """

    input_ratio: float = 1.0
    longest_output: int = 0

    def bound(self, teacher: ApiTeacher, estimate: int) -> Cost:
        """The bound of one request. estimate: tokens of its prompt, roughly."""
        asked = -int(-estimate * self.input_ratio // 1)
        longest = self.longest_output
        said = teacher.max_tokens if longest <= teacher.max_tokens else 2 * longest
        return Cost(asked, said, teacher.usd(asked, said))

    def after(self, billed: Cost, estimate: int) -> "Estimator":
        """The estimator that has seen one more bill."""
        ratio = billed.input_tokens / estimate if estimate > 0 else 1.0
        return Estimator(max(self.input_ratio, ratio), max(self.longest_output, billed.output_tokens))

    def merged(self, other: "Estimator") -> "Estimator":
        """The estimator that has seen the bills of both."""
        return Estimator(max(self.input_ratio, other.input_ratio), max(self.longest_output, other.longest_output))


@dataclass
class Earlier:
    """What the journals of a run know of its requests. Journals of several parts are added up."""

    billed: Cost = Cost()
    open: dict[str, Cost] = field(default_factory=dict)
    """Bounds of what was sent and has no answer, by request."""
    ended: set[str] = field(default_factory=set)
    """Requests whose bill is part of `billed`."""
    replies: int = 0
    """Answers whose usage is known."""
    estimator: Estimator = Estimator()
    recent: list[tuple[float, int]] = field(default_factory=list)
    """Of the last minute's requests: when (`time.time`), and their tokens, reserved or billed."""
    models: Counter[str] = field(default_factory=Counter)
    """Answers by the model that gave them."""

    def add(self, other: "Earlier") -> None:
        """Add what another journal knows."""
        self.billed += other.billed
        self.open |= other.open
        self.ended |= other.ended
        self.replies += other.replies
        self.estimator = self.estimator.merged(other.estimator)
        self.recent += other.recent
        self.models.update(other.models)

    @property
    def unconfirmed(self) -> Cost:
        """The bounds of what was sent and never answered."""
        return total(self.open.values())

    def as_dict(self) -> dict[str, Any]:
        """The sums, for JSON."""
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
        """The same from JSON. name: under which the unconfirmed sum is kept."""
        lost = Cost(*kept["unconfirmed"])
        return Earlier(
            billed=Cost(*kept["billed"]),
            open={name: lost} if lost != Cost() else {},
            replies=kept["replies"],
            estimator=Estimator(kept["input_ratio"], kept["longest_output"]),
            models=Counter(kept["models"]),
        )


def total(costs: Iterable[Cost]) -> Cost:
    """The sum."""
    together = Cost()
    for cost in costs:
        together += cost
    return together


class Account:
    """All money of a run, earlier starts included, against its budget."""

    def __init__(self, teacher: ApiTeacher, earlier: Earlier) -> None:
        """earlier: what the journals hold. What stands open there was sent by a start that is gone."""
        self._teacher = teacher
        self.billed = earlier.billed
        self.estimator = earlier.estimator
        self.replies = earlier.replies
        self._lost = dict(earlier.open)  # sent and never answered; a late answer still corrects it
        self._open: dict[str, Cost] = {}
        self._ended = set(earlier.ended)
        self._asked = self._estimated = 0  # tokens of prompts, as billed and as estimated
        self.unconfirmed = earlier.unconfirmed
        self.reserved = Cost()

    @property
    def in_flight(self) -> int:
        """Reservations that are open."""
        return len(self._open)

    def bound(self, estimate: int) -> Cost:
        """What a request with a prompt of about so many tokens may cost."""
        return self.estimator.bound(self._teacher, estimate)

    def expected(self, estimate: int) -> int:
        """Tokens that a request is expected to take at most, for limits of a minute.

        The prompt as prompts usually are, and `max_tokens`. One dear reply does not make all others dear: what it
        took beyond this delays what follows, and nothing more.
        """
        usual = self._asked / self._estimated if self._estimated else 1.0
        return round(estimate * usual) + self._teacher.max_tokens

    def few_only(self) -> bool:
        """Whether too few usages are known for more than the requests that are in flight."""
        return self.replies < FEW_USAGES and self.in_flight >= FEW_IN_FLIGHT

    def excess(self, bound: Cost, what: str = "request") -> str | None:
        """Why the budget does not allow for a request, or a batch, with such a bound; None where it does."""
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
        """Reserve the bound of a request that is about to be sent, or was sent by an earlier start."""
        self._release(request)
        self._open[request] = bound
        self.reserved += bound

    def settle(self, request: str, billed: Cost, estimate: int = 0, replies: int = 0) -> None:
        """Put what was billed in the place of a request's bound. What an earlier start had settled counts once.

        estimate: of the prompt's tokens. replies: answers with a usage that this is the bill of.
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
        """A request got no answer, and may have been billed: it stays at its bound.

        bound: that of a request for which nothing was reserved here.
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
    """At most so many tokens in any minute, reserved plus billed, evenly sent.

    A request counts from when it is sent until a minute after it was settled, so the limit holds whether a
    provider counts at a request's start or at its end. What a reply takes beyond its reservation delays what
    follows. clock: seconds that only grow.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float]) -> None:
        self._limit, self._clock = per_minute, clock
        self._open: dict[str, int] = {}
        self._settled: deque[tuple[float, int]] = deque()  # when, tokens; in order
        self._sum = 0
        self._level, self._drained = 0.0, clock()  # of a bucket that paces: tokens that are not yet due

    def remember(self, age: float, tokens: int) -> None:
        """Count what an earlier start sent so many seconds ago; the oldest first."""
        self._settled.append((self._clock() - age, tokens))
        self._sum += tokens

    def wait(self, tokens: int) -> float:
        """Seconds until so many tokens may be sent; 0 if now. Infinite while only answers can make room."""
        now = self._clock()
        self._drain(now)
        while self._settled and self._settled[0][0] + WINDOW_SECONDS <= now:
            self._sum -= self._settled.popleft()[1]
        rate = self._limit / WINDOW_SECONDS
        at_once = rate * BURST_SECONDS
        pace = max(0.0, (self._level - at_once) / rate)
        room = self._limit - min(tokens, self._limit)  # a request above the limit waits for an empty minute
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
        """Count what a request has taken; None where nobody knows, and its reservation stays."""
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
