"""Run directories: how files are replaced, locked and read, and what is said where one is missing or damaged."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Walk
from rich.console import Console
from support import assert_same_bits

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment import timetable
from purejaxppo.experiment.experiment import devices_again, resume_experiment, start_record
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.parallel.machine import fingerprint
from purejaxppo.presets import preset, settings_of
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir import lock as lock_module
from purejaxppo.rundir.checkpoint import read, save
from purejaxppo.rundir.files import check_out, refuse_links, replacing, to_json, write_json
from purejaxppo.rundir.lock import check_claim, lock, lock_free, new_directory
from purejaxppo.rundir.metrics import MetricsFile, read_metrics
from purejaxppo.rundir.record import env_again, is_object, read_record, resume_command, versions, write_record
from purejaxppo.rundir.snapshot import Snapshot
from purejaxppo.rundir.summary import read_summary, write_summary

ROW = {"episode_return": np.array([1.0, 2.0]), "kl": np.array([np.nan, 0.5])}


@pytest.mark.parametrize("name", ["policy.onnx", "film.gif", "config.json", "n" * 250 + ".png"])
def test_a_file_is_replaced_whole_and_no_link_is_followed(tmp_path, name):
    path, precious = tmp_path / "out" / name, tmp_path / "precious"
    path.parent.mkdir()
    precious.write_text("mine")
    for planted in (name, f".{name[:200]}.saving", f".{path.stem[:200]}.saving{path.suffix}"):
        (path.parent / planted).symlink_to(precious)
    with replacing(path) as draft:
        assert draft.suffix == path.suffix
        assert draft.stat().st_size == 0
        draft.write_text("new")
    with pytest.raises(UnicodeEncodeError), replacing(path) as draft:
        draft.write_text("half \ud800", encoding="utf-8")
    assert precious.read_text() == "mine"
    assert not path.is_symlink()
    assert path.read_text() == "new"
    assert len([*path.parent.iterdir()]) == 3


def test_who_comes_second_takes_nothing_away(tmp_path):
    with new_directory(tmp_path / "run") as out:
        with pytest.raises(UsageError, match="being written by another process"), new_directory(out):
            pass
        assert out.is_dir()
    with pytest.raises(KeyboardInterrupt), new_directory(out):
        raise KeyboardInterrupt
    assert out.is_dir()  # it was there before


@pytest.mark.parametrize("whole", ["sweep.json", "tune.json"])
def test_a_directory_is_held_by_one_and_a_sweeps_or_studys_runs_are_held_with_it(whole, tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    with lock(one), pytest.raises(UsageError, match="one is being written by another process"), lock(one):
        pass
    (tmp_path / whole).write_text("{}")
    with lock(tmp_path), pytest.raises(UsageError, match="being written by another process"), lock(one):
        pass
    with lock(one), lock(other), pytest.raises(UsageError, match="being written by another process"), lock(tmp_path):
        pass
    with lock(tmp_path):
        pass
    batch = tmp_path / ".unfinished" / "0123"
    batch.mkdir(parents=True)
    with lock_free(batch, {}) as mine, pytest.raises(UsageError, match="being written by another process"), lock(one):
        assert mine  # a worker of the sweep, which may be training just this run
    with lock(one), lock_free(one, {}) as mine:
        assert not mine


def test_what_cannot_begin_in_a_linked_directory_leaves_it_empty(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def begin_and_fail():
        with new_directory(tmp_path / "link") as out:
            (out / "config.json").write_text("{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_fail()
    with new_directory(tmp_path / "link"):
        pass
    assert (tmp_path / "link").is_symlink()
    assert [*(tmp_path / "real").iterdir()] == []


def test_a_directory_that_was_there_is_left_as_it_was(tmp_path):
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    before = own.stat()

    def begin_and_fail():
        with new_directory(own) as out:
            (out / "config.json").write_text("{}")
            (out / "checkpoints").mkdir()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        begin_and_fail()
    assert [*own.iterdir()] == []
    assert (own.stat().st_ino, own.stat().st_mode) == (before.st_ino, before.st_mode)


def test_what_may_be_replaced(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    check_out(tmp_path / "file")
    check_out(tmp_path / "new")
    for path in (tmp_path, tmp_path / "link", tmp_path / "dangling", tmp_path / "no" / "new", Path("/dev/null")):
        with pytest.raises(UsageError, match=r"must be a file|is a link; name the file itself"):
            check_out(path)


def test_of_several_that_wait_for_a_dead_process_one_takes_over(tmp_path, monkeypatch):
    """On a file system without locks, where the claim alone decides."""
    monkeypatch.setattr(lock_module, "DEAD_SECONDS", 1.0)  # a busy machine may stop who renews for longer than 0.2 s
    monkeypatch.setattr(lock_module, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "_flock", lambda *_, **__: False)
    (tmp_path / lock_module.CLAIM).write_text('{"host": "elsewhere", "pid": 1, "token": "a", "renewed": 3}')
    together, watch, seen = threading.Barrier(4), lock_module._watch, threading.local()

    def watch_together(*arguments):
        found = watch(*arguments)
        if not hasattr(seen, "dead"):  # all go on at the same moment
            seen.dead = together.wait()
        return found

    def claim(_):
        try:
            with lock(tmp_path):
                time.sleep(0.5)
                return True
        except UsageError:
            return False

    monkeypatch.setattr(lock_module, "_watch", watch_together)
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(claim, range(4))) == 1


def test_a_claim_that_is_only_looked_at_is_nobody_elses(tmp_path, monkeypatch):
    """Another process has moved a living one's claim away, sees that it lives, and puts it back."""
    monkeypatch.setattr(lock_module, "DEAD_SECONDS", 5.0)
    monkeypatch.setattr(lock_module, "RENEW_SECONDS", 0.02)
    claim, moved, draft = tmp_path / lock_module.CLAIM, tmp_path / ".b.dead", tmp_path / "draft"
    theirs = '{"host": "elsewhere", "pid": 1, "token": "a", "renewed": %d}'
    moved.write_text(theirs % 0)
    with ThreadPoolExecutor(1) as pool, warnings.catch_warnings(action="ignore"):
        mine = pool.submit(lambda: lock(tmp_path).__enter__())
        while not claim.exists():
            time.sleep(0.01)
        moved.rename(claim)
        for count in itertools.count(1):  # it is renewed
            if mine.done():
                break
            draft.write_text(theirs % count)
            draft.replace(claim)
            time.sleep(0.02)
        with pytest.raises(UsageError, match="is being written by process 1 of elsewhere"):
            mine.result()


