"""What a run leaves in its logs: the same on every schedule, whole at any time, and what training really measured."""

import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import time
import types
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from environments import Position, Walk
from rich.console import Console
from support import by_cost

from purejaxppo import A2C, Config, make_train, resume_experiment, run_experiment
from purejaxppo.errors import UsageError
from purejaxppo.experiment import loop, progress, timetable
from purejaxppo.experiment.experiment import start_record
from purejaxppo.experiment.logging import TensorBoard, _values, grouped
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine
from purejaxppo.experiment.run_batch import RunBatch
from purejaxppo.experiment.signals import Signals
from purejaxppo.health import CAUSES
from purejaxppo.parallel.machine import jax_settings
from purejaxppo.parallel.runs import over_runs
from purejaxppo.rundir.checkpoint import read
from purejaxppo.rundir.metrics import MetricsFile
from purejaxppo.statistics import iqm

ROOT = pathlib.Path(__file__).parent
SEEDS, UPDATES, BATCH = [31, 32, 33], 20, 32  # the first falls sick in update 8


class Fate(NamedTuple):
    """A walk, and whether it ends badly."""

    walk: Position
    doomed: jax.Array


@dataclasses.dataclass(frozen=True)
class Unlucky(Walk):
    """A walk that now and then is doomed from its start: its fifth reward is NaN."""

    odds: float = 0.01

    def reset(self, key):
        walk, obs = super().reset(key)
        return Fate(walk, jax.random.bernoulli(jax.random.fold_in(key, 1), self.odds)), obs

    def step(self, key, state, action):
        walk, obs, reward, *ends = super().step(key, state.walk, action)
        reward = jnp.where(state.doomed & (walk.steps == 5), jnp.nan, reward)
        return Fate(walk, state.doomed), obs, reward, *ends


CONFIG = Config(
    env=Unlucky(),
    algo=A2C(),
    num_envs=2,
    num_steps=16,
    total_steps=UPDATES * BATCH,
    hidden_sizes=(8,),
    num_minibatches=1,
    eval_episodes=2,
)
programs = {}


def compile_once(runs, compile=loop.compile_program):
    """`compile_program`, once per log interval; always with evaluations, which are programs of their own."""
    interval, record = runs.options.log_interval, runs.records[0]
    if interval not in programs:
        with_evaluations = record._replace(config=record.config.replace(eval_interval=1))
        programs[interval] = compile(dataclasses.replace(runs, records=[with_evaluations]))
    return programs[interval]


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    monkeypatch.setattr(loop, "compile_program", compile_once)
    monkeypatch.setattr(
        "purejaxppo.experiment.run_batch.learning_curve", lambda *figure: None
    )  # drawn elsewhere, 0.3 s each


def run(out, eval_interval=0, line=None, debug=False, **options):
    """A run of all seeds on two devices; by default in silence."""
    host, config = {"log_interval": 3, "final_episodes": 2} | options, CONFIG.replace(eval_interval=eval_interval)
    return run_experiment(config, SEEDS, out, options=host, progress=line, debug=debug).summary


def rows_of(out):
    """metrics.csv: (update, seed) -> metrics, empty cells as NaN."""
    with (out / "metrics.csv").open(newline="") as file:
        rows = [{name: float(x or "nan") for name, x in row.items()} for row in csv.DictReader(file)]
    return {(int(row.pop("update")), int(row.pop("seed"))): row for row in rows}


@functools.cache
def measured():
    """Final states, and metrics [seeds, updates], of the bare `make_train`."""
    keys = jax.vmap(jax.random.key)(np.asarray([*SEEDS, SEEDS[-1]], np.uint32))
    state, metrics = over_runs(make_train(CONFIG), jax.devices())(keys)
    return jax.tree.map(lambda x: np.asarray(x)[:3], (state.failure, metrics))


def expected_row(updates, i):
    """What the log should say of seed number i over some updates (slice), in float64."""
    metrics = {name: x[i, updates].astype(np.float64) for name, x in measured()[1].items()}
    alive = metrics.pop("alive") > 0
    episodes = metrics.pop("episodes")[alive]
    row = {"alive": alive.mean(), "episodes": episodes.sum() if alive.any() else math.nan}
    for name, x in metrics.items():
        per_episode = name in ("episode_return", "episode_length")
        weights = episodes if per_episode else np.ones(alive.sum())
        known = weights > 0
        row[name] = np.average(x[alive][known], weights=weights[known]) if known.any() else math.nan
    return row


