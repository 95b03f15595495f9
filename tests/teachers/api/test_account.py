"""Money and rates as arithmetic: what is reserved, billed and unconfirmed, and how many tokens a minute holds."""

import heapq
import random

import pytest
from support.asked import api

from tsd.teachers.api.account import FEW_IN_FLIGHT, FEW_USAGES, Account, Cost, Earlier, TokenWindow

PRICES = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0}  # a dollar for 1,000 tokens


def account(earlier: Earlier | None = None, **changes: object) -> Account:
    """An account of a teacher whose replies may have 100 tokens."""
    return Account(api("http://127.0.0.1:9/v1", max_tokens=100, **PRICES, **changes), earlier or Earlier())


def test_a_bound_is_reserved_until_the_bill_replaces_it() -> None:
    mine = account(budget_usd=1.05)
    bound = mine.bound(200)
    assert bound == Cost(200, 100, 0.3)
    for name in "abc":
        assert mine.excess(bound) is None
        mine.reserve(name, bound)
    assert "may cost $0.3" in str(mine.excess(bound))
    mine.settle("a", Cost(200, 10, 0.21), estimate=200, replies=1)
    assert mine.excess(bound) is not None  # 0.21 + 0.6 + 0.3 > 1.05
    mine.settle("b", Cost(200, 10, 0.21), estimate=200, replies=1)
    assert mine.excess(bound) is None
    assert (mine.billed.usd, mine.reserved.usd, mine.in_flight) == pytest.approx((0.42, 0.3, 1))


def test_what_was_sent_and_never_answered_stays_at_its_bound_and_a_late_bill_corrects_it() -> None:
    mine = account()
    mine.reserve("a", mine.bound(200))
    mine.lose("a")
    assert (mine.unconfirmed.usd, mine.reserved.usd, mine.in_flight) == pytest.approx((0.3, 0, 0))
    mine.settle("a", Cost(200, 20, 0.22), estimate=200, replies=1)
    assert (mine.unconfirmed.usd, mine.billed.usd) == pytest.approx((0, 0.22))


def test_a_bill_that_a_journal_already_told_counts_once() -> None:
    mine = account(Earlier(billed=Cost(10, 10, 0.02), ended={"a"}))
    mine.settle("a", Cost(10, 10, 0.02))
    assert mine.billed == Cost(10, 10, 0.02)


def test_what_an_earlier_start_left_open_counts_against_the_budget() -> None:
    mine = account(Earlier(billed=Cost(0, 0, 5.0), open={"x": Cost(0, 0, 4.8)}), budget_usd=10.0)
    assert "$4.8 unconfirmed" in str(mine.excess(mine.bound(200)))


def test_a_bound_grows_with_prompts_and_replies_that_are_longer_than_estimated() -> None:
    mine = account()
    mine.settle("a", Cost(300, 40), estimate=200, replies=1)
    assert mine.bound(200) == Cost(300, 100, pytest.approx(0.4))
    mine.settle("b", Cost(300, 700), estimate=200, replies=1)  # more than max_tokens: thinking, say
    assert mine.bound(200) == Cost(300, 1400, pytest.approx(1.7))


def test_one_dear_reply_does_not_make_later_requests_reserve_more_of_a_minute() -> None:
    mine = account()
    assert mine.expected(200) == 300
    mine.settle("a", Cost(200, 16_000), estimate=200, replies=1)
    assert mine.expected(200) == 300
    assert mine.bound(200).output_tokens == 32_000  # the budget still holds for another one like it


def test_few_requests_are_in_flight_until_usages_are_known() -> None:
    mine = account()
    for number in range(FEW_IN_FLIGHT):
        assert not mine.few_only()
        mine.reserve(str(number), mine.bound(200))
    assert mine.few_only()
    for number in range(FEW_USAGES):
        mine.settle(str(number), Cost(200, 10), estimate=200, replies=1)
        mine.reserve(f"next {number}", mine.bound(200))
    assert not mine.few_only()


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def simulate(
    limit: int, replies: list[int], prompt: int, longest: int, latency: float
) -> list[tuple[float, float, int]]:
    """Send requests as fast as a window lets them: when each was sent and answered, and its tokens."""
    clock = Clock()
    window, done = TokenWindow(limit, clock), list[tuple[float, float, int]]()
    answers: list[tuple[float, str, float, int]] = []
    for number, reply in enumerate(replies):
        bound = prompt + longest
        while (wait := window.wait(bound)) > 0:
            step = min(wait, answers[0][0] - clock.now if answers else wait)
            clock.now += max(step, 1e-6)
            while answers and answers[0][0] <= clock.now:
                at, name, sent, tokens = heapq.heappop(answers)
                window.settle(name, tokens)
                done.append((sent, at, tokens))
        window.take(str(number), bound)
        heapq.heappush(answers, (clock.now + latency, str(number), clock.now, prompt + reply))
    return done + [(sent, at, tokens) for at, _, sent, tokens in answers]


def most_in_a_minute(times: list[float], tokens: list[int]) -> int:
    """The most tokens in any window of 60 s."""
    pairs = sorted(zip(times, tokens, strict=True))
    return max(sum(n for t, n in pairs if start <= t < start + 60) for start, _ in pairs)


@pytest.mark.parametrize("latency", [0.2, 2.0])
def test_replies_of_mixed_length_keep_a_limit_of_tokens_and_use_most_of_it(latency: float) -> None:
    rng = random.Random(0)
    limit, replies = 60_000, [rng.choice((5, 20, 60, 250)) for _ in range(400)]
    done = simulate(limit, replies, prompt=500, longest=256, latency=latency)
    sent, answered, tokens = (list(column) for column in zip(*done, strict=True))
    assert most_in_a_minute(sent, tokens) <= limit
    assert most_in_a_minute(answered, tokens) <= limit
    assert sum(tokens) / (max(answered) / 60) >= 0.85 * limit


def test_a_reply_of_half_the_limit_delays_what_follows_and_no_later_minute_exceeds_it() -> None:
    limit, replies = 30_000, [16_000, *[50] * 60]
    done = simulate(limit, replies, prompt=500, longest=256, latency=1.0)
    sent, answered, tokens = (list(column) for column in zip(*done, strict=True))
    assert most_in_a_minute(answered, tokens) <= limit
    assert most_in_a_minute(sent, tokens) <= limit


def test_a_request_above_the_limit_waits_for_an_empty_minute_and_no_longer() -> None:
    clock = Clock()
    window = TokenWindow(1000, clock)
    window.take("a", 500)
    window.settle("a", 500)
    wait = window.wait(5000)
    assert 50 < wait <= 60
    clock.now += wait
    assert window.wait(5000) == 0


def test_what_an_earlier_start_sent_within_the_minute_counts() -> None:
    clock = Clock()
    window = TokenWindow(1000, clock)
    window.remember(age=50.0, tokens=900)
    assert window.wait(200) == pytest.approx(10.0)
    clock.now += 10.0
    assert window.wait(200) == 0