def test_who_goes_on_is_told_to_name_an_environment_that_is_code():
    assert env_again("my_module:Env,size=3") == " --env my_module:Env,size=3"
    assert env_again("gymnasium/my module:Env-v0") == " --env 'gymnasium/my module:Env-v0'"
    again = "purejaxppo run --resume 'my runs/a' --env 'gymnasium/my module:Env-v0'"
    assert resume_command("run", Path("my runs/a"), "gymnasium/my module:Env-v0") == again
    assert env_again("CartPole-v1") == env_again(object()) == ""


def test_a_run_in_an_environment_that_was_an_object_is_read_again_by_its_class_or_an_instance(tmp_path):
    config = preset("a2c", Walk(), num_envs=2, num_steps=4, hidden_sizes=(4,))
    write_record(start_record(config, [0], tmp_path, jax.devices()[:1], HostOptions()))
    with pytest.raises(UsageError, match=r"was passed as an object; give it again: --env MODULE:CLASS, or env=… in Py"):
        read_record(tmp_path)
    assert read_record(tmp_path, "environments:Walk").config.env == "environments:Walk"
    assert read_record(tmp_path, Walk()).config.env == Walk()
    assert resume_command("run", tmp_path, repr(Walk())) == f"purejaxppo run --resume {tmp_path}"
    named = dataclasses.make_dataclass(
        "Named", [], bases=(Walk,), namespace={"__repr__": lambda _: "Walk"}, frozen=True
    )
    assert is_object(to_json(named()))
    assert not is_object("module:Class,name=a(b)")


