"""How it scales: measured here on 1, 2, 4 and 8 devices, and by a cost model fitted to that, on many more.

    python benchmarks/scaling.py            # all parts, about 15 minutes on 2 cores; --only PART for one

Each measurement is a process of its own, because a process has one number of devices: `cores` pins it to so many.
Sides that are compared alternate, and medians count. The results go to benchmarks/results/scaling.json; the model is
explained, and judged, in benchmarks/SCALING.md.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "scaling.json"
PARTS = ("devices", "sweep", "curves", "memory", "beyond", "host", "model")


def worker(job: dict[str, Any]) -> dict[str, Any]:
    """Compile one program and time it; in a process with `devices` devices, on some cores."""
    os.sched_setaffinity(0, job["cores"])
    import jax

    jax.config.update("jax_num_cpu_devices", job["devices"])
    from purejaxppo.experiment.program import device_bytes
    from purejaxppo.parallel.runs import best_vmap_size, over_runs
    from purejaxppo.presets import preset, with_settings
    from purejaxppo.train import make_train

    config = preset(job["algo"], "CartPole-v1", **job.get("settings", {}))
    config = config.replace(total_steps=job["updates"] * config.num_envs * config.num_steps)

    def train(key: jax.Array, own: dict[str, jax.Array]) -> Any:
        state, metrics = make_train(with_settings(config, own))(key)
        return state.policy, metrics["episode_return"]

    devices = jax.devices()
    together = best_vmap_size(config.on_host, devices) if job.get("swept") else None
    program = over_runs(train, devices, env_shards=job.get("env", 1), vmap_size=together)
    keys = jax.random.split(jax.random.key(0), job["runs"])
    own = {name: np.geomspace(low, high, job["runs"], dtype=np.float32) for name, low, high in job.get("swept", ())}
    compiled = program.lower(keys, own).compile()
    run = partial(compiled, keys, own)
    before = resident()
    jax.block_until_ready(run())
    peak, seconds = peak_resident(), []
    for _ in range(job.get("repeats", 1)):
        began = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "steps_per_second": job["runs"] * config.env_steps / statistics.median(seconds),
        "forecast_bytes": device_bytes(compiled) * len(devices),
        "measured_bytes": peak - before,
        **collectives(compiled.as_text(), config),
    }


def resident() -> int:
    """Resident memory now. The mark of its peak begins anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_resident() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def collectives(text: str, config: Any) -> dict[str, Any]:
    """Collectives and their bytes per update, as the update rules have them; in the text, loops count once."""
    import jax

    from purejaxppo.train import init

    state = jax.eval_shape(lambda key: init(config, key), jax.random.key(0))
    policy, critic = (sum(int(np.prod(x.shape)) for x in jax.tree.leaves(x)) for x in (state.policy, state.critic))
    passes = config.num_epochs * config.num_minibatches
    algo = config.algo
    moved = 1 + algo.cg_iterations if hasattr(algo, "cg_iterations") else passes  # the gradient, and Fisher products
    few = 7  # moments of advantages and values, line search, sums of episodes, entropy, health: a few numbers each
    if getattr(algo, "normalize_advantages", None) == "minibatch":
        few += 2 * config.num_epochs  # moments of its minibatches' advantages
    return {
        "collectives_in_text": text.count(" all-reduce(") + text.count(" all-gather("),
        "collectives": moved + passes + few,
        "collective_bytes": 4 * (moved * policy + passes * critic),
        "parameters": [policy, critic],
    }


def measure(job: dict[str, Any], cores: int = 2) -> dict[str, Any]:
    """A worker's figures; pinned to the first `cores` cores."""
    return measure_beside(job, [sorted(os.sched_getaffinity(0))[:cores]])[0]


def measure_beside(job: dict[str, Any], cores: list[list[int]]) -> list[dict[str, Any]]:
    """The same of several workers at the same time, each pinned to cores of its own."""
    commands = [[sys.executable, __file__, "--worker", json.dumps(job | {"cores": own})] for own in cores]
    begun = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate()[0] for process in begun]
    if failed := [process for process in begun if process.returncode]:
        raise subprocess.CalledProcessError(failed[0].returncode, failed[0].args)
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def devices(rounds: int) -> dict[str, Any]:
    """16 seeds on one device, which has one core, against two devices and both cores.

    And against two processes of 8 seeds, a core each, that know nothing of each other: what the machine itself allows.
    """
    found: dict[str, Any] = {}
    for algo, updates in (("trpo", 10), ("ppo", 150)):
        job = {"algo": algo, "runs": 16, "updates": updates, "repeats": 3}
        apart = job | {"runs": 8, "devices": 1}
        cores = [[core] for core in sorted(os.sched_getaffinity(0))[:2]]
        sides = [
            [
                *(measure(job | {"devices": n}, cores=n)["seconds"] for n in (1, 2)),
                max(side["seconds"] for side in measure_beside(apart, cores)),
            ]
            for _ in range(rounds)
        ]
        ratio, limit = (statistics.median(side[0] / side[i] for side in sides) for i in (1, 2))
        found[algo] = {"seconds": sides, "ratio": ratio, "two_processes": limit}
        print(algo, f"one device / two: {ratio:.2f}; two processes: {limit:.2f}", flush=True)
    return found


