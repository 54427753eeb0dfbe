"""What a GPU makes of it, in one command that ends within ten minutes.

    python benchmarks/gpu.py                      # on a machine with a GPU
    python benchmarks/gpu.py --purejaxrl DIR      # beside purejaxrl, from a checkout, at the same shapes
    python benchmarks/gpu.py --reference          # on a CPU: the learning curves that a GPU's are held against
    python benchmarks/gpu.py --quick              # anywhere: does everything run?

Each case runs in a process of its own: compile, train once to load kernels, train once for the clock. Its learning
curve must be that of the same settings on a CPU (`results/gpu_reference.json`): at ten points of training the means
over seeds may differ by four standard errors. Results are written after each case, to `results/gpu.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results"
WHILE = "--xla_gpu_enable_command_buffer=+WHILE"  # whole loops as one launch
POINTS = 10  # of a learning curve


class Case(NamedTuple):
    algo: str
    env: str
    seeds: int
    envs: int
    updates: int
    reference_seeds: int  # that a CPU trains, in a minute or two
    flags: str = ""  # of XLA
    target: float = 0.0  # steps per second

    @property
    def name(self) -> str:
        return f"{self.env}/{self.algo}/{self.seeds}x{self.envs}" + (f" {self.flags}" if self.flags else "")


CASES = [
    Case("ppo", "CartPole-v1", 2048, 4, 200, 16, target=50e6),
    Case("ppo", "CartPole-v1", 2048, 4, 200, 16, flags=WHILE),
    Case("ppo", "CartPole-v1", 1, 4096, 10, 3),
    Case("trpo", "CartPole-v1", 512, 2, 50, 16),
    Case("ppo", "Breakout-MinAtar", 300, 64, 123, 2, target=300 * 1e6 / 30),
]


def train(case: Case, seeds: int) -> dict[str, Any]:
    """Compile, train twice; steps per second of the second time, and the curve."""
    import jax

    from purejaxppo.parallel.devices import use_cpu_cores
    from purejaxppo.parallel.runs import over_runs
    from purejaxppo.presets import preset
    from purejaxppo.train import make_train

    use_cpu_cores()
    num_steps = 1024 if case.algo == "trpo" else 128
    config = preset(
        case.algo, case.env, num_envs=case.envs, num_steps=num_steps, total_steps=case.updates * case.envs * num_steps
    )
    devices = jax.devices()
    devices = devices[: max(n for n in range(1, len(devices) + 1) if seeds % n == 0)]
    keys = jax.random.split(jax.random.key(0), seeds)
    began = time.perf_counter()
    program = over_runs(make_train(config), devices).lower(keys).compile()
    compiled = time.perf_counter() - began
    jax.block_until_ready(program(keys))
    began = time.perf_counter()
    _, metrics = jax.block_until_ready(program(keys))
    seconds = time.perf_counter() - began
    returns, episodes = (np.asarray(metrics[name], np.float64) for name in ("episode_return", "episodes"))
    parts = [
        np.nansum(r * e, axis=1) / np.maximum(e.sum(axis=1), 1)
        for r, e in zip(np.array_split(returns, POINTS, 1), np.array_split(episodes, POINTS, 1), strict=True)
    ]
    steps = seeds * config.env_steps
    return {
        "case": case.name,
        "device": devices[0].device_kind,
        "jax": jax.__version__,
        "seeds": seeds,
        "steps": steps,
        "compile_seconds": compiled,
        "run_seconds": seconds,
        "steps_per_second": steps / seconds,
        "peak_bytes": (devices[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "curve_mean": [float(x.mean()) for x in parts],
        "curve_std": [float(x.std(ddof=1)) if seeds > 1 else None for x in parts],
    }


def deviation(found: dict[str, Any], reference: dict[str, Any]) -> float:
    """The largest distance of two curves, in standard errors of the difference of their means."""
    distances = []
    for mean, std, expected, spread in zip(
        found["curve_mean"], found["curve_std"], reference["curve_mean"], reference["curve_std"], strict=True
    ):
        own = spread if std is None else std
        error = np.sqrt(own**2 / found["seeds"] + spread**2 / reference["seeds"])
        distances.append(abs(mean - expected) / max(error, 1e-2 * abs(expected)))
    return float(max(distances))


def in_a_process(arguments: list[str], flags: str, limit: float) -> dict[str, Any]:
    """The line of JSON that this script, or a peer's, prints last; or why there is none."""
    env = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()}
    try:
        done = subprocess.run(
            [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {limit:.0f} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return {"error": (done.stderr.strip().splitlines() or ["no output"])[-1][:300]}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def report(row: dict[str, Any], case: Case | None = None) -> str:
    if "error" in row:
        return f"{row['case']}: {row['error']}"
    text = f"{row['case']}: {row['steps_per_second'] / 1e6:,.2f}M steps/s on {row.get('device', '?')}"
    if case and case.target:
        text += f" (target {case.target / 1e6:,.0f}M)"
    if "standard_errors" in row:
        verdict = "learns as on a CPU" if row["learns_as_on_cpu"] else "DOES NOT LEARN AS ON A CPU"
        text += f"; {verdict} ({row['standard_errors']:.1f} standard errors)"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--purejaxrl", type=Path)
    parser.add_argument("--minutes", type=float, default=9.5, help="no case is begun that would end later")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    cases = [case._replace(seeds=min(case.seeds, 4), envs=4, updates=20) if chosen.quick else case for case in CASES]
    if chosen.case is not None:
        case = cases[chosen.case]
        print(json.dumps(train(case, case.reference_seeds if chosen.reference else case.seeds)))
        return 0

    stored = RESULTS / "gpu_reference.json"
    references = {row["case"]: row for row in json.loads(stored.read_text())} if stored.exists() else {}
    out, deadline = stored if chosen.reference else chosen.out, time.monotonic() + 60 * chosen.minutes
    mode = [f"--{name}" for name in ("reference", "quick") if getattr(chosen, name)]
    rows: list[dict[str, Any]] = []

    def keep(row: dict[str, Any], case: Case | None = None) -> None:
        rows.append(row)
        print(report(row, case), flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")

    for i, case in enumerate(cases):
        left = deadline - time.monotonic()
        if (chosen.reference and case.flags) or (not chosen.reference and left < 30):
            continue
        limit = 3600.0 if chosen.reference else left
        row = {"case": case.name} | in_a_process([__file__, "--case", str(i), *mode], case.flags, limit)
        known = references.get(case._replace(flags="").name)
        if known and "error" not in row and not chosen.reference:
            row["standard_errors"] = deviation(row, known)
            row["learns_as_on_cpu"] = row["standard_errors"] < 4.0
        keep(row, case)
        if chosen.purejaxrl and case.algo == "ppo" and not case.flags and deadline - time.monotonic() > 30:
            peer = [str(Path(__file__).parent / "peers" / "purejaxrl_ppo.py"), "--env", case.env, "--algo", "ppo"]
            peer += ["--seeds", str(case.seeds), "--envs", str(case.envs)]
            peer += ["--steps", str(case.updates * case.envs * 128), "--checkout", str(chosen.purejaxrl.resolve())]
            other = {"case": f"{case.name} purejaxrl"} | in_a_process(peer, "", deadline - time.monotonic())
            if "error" not in other | row:
                other["ours_over_peer"] = row["steps_per_second"] / other["steps_per_second"]
            keep(other)
    return 0 if all("error" not in row and row.get("learns_as_on_cpu", True) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
