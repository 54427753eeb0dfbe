"""Experiments from Python: what they return, tell and leave; how they start, fail and are stopped."""

import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import purejaxppo
from purejaxppo import A2C, Config, UsageError, resume_experiment, run_experiment
from purejaxppo.cli.run import main
from purejaxppo.experiment import loop, timetable
from purejaxppo.experiment.experiment import seed_list
from purejaxppo.experiment.failures import file_remedy
from purejaxppo.experiment.options import MeshShape
from purejaxppo.parallel import devices

CONFIG = Config(algo=A2C(), num_envs=2, num_steps=16, total_steps=200, num_minibatches=1, hidden_sizes=(8,))
OPTIONS = {"log_interval": 2, "final_episodes": 4}  # of 7 updates


class EnoughError(ConnectionError):
    """What a callback raises to end a run: an OSError, but none that a file of the run caused."""


@pytest.fixture(scope="module")
def programs():
    return {}


@pytest.fixture
def quick(monkeypatch, tmp_path, programs):
    """Compiled once; a chunk is one update; temporary files lie in a place of the test's own."""
    compile_program = loop.compile_program

    def once(runs):
        return (
            programs.setdefault(len(runs.rows), None)
            or programs.update({len(runs.rows): compile_program(runs)})
            or programs[len(runs.rows)]
        )

    monkeypatch.setattr(loop, "compile_program", once)
    monkeypatch.setattr(timetable, "CHUNK_SECONDS", 0.0)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


def test_a_result_has_metrics_summary_state_and_policy_and_nothing_stays_on_disk(quick, tmp_path, capsys):
    reports = []
    result = run_experiment(CONFIG, 3, first_seed=5, options=OPTIONS, on_chunk=reports.append)
    assert (result.seeds, result.out, capsys.readouterr()) == ([5, 6, 7], None, ("", ""))
    assert list((tmp_path / "temporary").iterdir()) == []

    assert result.metrics["update"].tolist() == [update for update in (2, 4, 6, 7) for _ in range(3)]
    assert result.metrics["seed"].tolist() == [5, 6, 7] * 4
    assert result.metrics["env_steps"].tolist() == (32 * result.metrics["update"]).tolist()
    assert np.isfinite(result.metrics["value_loss"]).all()
    assert [report.update for report in reports] == [1, 2, 3, 4, 5, 6, 7]
    assert (reports[2].num_updates, reports[2].env_steps, reports[2].rows) == (7, 96, {})
    for name, column in result.metrics.items():
        told = np.concatenate([report.rows[name] for report in reports if report.rows])
        np.testing.assert_allclose(told, column, rtol=1e-6)
    assert reports[-1].returns.shape == (3,)
    assert reports[-1].failed_seeds == result.summary["failed_seeds"] == []

    assert result.state.update.tolist() == [7, 7, 7]
    best = int(np.argmax(result.summary["eval_return"]["per_seed"]))
    assert (result.policy.seed, result.policy.env_steps) == (5 + best, 224)
    assert result.policy.act(np.zeros((2, 4), np.float32)).shape == (2,)
    kernel = jax.tree.leaves(result.state.policy)[-1]
    np.testing.assert_array_equal(jax.tree.leaves(result.policy.state.policy)[-1], kernel[best])

    summary = result.summary
    parts = sum(summary[f"{name}_seconds"] for name in ("training", "evaluation", "saving"))
    assert summary["run_seconds"] == pytest.approx(parts)
    assert summary["steps_per_second"] == pytest.approx(3 * 224 / summary["run_seconds"])
    assert summary["saving_seconds"] == 0 < summary["evaluation_seconds"]


def test_an_exception_of_the_callback_ends_the_run_once_it_is_saved(quick, tmp_path):
    def stop(report):
        if report.update == 3:
            raise EnoughError

    whole = run_experiment(CONFIG, 3, tmp_path / "whole", options=OPTIONS)
    assert whole.summary["saving_seconds"] > 0
    with pytest.raises(EnoughError):
        run_experiment(CONFIG, 3, tmp_path / "part", options=OPTIONS, on_chunk=stop)
    assert [path.name for path in (tmp_path / "part" / "checkpoints").iterdir()] == ["96"]
    again = resume_experiment(tmp_path / "part")
    for name, column in whole.metrics.items():
        np.testing.assert_array_equal(again.metrics[name], column)
    assert again.summary["eval_return"] == whole.summary["eval_return"]
    written = json.loads((tmp_path / "part" / "summary.json").read_text())
    assert written.pop("sha256")
    assert written == again.summary


def test_a_file_that_cannot_be_written_ends_the_run_in_one_line_and_it_can_go_on(quick, tmp_path, capsys):
    """A limit on the size of files stands in for a full disk, which only root may make."""
    out, limits = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    flags = (
        "--algo a2c --num-seeds 3 --num-envs 2 --num-steps 16 --total-steps 200 --num-minibatches 1 --hidden-sizes 8"
    )
    flags += f" --log-interval 2 --final-episodes 4 --checkpoint-interval 2 --quiet --out {out}"

    def write(*arguments, save=loop.Loop.save):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        save(*arguments)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop.Loop, "save", write)
            assert main(flags.split()) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.startswith("error: checkpoint ")
    assert error.endswith(f"no checkpoint was saved yet: purejaxppo run --resume {out}\n")
    assert error.count("\n") == 1
    assert not (out / "summary.json").exists()
    assert [path for path in out.rglob("*") if ".saving" in path.name] == []
    assert main(["--resume", str(out), "--quiet"]) == 0
    assert json.loads((out / "summary.json").read_text())["env_steps"] == 224