def sweep(rounds: int) -> dict[str, Any]:
    """64 settings × 8 seeds of TRPO in one program, against 16 seeds of one setting: environment steps per second."""
    swept = [("max_kl", 0.003, 0.03), ("gamma", 0.98, 0.995)]
    few = {"algo": "trpo", "devices": 2, "runs": 16, "updates": 20, "repeats": 2}
    many = few | {"runs": 512, "updates": 2, "swept": swept, "repeats": 1}
    sides = [[measure(job)["steps_per_second"] for job in (few, many)] for _ in range(rounds)]
    ratio = statistics.median(many / few for few, many in sides)
    print(f"512 runs / 16 runs: {ratio:.2f}", flush=True)
    return {"steps_per_second": sides, "ratio": ratio}


def curves() -> dict[str, Any]:
    """Four settings of TRPO, 16 seeds each, in one sweep, and each setting in a program of its own, to the end.

    Rounding makes other episodes of the two after a while, so they agree as two draws of the seeds would: `distance` is
    the greatest difference between the two means over seeds, at any update, in standard errors of that difference.
    """
    import jax

    import purejaxppo
    from purejaxppo.presets import preset, with_settings

    config, keys = preset("trpo", "CartPole-v1"), jax.random.split(jax.random.key(0), 16)
    axes = {"max_kl": [0.003, 0.01], "gamma": [0.98, 0.99]}
    table = purejaxppo.sweep(config, axes, keys)
    found: dict[str, Any] = {"seeds": len(keys), "updates": config.num_updates, "settings": []}
    columns = ("episode_return", "kl", "value_loss")
    together = {name: table[name].reshape(-1, len(keys), config.num_updates) for name in columns}
    for i, (max_kl, gamma) in enumerate((x, y) for x in axes["max_kl"] for y in axes["gamma"]):
        own = with_settings(config, {"max_kl": max_kl, "gamma": gamma})
        metrics = jax.jit(jax.vmap(purejaxppo.make_train(own)))(keys)[1]
        row: dict[str, Any] = {"max_kl": max_kl, "gamma": gamma, "distance": {}, "first_update": {}, "last_return": []}
        for name in columns:
            sides = [x[:, 1:].astype(np.float64) for x in (together[name][i], np.asarray(metrics[name]))]
            error = np.sqrt(sum(np.nanvar(x, axis=0, ddof=1) / len(keys) for x in sides))
            difference = np.abs(np.subtract(*(np.nanmean(x, axis=0) for x in sides)))
            row["distance"][name] = float(np.max(difference / np.maximum(error, 1e-9)))
            first = together[name][i][:, 0], np.asarray(metrics[name])[:, 0]
            row["first_update"][name] = float(np.max(np.abs(first[0] - first[1]) / np.maximum(np.abs(first[1]), 1e-6)))
            if name == "episode_return":
                row["last_return"] = [float(x[:, -5:].mean()) for x in sides]
        found["settings"].append(row)
        print(row, flush=True)
    return found


def memory() -> list[dict[str, Any]]:
    """What the compiled programs are said to need, against the growth of resident memory while they run."""
    found = []
    for algo, runs, num_envs in (("trpo", 16, 64), ("ppo", 16, 256), ("trpo", 128, 8)):
        settings = {"num_envs": num_envs, "num_steps": 256, "num_minibatches": 16}
        job = {"algo": algo, "devices": 2, "runs": runs, "updates": 2, "settings": settings}
        job |= {"swept": [("gamma", 0.98, 0.99)]} if runs == 128 else {}
        row = measure(job) | {"job": job}
        found.append(row)
        print(
            algo, runs, "runs: forecast / measured", f"{row['forecast_bytes'] / row['measured_bytes']:.2f}", flush=True
        )
    return found


