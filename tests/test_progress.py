"""What a person sees while a stage works, on a terminal and off it."""

import io

import pytest
from rich.console import Console

from tsd.progress import Reporter, Step, clock


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0.0 s"),
        (4.21, "4.2 s"),
        (9.96, "10 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (65, "1 min 05 s"),
        (3599.8, "1 h 00 min"),
        (7380, "2 h 03 min"),
    ],
)
def test_a_clock_is_read_as_a_person_says_it(seconds, said):
    assert clock(seconds) == said


def test_nothing_is_known_of_the_time_left_before_anything_is_finished():
    step = Step(10, lambda _: None)
    assert step.seconds_left is None
    step.skip(5)
    assert step.seconds_left is None
    assert step.share == 0.5


def test_the_time_left_is_at_the_rate_of_this_start_and_not_of_what_was_skipped():
    step = Step(100, lambda _: None)
    step._paced -= 10.0
    step.skip(50)
    step.advance(10)  # 10 in 10 s, and 40 to go
    assert step.seconds_left == pytest.approx(40, abs=0.5)
    assert step.rate == pytest.approx(1, abs=0.02)


def test_getting_ready_is_no_part_of_the_rate():
    step = Step(100, lambda _: None)
    step._paced -= 1000.0
    step.begin()
    step._paced -= 10.0
    step.advance(10)
    assert step.seconds_left == pytest.approx(90, abs=0.5)


def test_a_step_never_passes_its_end():
    step = Step(10, lambda _: None)
    step.advance(12)
    assert step.share == 1.0
    assert step.seconds_left == 0.0
    assert Step(0, lambda _: None).share == 1.0


def test_without_a_terminal_a_stage_says_when_it_starts_and_when_it_is_done():
    out = io.StringIO()
    with Reporter(Console(file=out, width=200)).stage("Draw series", 10, "series") as step:
        assert out.getvalue() == "Draw series …\n"
        step.skip(4)
        step.advance(6)
    _, done = out.getvalue().splitlines()
    assert done.startswith("✓ Draw series")
    assert "10 series, 4 of them from before in 0.0 s" in done


def test_without_a_terminal_a_long_stage_gives_a_sign_of_life():
    out = io.StringIO()
    with Reporter(Console(file=out, width=200)).stage("Train [a] student", 10, "runs") as step:
        import tsd.progress as progress

        quiet, progress.QUIET_SECONDS = progress.QUIET_SECONDS, 0.0
        try:
            step.advance(5, "0.1M [loss] 0.2")
        finally:
            progress.QUIET_SECONDS = quiet
    assert "Train [a] student: 5/10 runs after 0.0 s, about 0.0 s left, 0.1M [loss] 0.2" in out.getvalue()


def test_a_stage_that_fails_is_not_ticked_off():
    out = io.StringIO()
    with (
        pytest.raises(ValueError, match="broken"),
        Reporter(Console(file=out)).stage("Draw series", 10, "series"),
    ):
        raise ValueError("broken")
    assert "✓" not in out.getvalue()


def test_on_a_terminal_a_bar_is_drawn_with_count_and_note():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)
    with Reporter(console).stage("Train 9 students", 4, "") as step:
        step.advance(1, "1/9 finished")
        step.advance(1)
    drawn = out.getvalue()
    assert "━" in drawn
    assert "50%" in drawn
    assert "1/9 finished" in drawn
    assert "✓" in drawn