@pytest.mark.parametrize("name", ["ünï[x]{y}%20d/日本", "a*b?c", "a\\b"])
def test_a_checkpoint_in_a_directory_of_any_name(tmp_path, name):
    run = tmp_path / name / "run"
    run.mkdir(parents=True)
    tree = {"x": jnp.arange(3.0), "a": {"b": jnp.ones(2)}, "a.b": jnp.zeros(2)}
    save(run / "checkpoints" / "32", {"state": tree, "totals": np.zeros((1, 1))}, {})
    assert_same_bits(read(run / "checkpoints" / "32").state(tree), tree)


def test_a_run_directory_that_was_moved_away_is_not_made_again(tmp_path):
    with pytest.raises(OSError, match=r"run/checkpoints/32 cannot be written \(FileNotFoundError.*run/checkpoints'"):
        save(tmp_path / "run" / "checkpoints" / "32", {"state": jnp.zeros(2)}, {})
    assert [*tmp_path.iterdir()] == []


def log(path, *updates, seeds=(3, 5)):
    file = MetricsFile(path, [*seeds])
    for update in updates:
        file.write(update, 32 * update, ROW)
    file.close()
    return path.read_text().splitlines(keepends=True)


def test_metrics_come_back_as_arrays_and_as_tidy_columns(tmp_path):
    log(tmp_path / "metrics.csv", 2, 4, 5)
    table = read_metrics(tmp_path / "metrics.csv", [3, 5])
    np.testing.assert_array_equal(table.env_steps, [64, 128, 160])
    np.testing.assert_array_equal(table.metric("kl"), [[np.nan] * 3, [0.5] * 3])
    np.testing.assert_array_equal(table.metric("eval_return"), np.full((2, 3), np.nan))
    tidy = table.tidy()
    assert {name: x.tolist() for name, x in tidy.items() if name != "kl"} == {
        "seed": [3, 5] * 3,
        "update": [2, 2, 4, 4, 5, 5],
        "env_steps": [64, 64, 128, 128, 160, 160],
        "episode_return": [1.0, 2.0] * 3,
    }


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (lambda lines: lines[:3] + lines[4:], "line 4, of seed 5 and update 4, does not follow"),
        (lambda lines: lines[:3] + lines[5:], "rows of update 4 are missing"),
        (lambda lines: lines[:5], "rows of update 5 are missing"),  # at which an evaluation was due
        (lambda lines: lines[:6], "rows of update 5 are missing"),
        (lambda lines: lines[:1], "rows of update 2 are missing"),
        (lambda lines: [*lines[:4], lines[4][:5], *lines[5:]], "line 5 has .* cells and the first 5"),
        (lambda lines: lines[1:], "its first line is"),
        (lambda lines: lines[:3] + lines[1:], "line 4, of seed 3 and update 2, does not follow"),
    ],
)
def test_missing_rows_are_named_with_the_way_out(tmp_path, cut, message):
    path = tmp_path / "metrics.csv"
    path.write_text("".join(cut(log(path, 2, 4, 5, 6))), newline="")
    before = path.read_bytes()
    for use in (MetricsFile, read_metrics):
        with pytest.raises(UsageError, match=f"{path}.*{message}.*restore it") as refused:
            use(path, [3, 5], 6, (2, 5))
        assert "\n" not in str(refused.value)
    assert path.read_bytes() == before


def test_a_log_may_begin_late_and_its_torn_end_is_cut_off(tmp_path):
    """The way out of the above: moved away, rows go on from where the run was."""
    path = tmp_path / "metrics.csv"
    lines = log(path, 4, 5, 6)
    path.write_text("".join([*lines, lines[-1][:7]]), newline="")
    file = MetricsFile(path, [3, 5], 5, (2, 5))
    file.write(6, 192, ROW)
    file.close()
    assert path.read_text().splitlines(keepends=True) == lines
    path.unlink()
    with pytest.warns(UserWarning, match="is missing: a new one begins after update 5"):
        MetricsFile(path, [3, 5], 5, (2, 5)).close()
    MetricsFile(path, [3, 5], 5, (2, 5)).close()
    assert read_metrics(path, [3, 5], 5, (2, 5)).tidy()["seed"].size == 0


