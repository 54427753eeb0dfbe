"""Workers that share a sweep's directory: who trains what, and that it comes to what one alone would get."""

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from purejaxppo import UsageError, preset
from purejaxppo.cli.sweep import main
from purejaxppo.errors import HostEnvironmentError
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.progress import ProgressLine, plain_console
from purejaxppo.experiment.signals import Stopped
from purejaxppo.rundir import lock as lock_module
from purejaxppo.rundir.lock import CLAIM, lock, lock_shared
from purejaxppo.sweeps import execution, workers
from purejaxppo.sweeps.definition import begin_sweep, read_sweep
from purejaxppo.sweeps.execution import plan_sweep, run_sweep
from purejaxppo.sweeps.results import write_results
from purejaxppo.sweeps.workers import Worker, divided, write_plan

TINY = {"total_steps": 64, "num_envs": 2, "num_steps": 16, "num_epochs": 1, "num_minibatches": 1, "hidden_sizes": (8,)}
CONFIG = preset("a2c", "CartPole-v1", **TINY)
GAMMAS = (0.9, 0.95, 0.98, 0.985, 0.99, 1.0)
FLAGS = [
    *("--algo a2c --env CartPole-v1 --num-seeds 2 --final-episodes 2 --log-interval 1").split(),
    *(word for name, x in TINY.items() for word in (f"--{name}", str(x).strip("(,)"))),
    *("--at-once 2 --devices 1 --quiet --grid gamma=0.9,0.95,0.98,0.985,0.99,1.0").split(),
]
PROGRAMS = {}  # all sweeps here share one
QUIET = ProgressLine(plain_console(), quiet=True)


@pytest.fixture
def trained(monkeypatch):
    """How often each batch was trained. Its program is compiled once in all, and waiting takes milliseconds."""
    compile_program, train, count = execution.compile_program, execution.Loop.run, Counter()
    compiling = threading.Lock()

    def compile_once(runs):
        with compiling:
            if not PROGRAMS:
                PROGRAMS[runs.size] = compile_program(runs)
        return PROGRAMS[runs.size]

    def counted(self, *arguments):
        count[tuple(record.config.gamma for record in self.runs.records)] += 1
        return train(self, *arguments)

    monkeypatch.setattr(execution, "compile_program", compile_once)
    monkeypatch.setattr(execution.Loop, "run", counted)
    monkeypatch.setattr("purejaxppo.experiment.run_batch.learning_curve", lambda *figure: None)
    monkeypatch.setattr("purejaxppo.sweeps.results.draw", lambda *figure: None)
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(lock_module, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(lock_module, "DEAD_SECONDS", 0.5)
    return count


def begun(out, at_once=2, gammas=GAMMAS):
    """A sweep in a directory, and its devices."""
    options = HostOptions(final_episodes=2, log_interval=1)
    settings = [{"gamma": gamma} for gamma in gammas]
    return begin_sweep(CONFIG, settings, [0, 1], out, jax.devices()[:1], options, at_once)


def joined(out):
    """What one worker comes to."""
    sweep, devices = begun(out)
    if not write_plan(sweep):
        sweep, devices = read_sweep(out, QUIET)
    with lock_shared(out):
        return Worker(sweep, devices, QUIET).work()


@pytest.mark.thorough
def test_workers_share_a_sweep_and_take_over_what_a_dead_one_left(tmp_path, trained):
    """Of one batch another machine's worker has written a claim, which it does not renew; all is trained once."""
    alone, devices = begun(tmp_path / "alone")
    alone.record.directory.mkdir()
    alone.write()
    summaries, _ = run_sweep(alone, plan_sweep(alone, devices, QUIET), devices, QUIET)
    write_results(alone, summaries)
    assert {*trained.values()} == {1}
    trained.clear()

    out = tmp_path / "shared"
    sweep, _ = begun(out)
    assert write_plan(sweep)
    assert not write_plan(sweep)  # a second one finds it
    dead = sweep.batch_directory([2, 3])
    dead.mkdir(parents=True)
    (dead / CLAIM).write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "a", "renewed": 3}))
    with ThreadPoolExecutor() as pool:
        came = [*pool.map(joined, [out, out, out])]
    assert trained == {GAMMAS[:2]: 1, GAMMAS[2:4]: 1, GAMMAS[4:]: 1}
    assert all(failed == {} and len(found) == 6 for found, failed in came)
    assert (out / "results.csv").read_bytes() == (tmp_path / "alone" / "results.csv").read_bytes()
    for gamma in GAMMAS:
        one, other = (tmp_path / name / f"gamma={gamma}" / "metrics.csv" for name in ("alone", "shared"))
        assert one.read_bytes() == other.read_bytes()
    assert not (out / ".unfinished").exists()
    joined(out)  # too late: nothing is left
    assert {*trained.values()} == {1}