@pytest.mark.parametrize("existed", [True, False])
def test_a_start_that_fails_leaves_nothing(existed, tmp_path, monkeypatch):
    out = tmp_path / "deep" / "run"
    if existed:
        out.mkdir(parents=True)
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(UsageError, match="--wandb needs"):
        run_experiment(CONFIG, 1, out, options={"wandb": True})
    assert out.exists() == existed
    assert not existed or list(out.iterdir()) == []


@pytest.mark.parametrize(
    ("seeds", "first", "expected"), [(2, 5, [5, 6]), ([7, 3], 0, [7, 3]), (np.arange(2), 0, [0, 1]), (range(1), 9, [0])]
)
def test_seeds_are_a_number_or_a_list(seeds, first, expected):
    assert seed_list(seeds, first) == expected


@pytest.mark.parametrize("seeds", [0, 2**33, [], [1, 1], [-1], [2**32], [0.5], ["a"]])
def test_seeds_that_cannot_be_are_refused(seeds):
    with pytest.raises(UsageError, match=r"^(num_)?seeds = "):
        seed_list(seeds)


def test_a_mesh_is_parsed():
    assert MeshShape.parse("") == MeshShape(None, 1, 1)
    assert MeshShape.parse("net=2,run=3,env=4") == MeshShape(3, 4, 2)
    assert MeshShape.parse("net=2,run=3,env=4").devices_per_run == 8
    for wrong in ("run", "run=0", "run=1,run=2", "net=3", "rows=2", "run=-1", "env=1e3"):
        with pytest.raises(UsageError, match="mesh = "):
            MeshShape.parse(wrong)


def test_what_to_do_about_a_file_that_could_not_be_written(tmp_path):
    again = f"purejaxppo run --resume {tmp_path}"

    def way_out(error, directory=tmp_path, keep=True, logged=True, saved=3):
        runs = SimpleNamespace(resume_command=again, directory=tmp_path)
        one = SimpleNamespace(runs=runs, saved=saved, keep=keep, logged=logged)
        return loop.Loop.way_out(one, file_remedy(error, directory))

    full, cut = OSError("[Errno 28] No space left on device"), OSError("[Errno 27] File too large")
    wrapped = OSError("checkpoint cannot be written")
    wrapped.__cause__ = full
    assert way_out(full) == f"the last checkpoint is whole: make room, then {again}"
    assert way_out(wrapped, saved=0) == f"no checkpoint was saved yet: make room, then {again}"
    assert way_out(wrapped, saved=0, logged=False) == "nothing was saved yet: make room, then begin anew"
    assert "make room" in way_out(OSError("[Errno 122] Disk quota exceeded"))
    assert way_out(cut) == f"the last checkpoint is whole: {again}"
    moved = tmp_path / "moved"
    assert way_out(cut, moved).endswith(f"{moved} is not there any more; move it back, then {again}")
    assert way_out(cut, keep=False) == "begin anew: without out=DIR, nothing is kept"
    (tmp_path / "checkpoints" / "640").mkdir(parents=True)  # saved by another process
    assert way_out(full, saved=0) == f"the last checkpoint is whole: make room, then {again}"


def test_public_names_are_what_they_are_whatever_is_imported():
    """A submodule of the package would take the place of a function of its name."""
    names = set(purejaxppo.__all__)
    assert names & {module.name for module in pkgutil.iter_modules(purejaxppo.__path__)} == set()
    assert names <= set(dir(purejaxppo))
    for name in names - {"ALGORITHMS"}:
        assert callable(getattr(purejaxppo, name)), name
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        _ = purejaxppo.evalute


def control_groups(root, groups, meminfo="MemAvailable:   1000 kB\n", statm="0 0"):
    """A tree like / with `proc` and control groups: file under sys/fs/cgroup -> its text."""
    files = {"proc/meminfo": meminfo, "proc/self/statm": statm}
    for name, text in (files | groups).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2 = "sys/fs/cgroup/slurm/job"
CORES, MEMORY = 64, 1000 * 1024
GROUPS = {
    "none": ({}, CORES, MEMORY),
    "version 2": (
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            f"{V2}/memory.max": "700000\n",
            f"{V2}/memory.current": "300000\n",
            f"{V2}/memory.stat": "anon 5\ninactive_file 100000\n",
            f"{V2}/cpu.max": "250000 100000\n",
        },
        2,
        500_000,
    ),
    "version 2, the group above": (
        {
            "proc/self/cgroup": "0::/slurm/job\n",
            f"{V2}/memory.max": "max\n",
            f"{V2}/memory.current": "1\n",
            f"{V2}/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slurm/memory.max": "1000\n",
            "sys/fs/cgroup/slurm/memory.current": "2000\n",
            "sys/fs/cgroup/slurm/cpu.max": "50000 100000\n",
        },
        1,  # there is no less than one
        0,
    ),
    "version 1, in a container that sees its own group as the topmost": (
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "800000\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
        4,
        700_000,
    ),
    "version 1, without limits": (
        {
            "proc/self/cgroup": "4:memory:/\n3:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": "100000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        CORES,
        MEMORY,
    ),
}