# updates per row, per checkpoint and per evaluation; seconds per chunk
SCHEDULES = [
    (1, None, 0, math.inf),
    (1, 7, 0, 0.0),
    (3, None, 0, 0.0),
    (3, 4, 0, 0.01),
    (20, 3, 0, 0.0),
    (20, None, 0, math.inf),
    (3, 2, 4, math.inf),
    (3, 6, 4, 0.001),
]


@functools.cache
def finished(directory, schedule):
    """The run of one schedule: (its directory, its summary)."""
    log, checkpoint, evaluation, _ = schedule
    out = directory / "-".join(map(str, schedule))
    return out, run(out, evaluation, log_interval=log, checkpoint_interval=checkpoint)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("schedules")


@pytest.fixture
def output(directory, monkeypatch):
    """schedule -> its directory and summary."""

    def of(schedule):
        monkeypatch.setattr(timetable, "CHUNK_SECONDS", schedule[3])
        return finished(directory, schedule)

    return of


@pytest.fixture
def outputs(output):
    """All schedules' directories and summaries."""
    return {schedule: output(schedule) for schedule in SCHEDULES}


@pytest.mark.thorough
def test_no_schedule_changes_a_bit_of_the_final_state(outputs):
    """8 schedules of rows, checkpoints, evaluations and chunks: one SHA-256 of all arrays of the last checkpoint."""
    hashes = set()
    for out, _ in outputs.values():
        arrays = read(out / "checkpoints" / str(UPDATES * BATCH)).arrays
        state = {name: x for name, x in arrays.items() if name.startswith("state.")}
        assert len(state) > 20
        content = b"".join(name.encode() + x.tobytes() for name, x in sorted(state.items()))
        hashes.add(hashlib.sha256(content).hexdigest())
    assert len(hashes) == 1


@pytest.mark.thorough
def test_rows_do_not_depend_on_chunks_or_checkpoints(outputs):
    """Where rows and evaluations have the same intervals, metrics.csv has the same bytes."""
    files = {}
    for (log, _, evaluation, _), (out, _) in outputs.items():
        files.setdefault((log, evaluation), set()).add((out / "metrics.csv").read_bytes())
    assert len(files) == 4
    assert all(len(contents) == 1 for contents in files.values())


@pytest.mark.parametrize("log", by_cost([1, 3, 20], [3]))
def test_rows_are_the_means_of_what_training_measured(output, log):
    """Against means in float64 over the updates of each row: over its episodes, or over the updates that were made."""
    rows = rows_of(output(next(x for x in SCHEDULES if (x[0], x[2]) == (log, 0)))[0])
    ends = [*range(log, UPDATES, log), UPDATES]
    assert list(rows) == [(end, seed) for end in ends for seed in SEEDS]
    for begin, end in itertools.pairwise([0, *ends]):
        for i, seed in enumerate(SEEDS):
            row = rows[end, seed]
            assert row.pop("env_steps") == end * BATCH
            expected = expected_row(slice(begin, end), i)
            assert set(row) == set(expected)
            for name, x in expected.items():
                np.testing.assert_allclose(row[name], x, rtol=1e-5, atol=1e-6, err_msg=f"{name} {seed} {end}")


def test_rows_that_an_evaluation_ends_early_hold_their_own_updates_only(output):
    """Rows every 3 updates, evaluations every 4 and after the last: each row goes on from the one before it."""
    out, _ = output((3, 2, 4, math.inf))
    rows = rows_of(out)
    ends = [3, 4, 6, 8, 9, 12, 15, 16, 18, 20]
    assert list(rows) == [(end, seed) for end in ends for seed in SEEDS]
    for begin, end in itertools.pairwise([0, *ends]):
        for i, seed in enumerate(SEEDS):
            for name, x in expected_row(slice(begin, end), i).items():
                np.testing.assert_allclose(rows[end, seed][name], x, rtol=1e-5, atol=1e-6)
    assert {end for (end, _), row in rows.items() if row["eval_length"] > 0} == {4, 8, 12, 16, 20}