@pytest.mark.thorough
def test_a_worker_that_is_stopped_gives_its_batch_back(tmp_path, trained, monkeypatch):
    """And a process that goes on with the whole sweep alone is refused meanwhile."""
    out, save, refused = tmp_path / "it", execution.Loop.save, []

    def stopped_once_it_has_saved(self):
        save(self)
        if not refused:
            with pytest.raises(UsageError, match="being written by another process") as error, lock(out):
                pass
            refused.append(error)
            raise Stopped(signal.SIGTERM, "saved")

    monkeypatch.setattr(execution.Loop, "save", stopped_once_it_has_saved)
    with pytest.raises(Stopped, match=r"back: other workers, or purejaxppo sweep --join .*it, go on with it") as stop:
        joined(out)
    assert stop.value.code == 128 + signal.SIGTERM
    assert [*out.glob(".unfinished/*/checkpoints/64")]
    assert not [*out.rglob(CLAIM)]
    _, failed = joined(out)
    assert not failed
    assert sorted(trained.values()) == [1, 1, 2]


@pytest.mark.thorough
def test_settings_that_fail_are_tried_once_and_again_by_who_joins_later(tmp_path, trained, monkeypatch, capsys):
    """Two settings to a batch: they fail together, and then one alone."""
    out, write = tmp_path / "it", execution.RunBatch.write_outcome

    def write_or_fail(self, i, *arguments):
        if any(record.config.gamma == 0.95 for record in self.records):
            raise HostEnvironmentError("the spring is broken")
        return write(self, i, *arguments)

    monkeypatch.setattr(execution.RunBatch, "write_outcome", write_or_fail)
    assert main([*FLAGS, "--join", str(out)]) == 1
    assert "1 of 6 settings have failed, gamma=0.95 first (the spring is broken)" in capsys.readouterr().err
    assert trained == {(0.9, 0.95): 1, (0.9,): 1, (0.95,): 1, GAMMAS[2:4]: 1, GAMMAS[4:]: 1}
    before = (out / "results.csv").read_text().splitlines()
    assert [line.split(",")[2] == "" for line in before[1:]] == [False, True, *[False] * 4]
    monkeypatch.setattr(execution.RunBatch, "write_outcome", write)
    assert main(["--join", str(out), "--quiet"]) == 0
    after = (out / "results.csv").read_text().splitlines()
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, *[True] * 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma", "0.5"], "holds a run with gamma = 0.99, not 0.5"),
        (["--grid", "max_grad_norm=1"], "holds a sweep of other settings"),
        (["--at-once", "3"], "at_once = 3 cannot change"),
        (["--at-once", "0"], "at_once = 0"),
        (["--out", "there"], "leave out --out"),
        (["--resume-or-start"], "--resume-or-start"),
    ],
)
def test_what_cannot_be_joined_is_refused_in_one_line(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(execution, "compile_program", None)
    sweep, _ = begun(tmp_path / "it")
    write_plan(sweep)
    assert main([*FLAGS, *flags, "--join", str(tmp_path / "it")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.fixture
def slurm(monkeypatch):
    """As the second of three tasks of `srun`."""
    variables = {"JOB_ID": "7", "STEP_NODELIST": "127.0.0.1", "NTASKS": "3", "LOCALID": "1", "PROCID": "1"}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    before = jax.config.values["jax_cuda_visible_devices"]
    yield
    jax.config.update("jax_cuda_visible_devices", before)


@pytest.mark.thorough
def test_the_tasks_of_a_scheduler_are_workers_of_one_sweep(slurm, tmp_path, trained, capsys):
    out = tmp_path / "it"
    sweep, _ = begun(out)
    write_plan(sweep)
    first = sweep.batch_directory([0, 1])
    first.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:  # another task has the first batch, and then goes
        with lock_module.lock_free(first, {}) as mine:
            assert mine
            worker = pool.submit(main, [*FLAGS, "--out", str(out), "--resume-or-start"])
            while sum(trained.values()) < 2 and not worker.done():
                time.sleep(0.01)
        assert worker.result() == 0
    assert trained == {GAMMAS[:2]: 1, GAMMAS[2:4]: 1, GAMMAS[4:]: 1}
    assert len((out / "results.csv").read_text().splitlines()) == 7
    assert jax.config.values["jax_cuda_visible_devices"] == "1"
    assert main(["--resume", str(out), "--quiet"]) == 0  # the job is queued again, when all is done
    assert sum(trained.values()) == 3
    assert main(FLAGS) == 2
    assert "3 processes share a sweep's directory, and there is none; pass --out DIR." in capsys.readouterr().err
    assert main([*FLAGS, "--distributed", "off", "--out", str(out)]) == 2  # by itself, it begins a sweep of its own
    assert "already holds files" in capsys.readouterr().err


def test_several_processes_by_hand_are_workers_of_one_sweep(tmp_path, trained, capsys):
    out, place = tmp_path / "it", "coordinator=127.0.0.1:1,processes=3,process={}"  # which nobody needs to meet at
    for i in (1, 0):
        assert main([*FLAGS, "--out", str(out), "--resume-or-start", "--distributed", place.format(i)]) == 0
    assert trained == {GAMMAS[:2]: 1, GAMMAS[2:4]: 1, GAMMAS[4:]: 1}
    assert main(["--resume", str(out), "--quiet", "--distributed", place.format(2)]) == 0
    assert main([*FLAGS, "--distributed", "coordinator=h"]) == 2
    assert "processes and process missing" in capsys.readouterr().err


def test_a_plan_is_not_written_over_what_is_there(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="already holds files"):
        write_plan(begun(tmp_path)[0])
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_sweep_is_divided_alike_by_all(tmp_path):
    sweep, _ = begun(tmp_path, at_once=None, gammas=[i / 100 for i in range(1, 35)])
    assert divided(sweep).at_once == 2
    assert len(Worker(divided(sweep), jax.devices()[:1], QUIET).batches) == 17


@pytest.mark.slow
def test_processes_that_are_killed_and_stopped(tmp_path):
    """Three workers start with the same command at once; one is killed, one is stopped, a fourth comes late."""

    def start(out):
        command = [
            sys.executable,
            "-m",
            "purejaxppo",
            "sweep",
            *FLAGS,
            "--total-steps",
            "64000",
            "--checkpoint-interval",
            "200",
            "--join",
            str(out),
        ]
        with (tmp_path / "log").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    assert start(tmp_path / "alone").wait(300) == 0
    out = tmp_path / "shared"
    first = [start(out) for _ in range(3)]
    while not [*out.glob(".unfinished/*/checkpoints/*")]:
        time.sleep(0.05)
    first[0].send_signal(signal.SIGKILL)
    first[1].send_signal(signal.SIGTERM)
    late = start(out)
    assert [process.wait(300) for process in (*first, late)] == [-signal.SIGKILL, 143, 0, 0]
    assert (out / "results.csv").read_bytes() == (tmp_path / "alone" / "results.csv").read_bytes()