def beyond() -> dict[str, Any]:
    """A sweep whose 32 runs, 3 million samples each, would take more memory than there is if all were made at once."""
    import jax

    from purejaxppo.parallel.devices import available_bytes

    work = Path(tempfile.mkdtemp(prefix="scaling-"))
    flags = "--algo a2c --num-envs 24576 --num-steps 128 --total-steps 1 --num-epochs 1 --num-minibatches 1 "
    flags += "--num-seeds 1 --final-episodes 10 --grid gamma=" + ",".join(
        f"{x:.3f}" for x in np.linspace(0.9, 0.99, 32)
    )
    command = [sys.executable, "-m", "purejaxppo", "sweep", *flags.split(), "--out", str(work / "sweep")]
    available, began = available_bytes(jax.devices()[:1]), time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | {"COLUMNS": "200"})
    found = {
        "exit_code": done.returncode,
        "available_bytes": available,
        "peak_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "plan": next((line for line in done.stdout.splitlines() if line.startswith("│ all")), ""),
        "finished": len(list(work.glob("sweep/*/summary.json"))),
        "seconds": time.perf_counter() - began,
    }
    shutil.rmtree(work)
    print(found, flush=True)
    return found


def model() -> dict[str, Any]:
    """Seconds per update on meshes of 1, 2, 4 and 8 devices, and t = c · samples + l · lots + n · (a + b · bytes)."""
    points = []
    for algo, minibatches in (("trpo", 16), ("ppo", 4)):
        for runs, env, num_envs in (
            *((r, 1, 8) for r in (1, 4, 16)),
            *((1, e, n) for e in (2, 4, 8) for n in (8, 32)),
            (1, 1, 32),
        ):
            count = min(runs, 8) * env
            settings = {"num_envs": num_envs, "num_steps": 256, "num_minibatches": minibatches}
            job = {"algo": algo, "runs": runs, "env": env, "devices": count, "updates": 10, "settings": settings}
            row = measure(job | {"repeats": 3})
            row |= {"job": job, "seconds_per_update": row["seconds"] / job["updates"]}
            points.append(row)
            print(algo, f"run={count // env},env={env}", f"{1000 * row['seconds_per_update']:.1f} ms", flush=True)
    return {
        "points": points,
        "fit": {algo: fit([p for p in points if p["job"]["algo"] == algo]) for algo in ("trpo", "ppo")},
    }


def fit(points: list[dict[str, Any]], cores: int = 2) -> dict[str, Any]:
    """Least squares of the relative error, non-negative: what a sample, an update and a collective cost.

    A core that holds d devices does their work in turn; the collectives of a run wait for all who share it.
    """
    from scipy.optimize import nnls

    rows, seconds = [], []
    for point in points:
        job = point["job"]
        in_turn = max(1, job["devices"] / cores)  # devices of one core
        each = job["runs"] * job["env"] / job["devices"]  # runs on one device
        samples = in_turn * each * job["settings"]["num_envs"] * job["settings"]["num_steps"] / job["env"]
        talks = np.log2(job["env"]) * in_turn  # a tree of so many steps
        rows.append([samples, in_turn, talks * point["collectives"], talks * point["collective_bytes"]])
        seconds.append(point["seconds_per_update"])
    matrix, y = np.asarray(rows), np.asarray(seconds)
    scale = matrix.max(axis=0)
    solution, _ = nnls(matrix / scale / y[:, None], np.ones(len(y)))
    solution /= scale
    errors = np.abs(matrix @ solution / y - 1)
    names = ("seconds_per_sample", "seconds_per_update", "seconds_per_collective", "seconds_per_byte")
    return dict(zip(names, solution.tolist(), strict=True)) | {
        "median_error": float(np.median(errors)),
        "largest_error": float(errors.max()),
    }