@pytest.mark.thorough
def test_failed_seeds_are_in_the_log_and_the_summary_of_every_schedule(outputs):
    """Seed, update and cause are those of the bare training; other seeds are alive in every row."""
    failure = measured()[0]
    sick = [
        {"seed": seed, "update": int(update), "cause": CAUSES[cause - 1]}
        for seed, update, cause in zip(SEEDS, *failure, strict=True)
        if update
    ]
    assert [found["cause"] for found in sick] == ["reward"]
    assert sick[0]["update"] == 8
    for (log, *_), (out, summary) in outputs.items():
        assert summary["failed_seeds"] == json.loads((out / "summary.json").read_text())["failed_seeds"] == sick
        for (update, seed), row in rows_of(out).items():
            ill = seed == sick[0]["seed"]
            assert (row["alive"] == 1.0) == (not ill or update < sick[0]["update"])
            if ill and update - log >= sick[0]["update"]:
                assert row["alive"] == 0.0
                assert math.isnan(row["value_loss"])


class Reader(ProgressLine):
    """Reads the log whenever it is told of progress; raises after so many updates, as a crash would."""

    def __init__(self, path, crash=math.inf):
        super().__init__(Console(), quiet=True)
        self.path, self.crash, self.seen = path, crash, []

    def advance(self, steps, returns, alive, each):
        done = steps // (BATCH * len(SEEDS))
        self.seen.append((done, self.path.read_text()))
        if done >= self.crash:
            raise ZeroDivisionError


def test_the_log_can_be_read_while_it_is_written(tmp_path, monkeypatch):
    """After every chunk the file holds all rows due by then, in whole lines, and begins what it becomes."""
    monkeypatch.setattr(timetable, "CHUNK_SECONDS", 0.0)
    reader = Reader(tmp_path / "run" / "metrics.csv")
    run(tmp_path / "run", line=reader)
    final = reader.path.read_text()
    assert [done for done, _ in reader.seen] == list(range(1, UPDATES + 1))
    for done, text in reader.seen:
        assert final.startswith(text)
        rows = done // 3 if done < UPDATES else 7
        assert text.count("\n") == (1 + len(SEEDS) * rows if rows else 0)
        assert not text or text.endswith("\n")


def test_rows_of_many_seeds_are_on_disk_as_soon_as_they_are_written(tmp_path):
    """None stays behind in a buffer."""
    seeds, sizes = list(range(1000)), []
    file = MetricsFile(tmp_path / "metrics.csv", seeds)
    row = {name: np.full(1000, 1 / 3) for name in ("a", "b", "c")}
    for update in (1, 2):
        file.write(update, update, row)
        sizes.append((tmp_path / "metrics.csv").read_text().count("\n"))
    file.close()
    assert sizes == [1001, 2001]


@pytest.mark.parametrize(("log", "crash"), by_cost([(20, 8), (3, 8)], [(3, 8)]))
def test_a_crash_before_or_after_the_first_row_leaves_no_trace_in_the_log(tmp_path, monkeypatch, output, log, crash):
    """Stopped in update 8 with the last checkpoint at 6, then resumed: the log of a run that was not."""
    expected, _ = output((log, None, 0, 0.0 if log == 3 else math.inf))
    monkeypatch.setattr(timetable, "CHUNK_SECONDS", 0.0)
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        run(out, line=Reader(out / "metrics.csv", crash), log_interval=log, checkpoint_interval=3)
    with (out / "metrics.csv").open("a") as file:
        file.write("31,9,288,0.1")  # and a line that was torn
    resume_experiment(out, env=Unlucky())
    assert (out / "metrics.csv").read_bytes() == (expected / "metrics.csv").read_bytes()


@pytest.mark.parametrize("content", ["seed,upd", "seed,update,env_steps,alive\n", "seed,update,env_steps,alive\n4,1"])
def test_a_log_without_a_whole_row_is_begun_anew(tmp_path, content):
    """Whatever a crash within the first row left."""
    path = tmp_path / "metrics.csv"
    path.write_text(content)
    file = MetricsFile(path, [4], done=2)
    file.write(3, 96, {"alive": np.ones(1), "kl": np.asarray([np.nan])})
    file.close()
    assert path.read_bytes() == b"seed,update,env_steps,alive,kl\r\n4,3,96,1,\r\n"