def test_a_summary_of_an_older_version_is_read(tmp_path):
    failed = [{"seed": 4, "update": 7, "cause": "reward"}]
    write_json(tmp_path / "summary.json", {"eval_return": {"per_seed": [1.5, np.nan]}, "sick_seeds": failed})
    summary = read_summary(tmp_path, [3, 4])
    assert summary["failed_seeds"] == failed
    np.testing.assert_array_equal(summary["eval_return"]["per_seed"], [1.5, np.nan])
    assert np.isnan(summary["steps_per_second"])
    assert read_summary(tmp_path / "none", [3, 4]) is None


@pytest.mark.parametrize(
    ("env", "packages"),
    [
        ("CartPole-v1", {"gymnax"}),
        ("gymnasium/CartPole-v1", {"gymnasium"}),
        ("gymnasium/HalfCheetah-v5,frame_skip=1", {"gymnasium", "mujoco"}),
        ("gymnasium/ALE/Pong-v5", {"gymnasium", "ale-py"}),
        ("brax/ant", {"brax", "mujoco", "mujoco-mjx"}),
        ("pytest.mark:Env", {"pytest"}),
        (preset("ppo").environment, {"gymnax"}),
    ],
)
def test_versions_are_those_of_the_packages_that_step_the_environment(monkeypatch, env, packages):
    pytest.importorskip("gymnasium")
    monkeypatch.setattr("importlib.metadata.version", lambda package: "1.0")
    found = versions(env)
    assert found.keys() - versions("-:").keys() == packages
    assert {"jax", "orbax-checkpoint", "numpy"} < found.keys()


def test_a_log_is_held_against_what_the_checkpoint_knows(tmp_path):
    """One digit changed before the checkpoint is found; what came after it is cut off."""
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, [3, 5])
    for update in (4, 5):
        file.write(update, 32 * update, ROW)
    then = file.written()
    file.write(6, 192, ROW)
    file.close()
    whole = path.read_bytes()
    assert then == {"bytes": then["bytes"], "sha256": hashlib.sha256(whole[: then["bytes"]]).hexdigest()}
    again = MetricsFile(path, [3, 5], 5, (1,), then)
    again.close()
    assert again.written() == then
    assert path.read_bytes() == whole[: then["bytes"]]
    changed = bytearray(whole)
    changed[then["bytes"] - 4] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UsageError, match="rows are not those that were logged before the checkpoint; restore it"):
        MetricsFile(path, [3, 5], 5, (1,), then)


def test_a_changed_summary_is_refused(tmp_path):
    """By which `load` would choose another seed."""
    record = honest_record(tmp_path)
    write_summary(
        record, {"eval_return": np.array([1.0, 2.0]), "cut": np.array([0, 3])}, [], SECONDS, jax.devices(), 64
    )
    read = read_summary(tmp_path, record.seeds)
    assert (read["eval_return"]["per_seed"], read["cut_off"]) == ([1.0, 2.0], 3)
    path = tmp_path / "summary.json"
    path.write_text(path.read_text().replace("1.0,", "3.0,"))
    with pytest.raises(UsageError, match="its SHA-256 is not what it says"):
        read_summary(tmp_path, record.seeds)


SECONDS = {"run": 1.0, "compile": 1.0, "evaluation": 0.1, "saving": 0.1}


def honest_record(directory):
    config = Config(num_envs=2, num_steps=16, total_steps=64, hidden_sizes=(8,))
    return start_record(config, [0, 1], directory, jax.devices(), HostOptions())


def test_what_older_versions_annealed_to_no_effect_is_left_out(tmp_path):
    config = preset("ppo-penalty", "CartPole-v1", anneal=("entropy_coef",))
    write_record(start_record(config, [0], tmp_path, jax.devices(), HostOptions()))
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    content["settings"]["anneal"] = ["kl_coef", "entropy_coef"]
    path.write_text(json.dumps(content))
    assert read_record(tmp_path).config.anneal == ("entropy_coef",)


