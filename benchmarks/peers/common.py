"""What all participants in `throughput.py` share: their arguments, the settings, the clock, the line that they print.

Imports nothing but the standard library at the top, as each participant lives in an environment of its own.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GAMMA, GAE_LAMBDA = 0.99, 0.95
CLIP_EPS, ENTROPY_COEF, VALUE_COEF, MAX_GRAD_NORM = 0.2, 0.01, 0.5, 0.5  # PPO
MAX_KL, CG_ITERATIONS, DAMPING = 0.01, 15, 0.1  # TRPO
HIDDEN_SIZES = (64, 64)


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement. PPO has the settings of CleanRL and purejaxrl (MinAtar: purejaxrl's), TRPO sb3-contrib's."""

    env: str
    algo: str
    seeds: int
    envs: int
    updates: int
    checkout: Path | None
    cache: Path | None
    one_core: bool
    chip: str | None = None
    hlo: Path | None = None

    @property
    def minatar(self) -> bool:
        return self.env.endswith("MinAtar")

    @property
    def num_steps(self) -> int:
        return 128 if self.algo == "ppo" else 2048

    @property
    def num_epochs(self) -> int:
        return 4 if self.algo == "ppo" else 10

    @property
    def num_minibatches(self) -> int:
        return (8 if self.minatar else 4) if self.algo == "ppo" else 16

    @property
    def minibatch_size(self) -> int:
        return self.envs * self.num_steps // self.num_minibatches

    @property
    def learning_rate(self) -> float:
        """Annealed to 0 in PPO, where the peer can; constant in TRPO, where it is the critic's."""
        return (5e-3 if self.minatar else 2.5e-4) if self.algo == "ppo" else 1e-3

    @property
    def activation(self) -> str:
        return "relu" if self.minatar else "tanh"

    @property
    def steps(self) -> int:
        """Per seed."""
        return self.updates * self.envs * self.num_steps

    def annealed(self, count: Any) -> Any:
        """The learning rate at gradient step `count`, for optax."""
        total = self.updates * self.num_epochs * self.num_minibatches
        return self.learning_rate * (1.0 - count / total)


def job() -> Job:
    """The measurement that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", required=True)
    parser.add_argument("--algo", choices=("ppo", "trpo"), default="ppo")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--envs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=0, help="per seed, cut to whole updates; 0: ten updates")
    parser.add_argument("--checkout", type=Path, help="where the peer's sources are")
    parser.add_argument("--cache", type=Path, help="compile only, with JAX's persistent cache in this directory")
    parser.add_argument("--one-core", action="store_true", help="ours: leave the other cores alone")
    parser.add_argument("--chip", help="compile only, for a chip that is not there, see chip.py")
    parser.add_argument("--hlo", type=Path, help="and keep the optimized HLO here")
    args = parser.parse_args()
    wanted = Job(
        args.env, args.algo, args.seeds, args.envs, 10, args.checkout, args.cache, args.one_core, args.chip, args.hlo
    )
    updates = max(1, args.steps // (args.envs * wanted.num_steps)) if args.steps else 10
    return dataclasses.replace(wanted, updates=updates)


def sb3_settings(job: Job, activation: Any) -> dict[str, Any]:
    """What Stable-Baselines3, sb3-contrib and SBX call the settings that all their algorithms have."""
    return {
        "n_steps": job.num_steps,
        "batch_size": job.minibatch_size,
        "gamma": GAMMA,
        "gae_lambda": GAE_LAMBDA,
        "policy_kwargs": {"net_arch": list(HIDDEN_SIZES), "activation_fn": activation},
        "seed": 0,
    }


def sb3_ppo_settings(job: Job, activation: Any) -> dict[str, Any]:
    """The same for their PPO, which Stable-Baselines3 and SBX share."""
    return sb3_settings(job, activation) | {
        "n_epochs": job.num_epochs,
        "learning_rate": lambda remaining: job.learning_rate * remaining,
        "clip_range": CLIP_EPS,
        "ent_coef": ENTROPY_COEF,
        "vf_coef": VALUE_COEF,
        "max_grad_norm": MAX_GRAD_NORM,
    }


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """What `work` returns, and what it cost: seconds, and the process's peak memory up to its end."""
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return result, {"run_seconds": seconds, "peak_rss_bytes": peak * (1 if sys.platform == "darwin" else 1024)}


def timed_compiled(jitted: Any, keys: Any) -> tuple[Any, dict[str, Any]]:
    """The same for a jitted function of keys; compilation (tracing, lowering, XLA) is timed apart."""
    import jax

    began = time.perf_counter()
    compiled = jitted.lower(keys).compile()
    compile_seconds = time.perf_counter() - began
    result, cost = timed(lambda: jax.block_until_ready(compiled(keys)))
    if jax.default_backend() != "cpu" or cost["run_seconds"] < 1:  # the first call loads kernels and touches memory
        del result
        result, cost = timed(lambda: jax.block_until_ready(compiled(keys)))
    memory = jax.devices()[0].memory_stats() or {}
    return result, cost | {
        "compile_seconds": compile_seconds,
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
        "device": jax.devices()[0].device_kind,
    }


def mean(returns: Any) -> float | None:
    """Of the returns of the last episodes that ended; None if none did."""
    return float(sum(returns) / len(returns)) if len(returns) else None


def report(job: Job, cost: dict[str, Any], final_return: float | None, packages: str, note: str = "") -> None:
    """Print the one line of JSON. `packages`: those whose versions it names."""
    versions = {name: importlib.metadata.version(name) for name in packages.split()}
    line = {
        "seeds": job.seeds,
        "envs": job.envs,
        "steps_per_seed": job.steps,
        "steps_per_second": job.steps * job.seeds / cost["run_seconds"],
        **cost,
        "final_return": final_return,
        "versions": versions | {"python": platform.python_version()},
        "note": note,
    }
    print(json.dumps(line), flush=True)