def test_a_damaged_log_is_told_in_one_line(tmp_path):
    path = tmp_path / "metrics.csv"
    for content in ("seed,update,env_steps\n4,one,32\n", "seed,update,env_steps\n" + "x" * 200_000 + "\n"):
        path.write_text(content)
        with pytest.raises(UsageError, match="is not what a run leaves"):
            MetricsFile(path, [4], done=2)


def events(directory):
    """The scalars of a TensorBoard run, (name, step) -> value, and its hyperparameters.

    A record is its length, a checksum, it, a checksum.
    """
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData

    found, settings = {}, {}
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event, data = Event.FromString(data[12 : 12 + length]), data[16 + length :]
            for value in event.summary.value:
                if (plugin := value.metadata.plugin_data).plugin_name == "hparams":
                    given = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
                    settings |= {name: getattr(x, x.WhichOneof("kind")) for name, x in given.items()}
                    continue
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found, settings


def scalars(rows, aggregate):
    """What TensorBoard and W&B should hold of rows of metrics.csv: (name, steps) -> value, the finite ones."""
    found = {}
    for update in dict.fromkeys(update for update, _ in rows):
        here = [row for (of, _), row in rows.items() if of == update]
        for name in here[0]:
            found[name, int(here[0]["env_steps"])] = aggregate(name, np.asarray([row[name] for row in here]))
    return {(grouped(name), at): x for (name, at), x in found.items() if math.isfinite(x) and name != "env_steps"}


def over_seeds(name, x):
    return x.mean() if name == "alive" else iqm(x)


def assert_close(found, expected):
    assert set(found) == set(expected)
    for key, x in expected.items():
        assert found[key] == pytest.approx(x, rel=1e-6, abs=1e-6)  # the file has 7 digits, and means cancel


def test_tensorboard_holds_what_metrics_csv_does(tmp_path):
    """Of the aggregate: the IQM over seeds. Of a run per seed: that seed's. What is not finite is left out."""
    run(tmp_path / "one", 4, tensorboard=True)
    assert [path.name for path in (tmp_path / "one" / "tensorboard").iterdir()] == ["iqm"]
    found, settings = events(tmp_path / "one" / "tensorboard" / "iqm")
    assert_close(found, scalars(rows_of(tmp_path / "one"), over_seeds))
    assert {"episode/return", "policy/kl", "critic/value_loss", "training/alive"} < {name for name, _ in found}
    assert settings["num_seeds"] == len(SEEDS)
    assert (settings["algo"], settings["hidden_sizes"], settings["gamma"]) == ("a2c", "(8,)", 0.99)
    run(tmp_path / "each", 4, tensorboard=True, run_per_seed=True)
    assert {path.name for path in (tmp_path / "each" / "tensorboard").iterdir()} == {f"seed_{x}" for x in SEEDS}
    for i, seed in enumerate(SEEDS):
        found, settings = events(tmp_path / "each" / "tensorboard" / f"seed_{seed}")
        assert settings["seed"] == seed
        assert_close(found, scalars(rows_of(tmp_path / "each"), lambda name, x, i=i: x[i]))
    assert all(math.isfinite(x) for x in found.values())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_is_told_by_tensorboards_files_too(tmp_path):
    board = TensorBoard(tmp_path, [0], True, {}, 0)
    (writer,) = board._writers
    kept, writer._py_recordio_writer._writer = (
        writer._py_recordio_writer._writer,
        os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"),
    )
    for _ in range(3):  # and does not wait for ever
        with pytest.raises(OSError, match="No space left"):
            board.write(1, 64, {"episode_return": np.zeros(1)})
    with contextlib.suppress(OSError):
        writer._py_recordio_writer._writer.close()
    writer._py_recordio_writer._writer = kept
    board.close()