def test_what_older_versions_annealed_to_no_effect_is_left_out_of_their_checkpoints(tmp_path, monkeypatch):
    config = preset("ppo-penalty", "CartPole-v1", anneal=("entropy_coef",))
    settings = to_json(settings_of(config))
    monkeypatch.setattr(Snapshot, "_check_progress", lambda *_: None)
    monkeypatch.setattr(Snapshot, "state", lambda *_: None)
    for names, refused in ((["kl_coef", "entropy_coef"], False), (["kl_target"], True)):
        about = {"settings": settings | {"anneal": names}, "seeds": [0]}
        with pytest.raises(UsageError, match="anneal") if refused else contextlib.nullcontext():
            Snapshot({}, {}, about, tmp_path).check(config, [0], None)


def test_what_a_run_may_have_can_be_read_again(tmp_path):
    stages = tuple(f"{1000 * i} gamma=0.9" for i in range(99))  # as many as a population makes in 100 rungs
    config = Config(stages=stages, reward_clip=10**10)
    config.check()
    write_record(start_record(config, [0], tmp_path, jax.devices(), HostOptions()))
    again = read_record(tmp_path).config
    assert (again.stages, again.reward_clip) == (stages, 10**10)
    with pytest.raises(UsageError, match="stages: 1,001 are more than 1,000"):
        Config(stages=stages[:1] * 1001).check()


