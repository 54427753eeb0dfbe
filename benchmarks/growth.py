"""How the cost of training grows with environments, seeds, steps of a rollout and width of the networks.

    python benchmarks/growth.py                   # JSON and figure under results/, in a few minutes on two cores
    python benchmarks/growth.py --algo trpo

One axis is varied at a time, the others stay at the settings that `preset` gives. Measured is one update of all seeds,
compiled, the median of several rounds that go over all values of an axis in turn. Drawn are seconds per update, and,
dashed, what a cost proportional to the value would be from the first one on.
"""

import argparse
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import LogLocator

from purejaxppo.config import Config
from purejaxppo.parallel.devices import choose_devices, use_cpu_cores
from purejaxppo.parallel.runs import over_runs
from purejaxppo.presets import preset
from purejaxppo.train import init, update_step

AXES: dict[str, tuple[int, ...]] = {
    "num_seeds": (1, 2, 4, 8, 16, 32, 64),
    "num_envs": (4, 8, 16, 32, 64, 128, 256),
    "num_steps": (32, 64, 128, 256, 512, 1024),
    "width": (16, 32, 64, 128, 256),
}
LABELS = {
    "num_seeds": "seeds",
    "num_envs": "environments of a seed",
    "num_steps": "steps of a rollout",
    "width": "width of both hidden layers",
}


def prepared(config: Config, seeds: int) -> tuple[Any, Any]:
    """One update of all seeds, compiled, and a state to begin with."""
    devices = choose_devices(None)
    devices = devices[: max(n for n in range(1, len(devices) + 1) if seeds % n == 0)]
    state = over_runs(functools.partial(init, config), devices)(jax.random.split(jax.random.key(0), seeds))
    update = over_runs(lambda state: update_step(config, state)[0], devices).lower(state).compile()
    return update, jax.block_until_ready(update(state))


def timed(programs: dict[Any, tuple[Any, Any]], rounds: int, least: float) -> dict[Any, list[float]]:
    """Seconds of an update of each program, in rounds over all of them; each is repeated for `least` seconds."""
    times: dict[Any, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, (update, state) in programs.items():
            count, began = 0, time.perf_counter()
            while time.perf_counter() - began < least:
                jax.block_until_ready(update(state))
                count += 1
            times[name].append((time.perf_counter() - began) / count)
    return times


def compiled(algo: str, env: str, axis: str, value: int) -> tuple[Any, Any]:
    """The program of one value of an axis."""
    fields: dict[str, Any] = {"num_envs": 4, "num_steps": 128}
    seeds = value if axis == "num_seeds" else 2
    if axis == "width":
        fields["hidden_sizes"] = (value, value)
    elif axis != "num_seeds":
        fields[axis] = value
    return prepared(preset(algo, env, **fields), seeds)


def measure(algo: str, env: str, axis: str, rounds: int, least: float) -> list[dict[str, float]]:
    times = timed({value: compiled(algo, env, axis, value) for value in AXES[axis]}, rounds, least)
    return [{"value": value, "seconds": float(np.median(x))} for value, x in times.items()]


def draw(found: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, len(AXES), figsize=(4 * len(AXES), 3.6), layout="constrained")
    for panel, (axis, rows) in zip(panels, found["axes"].items(), strict=True):
        values, seconds = (np.asarray([row[name] for row in rows]) for name in ("value", "seconds"))
        panel.plot(values, 1e3 * seconds, "o-", color="#0072B2", label="measured")
        panel.plot(values, 1e3 * seconds[0] * values / values[0], "--", color="#999999", label="proportional")
        panel.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel="milliseconds per update")
        panel.set_xticks(values, [str(value) for value in values])
        panel.minorticks_off()
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
    panels[0].legend(frameon=False)
    figure.suptitle(f"{found['algo']} on {found['env']}, {found['devices']} × {found['device']}, jax {found['jax']}")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="ppo")
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.3, help="seconds that one measurement lasts at least")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    chosen = parser.parse_args()
    use_cpu_cores()
    found = {
        "algo": chosen.algo,
        "env": chosen.env,
        "device": jax.devices()[0].device_kind,
        "devices": len(jax.devices()),
        "jax": jax.__version__,
        "axes": {axis: measure(chosen.algo, chosen.env, axis, chosen.rounds, chosen.least) for axis in AXES},
    }
    name = f"growth_{chosen.algo}"
    (chosen.out / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(found, chosen.out / f"{name}.png")
    for axis, rows in found["axes"].items():
        print(axis, {row["value"]: f"{1e3 * row['seconds']:.2f} ms" for row in rows})