def test_every_metric_has_a_group():
    """Those of all algorithms, which the fixtures' runs hold; a metric that is unknown is the policy's."""
    texts = [path.read_text() for path in (ROOT / "fixtures").glob("*/metrics.csv")]
    groups = {}
    for name in {name for text in texts for name in text.splitlines()[0].split(",")[3:]} | {"users_own"}:
        groups.setdefault(grouped(name).partition("/")[0], set()).add(name)
    assert groups["episode"] == {"episode_return", "episode_length", "episodes"}
    assert groups["eval"] == {"eval_return", "eval_length"}
    assert groups["critic"] == {"value_loss", "value_grad_norm", "explained_variance"}
    assert groups["training"] == {"alive", "learning_rate"}
    assert groups["trust_region"] > {"accepted", "predicted_kl"}
    assert groups["policy"] >= {"kl", "kl_coef", "entropy", "policy_loss", "clip_fraction", "grad_norm", "users_own"}
    assert len(groups) == 6


def test_an_aggregate_does_not_hide_a_sick_seed():
    """The IQM of 1, 1, 1, 0 is 1: of `alive` the mean is told."""
    row = {"alive": np.asarray([1.0, 1.0, 1.0, 0.0]), "kl": np.asarray([1.0, 2.0, np.nan, np.inf])}
    assert _values(row, per_seed=False) == [{"training/alive": 0.75}]
    assert _values(row, per_seed=True)[2] == {"training/alive": 1.0}


WANDB = """
import os, pathlib, socket, sys
import conftest
import test_logging as here
from purejaxppo.experiment import loop
from purejaxppo.errors import UsageError

connect = socket.socket.connect
def at_home(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError("there is no network")
    return connect(self, address)
socket.socket.connect = at_home

conftest.jax.config.update("jax_compilation_cache_dir", sys.argv[2])
loop.compile_program = here.compile_once
out = pathlib.Path(sys.argv[1])
for name, per_seed in (("one: #1", False), ("each", True)):
    here.run(out / name, wandb=True, run_per_seed=per_seed, wandb_project="walks")
import wandb
wandb.teardown()
os.environ["WANDB_MODE"] = "online"
try:
    here.run(out / "online", wandb=True)
except UsageError as error:
    print(error)
"""