def test_a_log_is_no_longer_than_can_be_read_again(tmp_path, monkeypatch):
    """100 rows of each seed, or fewer."""
    config = preset("a2c", "CartPole-v1", total_steps=80 * 1000)
    for most, interval in ((2**29 // timetable.ROW_BYTES, 10), (50, 40)):
        monkeypatch.setattr(timetable, "ROW_BYTES", 2**29 // most)
        record = start_record(config, [0, 1], tmp_path, jax.devices(), HostOptions())
        assert record.options["log_interval"] == interval
    with pytest.raises(UsageError, match=r"log_interval = 39 .* for 2 seeds, .* pass --log-interval 40, or leave"):
        start_record(config, [0, 1], tmp_path, jax.devices(), HostOptions(log_interval=39))

    config = config.replace(anneal_learning_rate=False)
    write_record(start_record(config, [0, 1], tmp_path, jax.devices(), HostOptions(log_interval=40)))
    with pytest.raises(UsageError, match=r"total_steps = 88,000 makes more rows .* 50 that can be read .* --init-from"):
        resume_experiment(tmp_path, 88_000)
    with pytest.raises(UsageError, match=r"eval_interval = 40 makes more rows .* for 2 seeds, than the 50 that can be"):
        start_record(config.replace(eval_interval=40), [0, 1], tmp_path, jax.devices(), HostOptions())
    record = start_record(config.replace(eval_interval=50), [0, 1], tmp_path, jax.devices(), HostOptions())
    assert record.options["log_interval"] == 200  # 5 rows beside the 20 of the evaluations


def test_what_decides_the_last_digits_is_written_down(tmp_path):
    record = honest_record(tmp_path)
    write_record(record)
    machine = read_record(tmp_path).machine
    assert machine == fingerprint()
    assert machine["platform"] == "cpu"
    assert machine["cpu"]
    assert machine["instructions"]


def test_another_machine_is_told_on_resume(tmp_path, capsys):
    record = honest_record(tmp_path)
    other = record._replace(machine=record.machine | {"cpu": "another", "jax_threefry_partitionable": "False"})
    progress = ProgressLine(Console(width=500), True)
    devices_again(other, [(other.config, 2)], None, None, progress)
    said = capsys.readouterr()
    text = said.out + said.err
    assert f"cpu is {record.machine['cpu']} and was another: the last digits of what follows may differ" in text
    assert "jax_threefry_partitionable is True and was False: the random numbers of what follows may differ" in text


@pytest.fixture
def quick_claims(monkeypatch):
    monkeypatch.setattr(lock_module, "RENEW_SECONDS", 0.1)
    monkeypatch.setattr(lock_module, "DEAD_SECONDS", 0.6)


def claim(directory, count, host="elsewhere"):
    (directory / lock_module.CLAIM).write_text(json.dumps({"host": host, "pid": 7, "token": "a", "renewed": count}))


def test_another_machines_claim_is_respected_as_long_as_it_is_renewed(tmp_path, quick_claims):
    """As on a file system where `flock` is local to each machine."""
    ended = threading.Event()

    def renew():
        count = 0
        while not ended.wait(0.1):
            claim(tmp_path, count := count + 1)

    claim(tmp_path, 0)
    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with (
            pytest.warns(UserWarning, match="was last written by process 7 of elsewhere; looking"),
            pytest.raises(UsageError, match="is being written by process 7 of elsewhere; wait for it, or stop it"),
            lock(tmp_path),
        ):
            pytest.fail("two writers")
    finally:
        ended.set()
        thread.join()
    with pytest.warns(UserWarning, match="looking"), lock(tmp_path):  # nobody renews it any more
        assert json.loads((tmp_path / lock_module.CLAIM).read_text())["pid"] == os.getpid()
    assert not [*tmp_path.iterdir()]


def test_a_worker_holds_what_is_free_and_does_not_wait_for_the_rest(tmp_path, quick_claims):
    seen, tries = {}, 0
    with lock_free(tmp_path, seen) as mine, lock_free(tmp_path, seen) as again:
        assert (mine, again) == (True, False)
    for count in range(10):  # another machine renews its claim for longer than DEAD_SECONDS
        claim(tmp_path, count)
        time.sleep(0.1)
        with lock_free(tmp_path, seen) as mine:
            assert not mine
    assert json.loads((tmp_path / lock_module.CLAIM).read_text())["host"] == "elsewhere"
    while not mine:  # it is dead
        with lock_free(tmp_path, seen) as mine:
            tries += 1
        time.sleep(0.1)
    assert tries > 3
    assert [*tmp_path.iterdir()] == []
    (tmp_path / lock_module.CLAIM).write_text(json.dumps({"host": socket.gethostname(), "pid": 7, "token": "b"}))
    with lock_free(tmp_path, seen) as mine:  # of a dead process of this machine: at once
        assert mine
    with lock_free(tmp_path / "gone", seen) as mine:
        assert not mine


def test_where_flock_is_missing_two_processes_of_one_machine_are_told_apart(tmp_path, quick_claims, monkeypatch):
    monkeypatch.setattr(lock_module, "_flock", lambda *_, **__: False)
    with (
        lock(tmp_path),
        pytest.warns(UserWarning, match="looking"),
        pytest.raises(UsageError, match="is being written by process"),
        lock(tmp_path),
    ):
        pytest.fail("two writers")


def test_who_was_taken_for_dead_writes_no_checkpoint(tmp_path, quick_claims):
    with lock(tmp_path):
        check_claim(tmp_path)
        claim(tmp_path, 3)
        with pytest.raises(OSError, match="process 7 of elsewhere has taken it over"):
            check_claim(tmp_path)
    assert json.loads((tmp_path / lock_module.CLAIM).read_text())["pid"] == 7  # and takes nothing away


def test_a_claim_is_known_by_its_token(tmp_path, monkeypatch):
    """Not by the host's name, which may change, nor by the number of a process, which containers share."""
    with lock(tmp_path):
        monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
        check_claim(tmp_path)
        path = tmp_path / lock_module.CLAIM
        path.write_text(json.dumps(json.loads(path.read_text()) | {"token": "another's"}))
        with pytest.raises(OSError, match="has taken it over"):
            check_claim(tmp_path)


def test_a_claim_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / lock_module.CLAIM).symlink_to(tmp_path / "victim")
    with lock(run):
        pass
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_checkpoint_just_written_is_kept_whatever_the_dates(tmp_path):
    for steps in (32, 64, 96):
        checkpoint.save(tmp_path / str(steps), {"x": np.ones(2)}, {"score": 0.0})
        os.utime(tmp_path / str(steps), (4e9, 4e9))
    checkpoint.save(tmp_path / "48", {"x": np.ones(2)}, {"score": -1.0})
    checkpoint.prune(tmp_path, 1, tmp_path / "48")
    assert {path.name for path in tmp_path.iterdir()} == {"48", "96"}


@pytest.mark.parametrize("name", ["results.csv", "results.png", "sweep.json", "wandb/id"])
def test_links_that_a_sweep_or_a_logger_would_write_through_are_refused(tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="is a link or no file"):
        refuse_links(tmp_path)
