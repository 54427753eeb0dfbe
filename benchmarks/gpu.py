"""What a GPU makes of it, in one command that ends within ten minutes.

    python benchmarks/gpu.py                      # on a machine with a GPU
    python benchmarks/gpu.py --purejaxrl DIR      # beside purejaxrl, from a checkout, at the same shapes
    python benchmarks/gpu.py --reference          # on a CPU: the learning curves that a GPU's are held against
    python benchmarks/gpu.py --quick              # anywhere: does everything run?

Each case runs in a process of its own: compile, train once to load kernels, train once for the clock; once as XLA has
it, and once with kernels of our own where there are any for it. Its learning curve must be that of the same settings on
a CPU (`results/gpu_reference.json`): at ten points of training the means over seeds may differ by four standard errors,
each of 1% of the mean at least. Beside the time of an update stands what `gpu_program.py` estimates for that chip.
Last, a run is killed and resumed, which must end with the bits of an undisturbed one. Results are written after each
case, to `results/gpu.json`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from venvs import PeerError, told

RESULTS = Path(__file__).parent / "results"
# Loops as one launch, those of whose kernels none copies from where a loop's counter says: the rollout's and the
# advantages', but not the minibatches', says XLA's dump of its thunks (jax 0.10.2)
WHILE = "--xla_gpu_enable_command_buffer=+WHILE --xla_gpu_graph_min_graph_size=1"
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
    kernels: str = "xla"

    @property
    def name(self) -> str:
        own = " own kernels" if self.kernels == "auto" else ""
        return f"{self.env}/{self.algo}/{self.seeds}x{self.envs}" + (f" {self.flags}" if self.flags else "") + own

    @property
    def num_steps(self) -> int:
        return 1024 if self.algo == "trpo" else 128


CASES = [
    Case("ppo", "CartPole-v1", 2048, 4, 200, 16, target=50e6),
    Case("ppo", "CartPole-v1", 2048, 4, 200, 16, target=50e6, kernels="auto"),
    Case("trpo", "CartPole-v1", 512, 2, 50, 16),
    Case("trpo", "CartPole-v1", 512, 2, 50, 16, kernels="auto"),
    Case("ppo", "Breakout-MinAtar", 300, 64, 123, 2, target=300 * 1e6 / 30),
    Case("ppo", "CartPole-v1", 1, 4096, 10, 3),
    Case("ppo", "CartPole-v1", 2048, 4, 200, 16, flags=WHILE),
]
SURVIVES = ["--algo", "ppo", "--env", "CartPole-v1", "--final-episodes", "1"]
MANY = ["--num-seeds", "256", "--total-steps", "512000", "--checkpoint-interval", "100"]
FEW = ["--num-seeds", "4", "--total-steps", "204800", "--checkpoint-interval", "20"]  # for a CPU


def train(case: Case, seeds: int) -> dict[str, Any]:
    """Compile, train twice; steps per second of the second time, and the curve."""
    import jax

    from purejaxppo.parallel.devices import use_cpu_cores
    from purejaxppo.parallel.runs import over_runs
    from purejaxppo.presets import preset
    from purejaxppo.train import make_train

    use_cpu_cores()
    steps = case.updates * case.envs * case.num_steps
    config = preset(
        case.algo, case.env, num_envs=case.envs, num_steps=case.num_steps, total_steps=steps, kernels=case.kernels
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
        "update_milliseconds": 1e3 * seconds / case.updates,
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
        return told([sys.executable, *arguments], env, limit)
    except PeerError as error:
        return {"error": str(error)}


def estimate(case: Case, device: str) -> list[float] | None:
    """Milliseconds of an update, by `gpu_program.py` with 2 and with 5 µs a launch; None where it has no row."""
    stored = RESULTS / "gpu_program.json"
    by = "ours-kernels" if case.kernels == "auto" else "ours"
    program = f"{case.algo} {case.env} {case.seeds} × {case.envs} × {case.num_steps}"
    for row in json.loads(stored.read_text()) if stored.exists() else []:
        if (row["program"], row["by"], row["devices"]) == (program, by, 1) and row["chip"].upper() in device:
            return [row["totals"][f"milliseconds_{launch}us"] for launch in (2, 5)]
    return None


def survives(size: list[str], limit: float) -> dict[str, Any]:
    """Whether a run that is killed and resumed leaves the arrays and rows of one that nothing happened to."""
    from survival import fingerprint

    deadline = time.monotonic() + limit

    def run(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "purejaxppo.run", *arguments]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def finish(*arguments: str) -> None:
        process = run(*arguments)
        _, said = process.communicate(timeout=max(deadline - time.monotonic(), 1))
        if process.returncode:
            raise RuntimeError(said.decode().strip().splitlines()[-1][:300])

    with tempfile.TemporaryDirectory() as directory:
        whole, killed = Path(directory) / "whole", Path(directory) / "killed"
        try:
            finish(*SURVIVES, *size, "--out", str(whole))
            process = run(*SURVIVES, *size, "--out", str(killed))
            while not any(killed.glob("checkpoints/[0-9]*")) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            process.kill()
            if process.wait() >= 0:
                return {"error": "it ended before it could be killed"}
            finish("--resume", str(killed))
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            return {"error": str(error)[:300]}
        return {"same_bits": fingerprint(whole) == fingerprint(killed)}


def report(row: dict[str, Any], case: Case | None = None) -> str:
    if "error" in row:
        return f"{row['case']}: {row['error']}"
    if "same_bits" in row:
        return f"{row['case']}: {'the same bits' if row['same_bits'] else 'OTHER BITS'}"
    text = f"{row['case']}: {row['steps_per_second'] / 1e6:,.2f}M steps/s on {row.get('device', '?')}"
    if case and case.target:
        text += f" (target {case.target / 1e6:,.0f}M)"
    if "update_milliseconds" in row:
        text += f"; an update {row['update_milliseconds']:,.2f} ms"
    if row.get("estimated_milliseconds"):
        text += " (estimated {:,.1f} to {:,.1f} ms)".format(*row["estimated_milliseconds"])
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
    if chosen.reference and chosen.quick:
        parser.error("--quick makes no reference; leave out one")
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
        if (chosen.reference and (case.flags or case.kernels != "xla")) or (not chosen.reference and left < 30):
            continue
        limit = 3600.0 if chosen.reference else left
        row = {"case": case.name} | in_a_process([__file__, "--case", str(i), *mode], case.flags, limit)
        known = references.get(case._replace(flags="", kernels="xla").name)
        if known and "error" not in row and not chosen.reference:
            row["standard_errors"] = deviation(row, known)
            row["learns_as_on_cpu"] = row["standard_errors"] < 4.0
            row["estimated_milliseconds"] = estimate(case, row["device"].upper())
        keep(row, case)
        plain = case.algo == "ppo" and case == case._replace(flags="", kernels="xla")
        if chosen.purejaxrl and plain and deadline - time.monotonic() > 30:
            peer = [str(Path(__file__).parent / "peers" / "purejaxrl_ppo.py"), "--env", case.env, "--algo", "ppo"]
            peer += ["--seeds", str(case.seeds), "--envs", str(case.envs)]
            peer += ["--steps", str(case.updates * case.envs * 128), "--checkout", str(chosen.purejaxrl.resolve())]
            other = {"case": f"{case.name} purejaxrl"} | in_a_process(peer, "", deadline - time.monotonic())
            if "error" not in other | row:
                other["ours_over_peer"] = row["steps_per_second"] / other["steps_per_second"]
            keep(other)
    if not chosen.reference and (left := deadline - time.monotonic()) > 30:
        keep({"case": "killed and resumed"} | survives(FEW if chosen.quick else MANY, left))
    wanted = ("learns_as_on_cpu", "same_bits")
    return 0 if all("error" not in row and all(row.get(name, True) for name in wanted) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
