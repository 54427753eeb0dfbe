"""When rows, evaluations and checkpoints are due."""

import pytest

from purejaxppo.experiment.timetable import Timetable, chunk_updates


@pytest.mark.parametrize("checkpoints", [None, 7])
@pytest.mark.parametrize("evaluations", [0, 4, 50])
@pytest.mark.parametrize("rows", [1, 3])
def test_no_stop_is_passed_over(rows, evaluations, checkpoints):
    due, done, stops = Timetable(23, rows, evaluations, checkpoints), 0, []
    while done < 23:
        done = due.next_stop(done)
        stops.append(done)
    wanted = [n for n in range(1, 24) if due.evaluates(n) or (checkpoints and due.saves(n, 0.0)) or n == 23]
    assert stops == wanted


def test_each_is_due_at_its_interval_and_at_the_end():
    due = Timetable(10, 4, 3, None)
    assert [n for n in range(1, 11) if due.evaluates(n)] == [3, 6, 9, 10]
    assert [n for n in range(1, 11) if due.row_ends(n)] == [3, 4, 6, 8, 9, 10]  # an evaluation ends a row
    assert [n for n in range(1, 11) if due.saves(n, 0.0)] == [10]
    assert due.saves(1, 30.0)
    assert not due.saves(1, 29.0)
    assert not any(Timetable(10, 1, 0, None).evaluates(n) for n in range(11))


def test_a_chunk_takes_two_seconds():
    assert chunk_updates(10, 1.0, 1000) == 20
    assert chunk_updates(1, 60.0, 1000) == 1
    assert chunk_updates(10, 1.0, 7) == 7
