"""Rows that may have ended the server: which go first, how many together, and when one is the cause."""

from contextlib import ExitStack

from tsd.teachers.api.suspects import AT_ONCE, Suspect, Suspects

RETRIES = 2


def send(suspects: Suspects, rows: list[Suspect]) -> list[Suspect]:
    """Send as many of the rows as may go together, and return them. None is answered."""
    sent = []
    with ExitStack() as going:
        for row in rows:
            if suspects.may_go(row):
                going.enter_context(suspects.going(row))
                suspects.sent(row)
                sent.append(row)
    return sent


def test_one_row_among_many_that_ends_the_server_is_found_and_no_other_is_blamed() -> None:
    suspects, rows = Suspects(), [Suspect(RETRIES) for _ in range(200)]
    deadly, waiting, starts, together = rows[150], list(rows), 1, []
    while waiting:
        sent = send(suspects, waiting)
        assert sent, "all wait for one another"
        together.append(len(sent))
        if deadly in sent:
            suspects.ended()
            starts += 1
        else:
            for row in sent:
                suspects.answered(row)
        waiting = [row for row in waiting if row not in sent or (deadly in sent and not row.guilty)]
        if deadly.guilty:
            suspects.clear(deadly)
    assert starts == 1 + 2 + RETRIES + 1  # among all, among few, and alone
    assert together[0] == 200
    assert max(together[1:]) == AT_ONCE
    assert [row.guilty for row in rows] == [row is deadly for row in rows]
    assert suspects.blamed == RETRIES + 1
    assert suspects.answers == 199


def test_rows_that_were_not_sent_wait_until_the_suspects_are_answered() -> None:
    suspects, (first, second, fresh) = Suspects(), [Suspect(RETRIES) for _ in range(3)]
    send(suspects, [first, second])
    suspects.ended()
    assert [suspects.may_go(row) for row in (first, second, fresh, None)] == [True, True, False, True]
    suspects.answered(first)
    assert not suspects.may_go(fresh)
    suspects.answered(second)
    assert suspects.may_go(fresh)


def test_a_row_is_sent_alone_once_nothing_else_is_under_way() -> None:
    suspects, (alone, other) = Suspects(), [Suspect(RETRIES) for _ in range(2)]
    with suspects.going(other):
        suspects.sent(alone)
        suspects.ended()
        assert (alone.ends, suspects.blamed) == (1, 1)
        assert not suspects.may_go(alone)
    assert suspects.may_go(alone)


def test_a_row_without_a_connection_is_no_suspect_unless_it_was_sent_before() -> None:
    suspects, (sent, unsent) = Suspects(), [Suspect(RETRIES) for _ in range(2)]
    assert suspects.sent(sent)
    assert not suspects.sent(sent)  # once more, to a server whose end is not known yet
    assert suspects.sent(unsent)
    suspects.unsent(unsent)
    suspects.ended()
    assert (sent.doubts, unsent.doubts) == (1, 0)