def leveldb_records(data):
    """The records of a log in LevelDB's format, after a header of 7 bytes: chunks within blocks of 32 KiB."""
    record, at = b"", 7
    while at < len(data):
        if (left := 2**15 - at % 2**15) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        record, at = record + data[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # the whole of a record, or its last chunk
            yield record
            record = b""


def wandb_records(path):
    """What an offline run's file says of the run, and the rows of its history."""
    from wandb.proto.wandb_internal_pb2 import Record

    records, history = [Record.FromString(data) for data in leveldb_records(path.read_bytes())], []
    for record in records:
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if items:
            history.append({name: x for name, x in items.items() if not name.startswith("_")})
    return next(record.run for record in records if record.HasField("run")), history


@pytest.mark.thorough
def test_wandb_offline_has_one_group_and_the_runs_that_were_asked_for(tmp_path):
    """In a process without a network: the aggregate, then a run per seed. Without an API key one line says so."""
    environment = {name: x for name, x in os.environ.items() if not name.startswith("WANDB")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT.parent)]), "HOME": str(tmp_path)}
    environment |= {"WANDB_MODE": "offline", "HTTPS_PROXY": "http://127.0.0.1:9", "WANDB__DISABLE_STATS": "true"}
    command = [sys.executable, "-c", WANDB, str(tmp_path), jax.config.jax_compilation_cache_dir]
    done = subprocess.run(command, env=environment, timeout=240, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("--wandb cannot begin a run (UsageError: No API key configured")
    assert done.stdout.count("\n") == 1

    ids = set()
    for name, runs in (("one: #1", ["iqm"]), ("each", [f"seed{seed}" for seed in SEEDS])):
        files = sorted((tmp_path / name / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(files) == len(runs)
        for file in files:
            begun, history = wandb_records(file)
            ids.add(begun.run_id)
            assert (begun.run_group, begun.project) == (name, "walks")
            which = begun.display_name.removeprefix(f"{name}-")
            runs.remove(which)
            i = 0 if which == "iqm" else SEEDS.index(int(which.removeprefix("seed")))
            expected = scalars(rows_of(tmp_path / name), over_seeds if which == "iqm" else lambda _, x, i=i: x[i])
            found = {(key, row["env_steps"]): x for row in history for key, x in row.items()}
            assert all(x * BATCH == steps for (key, steps), x in found.items() if key == "update")
            assert_close({key: x for key, x in found.items() if key[0] not in ("update", "env_steps")}, expected)
        assert runs == []
    assert len(ids) == 1 + len(SEEDS)


def test_wandb_ids_are_a_directorys_own_and_stay_its_own(tmp_path):
    """Two runs of one name are two runs in W&B, and a resumed one is the same."""
    from purejaxppo.experiment.logging import _wandb_id

    places = [tmp_path / "a" / "run", tmp_path / "b" / "run"]
    for place in places:
        place.mkdir(parents=True)
    first, second = (_wandb_id(place) for place in places)
    assert first != second
    assert [_wandb_id(place) for place in places] == [first, second]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that go by only when they are told to."""
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now


RETURNS = np.asarray([10.0, 20.0, 30.0, 1000.0, np.nan, np.inf, 40.0, 50.0])
SCORE = f"return {iqm([10, 20, 30, 40, 50, 1000]):.1f} (quartiles 22.5 … 47.5) · 1 of 8 seeds failed"  # 6 are known


def test_off_a_terminal_progress_is_a_line_every_few_seconds(clock):
    """Steps, steps per second since this run went on, IQM and quartiles of the returns, failed seeds, time left."""
    file = io.StringIO()
    with ProgressLine(Console(file=file, width=40)) as line:
        line.stage("training", 400, 1000)
        for seconds, steps in ((1, 450), (4, 500), (2, 600), (1, 650), (1, 1000)):
            clock.seconds += seconds
            line.advance(steps, RETURNS, 7)
        line.advance(1000, np.full(2, np.nan), 2)
        line.advance(1000, np.asarray([20.0]), 1)
        line.advance(1000, RETURNS, 7, "run")
    assert file.getvalue().splitlines() == [
        "training",
        f" 60% · 600 steps of all 8 seeds · 29 steps/s · {SCORE} · 14 s left",
        f"100% · 1,000 steps of all 8 seeds · 67 steps/s · {SCORE} · 0 s left",
        "100% · 1,000 steps of all 2 seeds · 67 steps/s · no episode yet · 0 s left",
        "100% · 1,000 steps · 67 steps/s · return 20.0 · 0 s left",  # of one seed there are no quartiles
        f"100% · 1,000 steps of all 8 runs · 67 steps/s · {SCORE.replace('seeds', 'runs')} · 0 s left",
    ]


def test_the_first_chunk_says_nothing_of_the_time_left(clock):
    file = io.StringIO()
    with ProgressLine(Console(file=file, width=40)) as line:
        line.stage("training", 0, 10**9)
        for steps in (128, 10**6):
            clock.seconds += 20
            line.advance(steps, np.full(1, np.nan), 1)
    first, second = file.getvalue().splitlines()[1:]
    assert first.endswith("no episode yet")
    assert second.endswith(" s left")


def test_off_a_terminal_what_lasts_says_so_twice_a_minute(clock):
    """Compilation, say; and all who wait for devices call for it."""
    file = io.StringIO()
    with ProgressLine(Console(file=file)) as line:
        line.stage("compiling")
        for _ in range(8):
            clock.seconds += 10
            line.tick()
        line.stage("evaluating")
        line.tick()
    assert file.getvalue().splitlines() == ["compiling", "compiling for 30 s", "compiling for 60 s", "evaluating"]
    ticks = []
    with Signals(lambda: ticks.append(0)) as signals:
        signals.wait(lambda: time.sleep(0.2))
    assert ticks


def test_what_is_waited_for_sees_jaxs_context_managers():
    def settings():
        return jax_settings(), jax.config.jax_debug_nans

    with Signals() as signals:
        with jax.default_matmul_precision("highest"), jax.threefry_partitionable(False), jax.debug_nans(True):
            assert signals.wait(settings) == settings()
        assert signals.wait(settings) == settings()


def test_a_terminals_bar_begins_anew_with_each_batch_of_a_sweep(clock):
    file = io.StringIO()
    line = ProgressLine(Console(file=file, force_terminal=True, width=80))
    for _ in range(2):
        with line:
            line.stage("training", 0, 100)
            line.advance(100, RETURNS, 8)
            line.stage("evaluating")
            line.tick()
        line.say("a batch has ended")
    assert file.getvalue().count("a batch has ended") == 2


@pytest.mark.parametrize("width", [80, 200])
def test_on_a_terminal_all_of_it_fits(clock, width):
    """A bar with the time left, the figures under it, whole on 80 columns; what is said stands above."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=width, highlight=False, legacy_windows=False)
    with ProgressLine(console) as line:
        line.stage("compiling")
        line.stage("training", 0, 4_000_000)
        for _ in range(2):
            clock.seconds += 2
            line.advance(int((clock.seconds - 100) * 500_000), RETURNS, 7)
        line.say("seed 3: [reward] not finite")
        line.stage("evaluating")
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", file.getvalue())
    last = [text.strip() for text in shown.replace("\r", "\n").split("\n") if text.strip()][-5:]
    elapsed = r"\d:\d\d:\d\d elapsed"
    assert re.fullmatch(rf"compiling +━+ +100% {elapsed}", last[0])
    assert re.fullmatch(rf"training +[━╸╺]+ +50% {elapsed} \d:\d\d:\d\d left", last[1])
    assert re.fullmatch(rf"evaluating +━+ +100% {elapsed}", last[2])  # what has ended well has a whole bar
    assert last[3:] == ["2,000,000 steps of all 8 seeds · 500,000 steps/s", SCORE]
    assert "seed 3: [reward] not finite" in shown


def test_a_run_tells_of_its_stages_and_of_failed_seeds_or_of_nothing(tmp_path, monkeypatch):
    """Off a terminal: the stages, who fell sick, how it went. Quiet, also on a terminal: nothing."""
    told, quiet = io.StringIO(), io.StringIO()
    run(tmp_path / "told", line=ProgressLine(Console(file=told)))
    summary = run(tmp_path / "quiet", line=ProgressLine(Console(file=quiet, force_terminal=True), quiet=True))
    (sick,) = summary["failed_seeds"]
    lines = told.getvalue().splitlines()
    assert lines[:2] == ["compiling", "training"]
    assert f"seed {sick['seed']}: reward not finite in update {sick['update']}; frozen as it was before" in lines
    assert lines[-2].startswith("100% · 1,920 steps of all 3 seeds · ")
    assert "1 of 3 seeds failed" in lines[-2]
    assert lines[-1] == "evaluating"
    assert quiet.getvalue() == ""


def test_a_group_of_a_sweep_ends_when_all_have_failed(tmp_path, monkeypatch):
    """With the program of above: the seed that fails, four times. What was not trained is not said to have been."""
    monkeypatch.setattr(timetable, "CHUNK_SECONDS", 0.0)
    options = HostOptions(log_interval=3, final_episodes=2, checkpoint_interval=5)
    records = [start_record(CONFIG, SEEDS[:1], tmp_path / name, jax.devices(), options) for name in "ab"]
    for directory in (*(record.directory for record in records), tmp_path / "unfinished"):
        directory.mkdir()
    runs = RunBatch(records, jax.devices(), (), 4, tmp_path / "unfinished", tmp_path)
    summaries = loop.Loop(runs, ProgressLine(Console(), quiet=True)).run(program=loop.compile_program(runs))
    for record, summary in zip(records, summaries, strict=True):
        assert [found["update"] for found in summary["failed_seeds"]] == [8]
        assert summary["env_steps"] == 8 * BATCH
        assert {update for update, _ in rows_of(record.directory)} == {3, 6}
        assert [path.name for path in (record.directory / "checkpoints").iterdir()] == [str(8 * BATCH)]
    saved = [path.name for path in (tmp_path / "unfinished" / "checkpoints").iterdir()]
    assert sorted(saved, key=int) == [str(5 * BATCH), str(8 * BATCH)]


def test_debug_stops_at_the_first_sick_seed_and_blames_no_line_that_made_no_nan(tmp_path):
    """The environment's NaN is a constant: neither the sum it goes into nor a mean over no episodes is named."""
    message = "reward of seed 31 is not finite in update 8: no operation makes NaN of finite numbers, so look for a "
    with pytest.raises(UsageError, match=f"^{message}constant or an overflow;"):
        run(tmp_path / "run", debug=True)
