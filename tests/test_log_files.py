"""The log in one file and in several: written on in any layout, and read as one."""

import numpy as np
import pytest

from purejaxppo import UsageError
from purejaxppo.rundir.logs import discard_others, has_log, log_name, open_log, read_log, together

SEEDS = [5, 6, 7, 8, 9]


def write(directory, edges, done, until, upto):
    """Updates `done` + 1 to `until`, by as many processes as there are `edges`; what a checkpoint keeps then."""
    owns = [slice(a, b) for a, b in zip([0, *edges], [*edges, len(SEEDS)], strict=True)]
    files = [open_log(directory, SEEDS, own, done, (1,), upto) for own in owns]
    discard_others(directory, {file.path.name for file in files})
    for update in range(done + 1, until + 1):
        for file, own in zip(files, owns, strict=True):
            seeds = np.array(SEEDS[own])
            file.write(update, 10 * update, {"x": seeds + update / 10, "y": np.where(seeds == 7, np.nan, seeds)})
    kept = together([{file.path.name: file.written()} for file in files])
    for file in files:
        file.close()
    return kept


def assert_whole(directory, updates):
    table = read_log(directory, SEEDS)
    assert table.seeds == SEEDS
    np.testing.assert_array_equal(table.update, np.arange(1, updates + 1))
    np.testing.assert_array_equal(table.env_steps, 10 * table.update)
    np.testing.assert_allclose(table.metric("x"), np.array(SEEDS)[:, None] + table.update / 10)
    np.testing.assert_array_equal(np.isnan(table.metric("y")).all(axis=1), np.array(SEEDS) == 7)


@pytest.mark.parametrize("layouts", [[[], [2], [1, 4], [2, 3], []], [[3], [3], [], [1, 2, 3, 4]]])
def test_any_layout_goes_on_with_the_rows_of_any_other(layouts, tmp_path):
    assert not has_log(tmp_path)
    kept, done = None, 0
    for edges in layouts:
        write(tmp_path, edges, done, done + 4, kept)  # what follows the checkpoint is lost with its process
        kept = write(tmp_path, edges, done, done + 3, kept)
        done += 3
        assert has_log(tmp_path)
        assert len([*tmp_path.iterdir()]) == len(edges) + 1
        assert_whole(tmp_path, done)
    assert ("bytes" in kept) == (not layouts[-1])


def test_a_log_that_was_moved_away_stays(tmp_path):
    """As the message on a damaged one says; only files of other layouts are deleted."""
    for name in ("metrics.old.csv", "metrics.csv.old", "metrics.2024-old.csv"):
        (tmp_path / name).write_text("mine")
        assert not has_log(tmp_path)
    write(tmp_path, [2], 3, 5, write(tmp_path, [], 0, 3, None))
    assert len([*tmp_path.iterdir()]) == 3 + 2


def test_what_an_interrupted_change_of_layout_leaves_is_no_hindrance(tmp_path):
    kept = write(tmp_path, [2], 0, 3, None)
    open_log(tmp_path, SEEDS, slice(3, 5), 3, (1,), kept).close()  # one of two new ones: [0, 3) is missing
    assert_whole(tmp_path, 3)
    open_log(tmp_path, SEEDS, slice(0, 3), 3, (1,), kept).close()  # all of both layouts are there
    assert len([*tmp_path.iterdir()]) == 4
    assert_whole(tmp_path, 3)
    kept = write(tmp_path, [3], 3, 5, kept)
    assert sorted(kept) == ["metrics.0-3.csv", "metrics.3-5.csv"]
    assert_whole(tmp_path, 5)


@pytest.mark.parametrize("layouts", [[[], [2], []], [[2], [], [2]], [[2], [1, 3], []], [[1, 3], [2], []]])
def test_two_changes_of_layout_without_a_checkpoint_between_them_lose_nothing(layouts, tmp_path):
    kept = write(tmp_path, layouts[0], 0, 3, None)
    write(tmp_path, layouts[1], 3, 5, kept)  # killed before it has saved
    write(tmp_path, layouts[2], 3, 6, kept)
    assert_whole(tmp_path, 6)


def test_a_row_that_the_checkpoint_does_not_know_yet_is_written_again(tmp_path):
    """As of a run that was stopped while it evaluated: the row of its last update came after what was saved."""
    kept = write(tmp_path, [], 0, 2, None)
    write(tmp_path, [], 2, 3, kept)
    for _ in range(2):
        log = open_log(tmp_path, SEEDS, slice(0, 5), 3, (1,), kept)
        assert_whole(tmp_path, 2)
        seeds = np.array(SEEDS)
        log.write(3, 30, {"x": seeds + 0.3, "y": np.where(seeds == 7, np.nan, seeds)})
        log.close()
        assert_whole(tmp_path, 3)


def test_a_log_that_was_begun_anew_and_has_no_row_yet_is_no_damage(tmp_path):
    kept = write(tmp_path, [], 0, 3, None)
    (tmp_path / "metrics.csv").rename(tmp_path / "metrics.old.csv")
    with pytest.warns(UserWarning, match="is missing"):
        open_log(tmp_path, SEEDS, slice(0, 5), 3, (1,), kept).close()  # killed before it has saved
    open_log(tmp_path, SEEDS, slice(0, 5), 3, (1,), kept).close()


def test_rows_that_not_all_have_written_are_not_read(tmp_path):
    write(tmp_path, [2], 0, 3, None)
    path = tmp_path / "metrics.2-5.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-3]))
    assert_whole(tmp_path, 2)


def test_damage_and_what_is_missing_are_named(tmp_path):
    kept = write(tmp_path, [2], 0, 3, None)
    path = tmp_path / log_name(slice(0, 2), 5)
    whole = path.read_text()
    path.write_text(whole.replace("5.1", "5.2"))
    with pytest.raises(UsageError, match=r"metrics\.0-2\.csv.*not those that were logged before the checkpoint"):
        open_log(tmp_path, SEEDS, slice(0, 5), 3, (1,), kept)
    path.unlink()
    with pytest.raises(UsageError, match="the log of some of its seeds is missing"):
        open_log(tmp_path, SEEDS, slice(0, 5), 3, (1,), kept)
    with pytest.raises(UsageError, match=r"metrics\.csv"):
        read_log(tmp_path, SEEDS)