def host() -> dict[str, float]:
    """What one process does for all runs: rows of the log, and checkpoints."""
    import jax

    from purejaxppo.presets import preset
    from purejaxppo.rundir import checkpoint
    from purejaxppo.rundir.metrics import MetricsFile
    from purejaxppo.train import init

    runs, work = 5000, Path(tempfile.mkdtemp(prefix="scaling-"))
    rng = np.random.default_rng(0)
    row = {f"metric{i}": rng.normal(size=runs) for i in range(20)}
    log = MetricsFile(work / "metrics.csv", list(range(runs)))
    began = time.perf_counter()
    log.write(1, 1, row)
    row_seconds = (time.perf_counter() - began) / runs
    log.close()
    state = jax.eval_shape(partial(init, preset("trpo", "CartPole-v1")), jax.random.key(0))
    state_bytes = sum(x.size * getattr(x.dtype, "itemsize", 8) for x in jax.tree.leaves(state))
    states = {"state": rng.normal(size=(1000, state_bytes // 8))}
    began = time.perf_counter()
    checkpoint.save(work / "1", states, {})
    found = {
        "row_seconds": row_seconds,
        "row_bytes": (work / "metrics.csv").stat().st_size / runs,
        "state_bytes": state_bytes,
        "checkpoint_bytes_per_second": states["state"].nbytes / (time.perf_counter() - began),
    }
    shutil.rmtree(work)
    print(found, flush=True)
    return found


def extrapolate(results: dict[str, Any]) -> str:
    """The tables of SCALING.md: what the fitted model says of more devices than there are here."""
    samples, lines = (
        2048,
        ["| seeds | devices | TRPO, s per update | PPO | states, GB | checkpoint, min | 100 rows, min |"],
    )
    lines += ["|" + "---|" * 7]
    machine = results["host"]
    for runs, count in ((16, 2), (512, 2), (10_000, 64), (1_000_000, 4096)):
        fits = [results["model"]["fit"][algo] for algo in ("trpo", "ppo")]
        times = [x["seconds_per_update"] + x["seconds_per_sample"] * samples * -(-runs // count) for x in fits]
        states = runs * machine["state_bytes"]
        shown = (*(f"{t:.2g}" for t in times), f"{states / 1e9:.2g}")
        shown += (
            f"{states / machine['checkpoint_bytes_per_second'] / 60:.2g}",
            f"{100 * runs * machine['row_seconds'] / 60:.2g}",
        )
        lines.append("| " + " | ".join((f"{runs:,}", f"{count:,}", *shown)) + " |")
    lines += [
        "",
        "| devices of one run | "
        + " | ".join(f"{a}, {b} environments" for a in ("TRPO", "PPO") for b in (64, 4096))
        + " |",
    ]
    lines += ["|" + "---|" * 5]
    for count in (1, 2, 4, 8, 64, 512, 4096):
        cells = []
        for algo in ("trpo", "ppo"):
            x = results["model"]["fit"][algo]
            point = next(p for p in results["model"]["points"] if p["job"]["algo"] == algo)
            talk = (
                point["collectives"] * x["seconds_per_collective"] + point["collective_bytes"] * x["seconds_per_byte"]
            )
            for num_envs in (64, 4096):
                alone = x["seconds_per_update"] + x["seconds_per_sample"] * 256 * num_envs
                spread = x["seconds_per_update"] + x["seconds_per_sample"] * 256 * num_envs / count
                cells.append(f"{alone / (spread + np.log2(count) * talk):.3g}×" if count <= num_envs else "–")
        lines.append(f"| {count:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def hosts(machine: dict[str, float], ends: dict[str, Any], runs: int = 256) -> str:
    """Of many processes with so many runs each, what the end of a chunk costs: e = g + h · processes, fitted.

    `ends` is measured by hosts.py, on so few cores that process 0 waits for the others to be given one. With cores of
    their own, what process 0 does remains. A chunk takes two seconds. Log and checkpoint are each process's own.
    """
    counts = np.asarray([int(count) for count in ends], float)
    seconds = np.asarray([found["cpu"] for found in ends.values()])
    # the error relative to what was measured, as small counts would not matter otherwise
    design = np.stack([np.ones_like(counts), counts], axis=1) / seconds[:, None]
    (fixed, each), *_ = np.linalg.lstsq(design, np.ones_like(seconds), rcond=None)
    row, checkpoint = (
        runs * machine["row_seconds"],
        runs * machine["state_bytes"] / machine["checkpoint_bytes_per_second"],
    )
    lines = [f"e = {1000 * fixed:.2g} ms + {1000 * each:.2g} ms · processes", ""]
    lines += ["| processes | runs | end of a chunk, ms | of two seconds | a row of each log, ms | each checkpoint, s |"]
    lines += ["|" + "---|" * 6]
    for count in (2, 8, 64, 1000):
        end = fixed + each * count
        shown = f"{1000 * end:.0f}", f"{end / 2:.1%}", f"{1000 * row:.2g}", f"{checkpoint:.2g}"
        lines.append("| " + " | ".join((f"{count:,}", f"{count * runs:,}", *shown)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker:
        print(json.dumps(worker(json.loads(chosen.worker))))
        sys.exit()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in PARTS:
        if chosen.only in (None, part):
            results[part] = globals()[part](*([chosen.rounds] if part in ("devices", "sweep") else []))
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    if {"host", "model"} <= results.keys():
        print(extrapolate(results))
    if "host" in results and (ends := json.loads(RESULTS.with_name("hosts.json").read_text()).get("ends")):
        print(hosts(results["host"], ends))