@pytest.mark.parametrize("case", GROUPS)
def test_limits_of_control_groups_are_honoured(case, tmp_path, monkeypatch):
    groups, cores, memory = GROUPS[case]
    monkeypatch.setattr(devices, "_schedulable_cores", lambda: CORES)
    root = control_groups(tmp_path, groups)
    assert (devices.cpu_cores(root), devices.free_memory(root)) == (cores, memory)


def test_a_process_own_limit_of_memory_is_honoured(tmp_path, monkeypatch):
    page = os.sysconf("SC_PAGE_SIZE")
    limited = SimpleNamespace(
        RLIMIT_AS=0, RLIM_INFINITY=-1, getrlimit=lambda _: (50 * page, -1), getpagesize=lambda: page
    )
    monkeypatch.setattr(devices, "resource", limited)
    assert devices.free_memory(control_groups(tmp_path, {}, statm="20 10 5")) == 30 * page


def test_cores_that_come_too_late_are_a_warning(monkeypatch):
    monkeypatch.setattr(devices, "cpu_cores", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    with pytest.warns(UserWarning, match="came after JAX's first use and changes nothing: 1 of 4 CPU cores"):
        purejaxppo.use_cpu_cores()
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)  # somebody has chosen
    purejaxppo.use_cpu_cores()
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    purejaxppo.use_cpu_cores()


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'cuda'\nfor a reason")])
def test_a_platform_that_is_not_here_is_one_line(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(UsageError, match=r"^JAX_PLATFORMS = .* cannot be used here .*purejaxppo\[cuda\]") as caught:
        devices.choose_devices(None)
    assert "\n" not in str(caught.value)


def test_devices_that_are_none_and_logs_without_a_directory_are_refused():
    for wrong in ("a", 1.5, [0], []):
        with pytest.raises(UsageError, match=r"^devices = .* must be how many, or a list of some of jax.devices\(\)"):
            run_experiment(Config(), 1, devices=wrong)
    for name in ("tensorboard", "wandb"):
        with pytest.raises(UsageError, match=r"^tensorboard and wandb log into a run directory.*; pass out=DIR"):
            run_experiment(Config(), 1, options={name: True})


@pytest.mark.thorough
def test_the_second_signal_ends_the_process_even_where_an_environment_hangs(tmp_path):
    """While the first waits for the chunk to end. The environment's process ends, too."""
    flags = "--algo a2c --env gymnasium/host_environments:Clock-v0,fails_at=5,how=hang --num-envs 2 --num-steps 16"
    flags += " --num-minibatches 1 --hidden-sizes 8 --num-seeds 1 --total-steps 64"
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    command = [sys.executable, "-m", "purejaxppo.run", *flags.split(), "--out", str(tmp_path / "run")]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            while "training" not in process.stdout.readline():
                assert process.poll() is None
            workers = children(process.pid)
            time.sleep(3)  # until the environment hangs
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(2) == 128 + signal.SIGTERM
        finally:
            process.kill()
    until = time.monotonic() + 5
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("phase", ["compilation", "evaluate", "final"])
def test_signals_are_heard_while_devices_work(phase, quick, monkeypatch, tmp_path):
    """The first ends a compilation and the last evaluation; the second, the process amid an evaluation between."""
    freed, ended, done = threading.Event(), [], []

    def hang():
        for _ in range(2 if phase == "evaluate" else 1):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        done.append(freed.wait(10))

    def end(code):
        ended.append(code)
        freed.set()

    def compile_program(runs, compile_program=loop.compile_program):
        if phase == "compilation":
            hang()
        program = compile_program(runs)
        whole = getattr(program, phase, None)
        return program._replace(**{phase: lambda *given: hang() or whole(*given)} if whole else {})

    monkeypatch.setattr(loop, "compile_program", compile_program)
    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(KeyboardInterrupt) as stopped:
        run_experiment(CONFIG.replace(eval_interval=4), 3, tmp_path / "run", options=OPTIONS)
    assert stopped.value.code == 128 + signal.SIGTERM
    expected = ([128 + signal.SIGTERM], [True]) if phase == "evaluate" else ([], [])  # nothing waits for the others
    assert (ended, done) == expected
    freed.set()


def children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def test_as_many_files_may_be_open_as_the_system_allows():
    """A sweep's settings that are trained at once have one each, at least."""
    resource = pytest.importorskip("resource")
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < 1024 or sys.platform != "linux":
        pytest.skip("the limit is low, or not all of it")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, most))
        assert devices.most_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(most, 65_536)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, most))
