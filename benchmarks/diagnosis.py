"""How often `purejaxppo diagnose` names a planted fault, and how often it warns of a healthy run.

    python benchmarks/diagnosis.py
    python benchmarks/diagnosis.py --again      # the rules anew, on the runs that --work holds

A fault stands in the environment, in the settings or in patched code, and what may be said of it was written down
before: it is found if one of these names is among the first two findings. A healthy run passes if there is no finding.
Each run has four seeds. Where the fault is in the environment, and for half of the healthy runs, `--probe` is used; all
else is told from files alone. Rows are written one by one; the same command continues. Those marked `apart` were not
looked at while thresholds were chosen.
"""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# most of the time is compilation
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import jax
import jax.numpy as jnp
import numpy as np

from purejaxppo import Box, MultiBinary, evaluate, make_train, preset
from purejaxppo.diagnosis.diagnose import Finding, findings
from purejaxppo.diagnosis.probe import ProbeResult, probe
from purejaxppo.envs.registry import make_env
from purejaxppo.experiment.program import PER_EPISODE
from purejaxppo.health import CAUSES
from purejaxppo.presets import settings_of, with_settings
from purejaxppo.rundir.contents import RunContents
from purejaxppo.rundir.files import shown, to_json
from purejaxppo.rundir.metrics import MetricsTable
from purejaxppo.sweeps.axes import traced

HERE = Path(__file__).parent
SEEDS, EPISODES = 4, 20
FIRST_SEEDS = (0, 100, 200)  # of healthy runs


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A registered environment in which something is wrong."""

    base: str
    fault: str

    def __repr__(self) -> str:
        return f"{self.fault} {self.base}"

    @property
    def env(self) -> Any:
        return make_env(self.base)

    @property
    def observation_space(self) -> Any:
        space = self.env.observation_space
        if self.fault == "one-valid-action":
            return {"obs": space, "action_mask": MultiBinary(self.env.action_space.n)}
        wide = self.fault in ("large-observations", "noise-observed")
        return Box(-np.inf, np.inf, space.shape) if wide else space

    @property
    def action_space(self) -> Any:
        return self.env.action_space

    def reset(self, key: jax.Array) -> Any:
        state, obs = self.env.reset(key)
        return state, self.observed(key, obs)

    def observed(self, key: jax.Array, obs: Any) -> Any:
        if self.fault == "one-valid-action":
            return {"obs": obs, "action_mask": jnp.arange(self.env.action_space.n) == 0}
        changed = {
            "large-observations": lambda: 1e4 * obs,
            "constant-observations": lambda: jnp.zeros_like(obs),
            "noise-observed": lambda: jax.random.normal(key, obs.shape),
        }
        return changed.get(self.fault, lambda: obs)()

    def step(self, key: jax.Array, state: Any, action: jax.Array) -> Any:
        if self.fault == "actions-ignored":
            action = jnp.zeros_like(action)
        state, obs, reward, terminated, truncated = self.env.step(key, state, action)
        if self.fault == "never-ends":
            terminated, truncated = terminated & False, truncated & False
        if self.fault == "limit-as-termination":
            terminated, truncated = terminated | truncated, truncated & False
        rewards = {
            "no-reward": lambda: 0.0 * reward,
            "large-rewards": lambda: 1e4 * reward,
            "reward-of-chance": lambda: jax.random.normal(jax.random.fold_in(key, 1)),
            "nan-reward": lambda: jnp.where(jax.random.uniform(key) < 1e-3, jnp.nan, reward),
        }
        return state, self.observed(key, obs), rewards.get(self.fault, lambda: reward)(), terminated, truncated


class Run(NamedTuple):
    """What is trained."""

    name: str
    expected: tuple[str, ...]  # rules, one of which should be among the first two; () of a healthy run
    algo: str
    env: Any
    settings: dict[str, Any]
    patch: str = ""
    apart: bool = False  # not looked at while thresholds were chosen
    first_seed: int = 0

    @property
    def is_evaluated(self) -> bool:
        """Else there is no summary.json, as of a run that is under way."""
        return not self.expected or "evaluation" in self.name or "nan" in self.name

    @property
    def is_probed(self) -> bool:
        """Faults of settings and code must show in files, but for two."""
        in_settings = self.name in ("at-bounds", "tiny-observations")
        return isinstance(self.env, Faulty) or in_settings or (not self.expected and self.first_seed == 0)


def faults() -> list[Run]:
    """What is wrong, and what may be said of it."""
    cart, pendulum = ({"total_steps": 60_000, "eval_max_steps": 1000} for _ in range(2))
    short = {"num_envs": 1, "num_steps": 8, "num_minibatches": 1, "total_steps": 20_000}

    def env(fault: str, *expected: str, algo: str = "ppo", base: str = "CartPole-v1", apart: bool = False) -> Run:
        return Run(fault, expected, algo, Faulty(base, fault), pendulum if base.startswith("P") else cart, "", apart)

    def settings(
        name: str, *expected: str, algo: str, base: str = "CartPole-v1", apart: bool = False, **own: Any
    ) -> Run:
        usual = pendulum if base.startswith("P") else cart
        return Run(name, expected, algo, base, {**usual, **own}, "", apart)

    def code(name: str, *expected: str, algo: str, base: str = "CartPole-v1", apart: bool = False) -> Run:
        return Run(name, expected, algo, base, pendulum if base.startswith("P") else cart, name, apart)

    return [
        env("no-reward", "return-never-changes"),
        env("large-rewards", "reward-scale", base="Pendulum-v1", algo="a2c"),
        env("large-observations", "observation-scale"),
        env("never-ends", "no-episode-ends"),
        env("actions-ignored", "actions-do-nothing"),
        env("nan-reward", "not-finite", "failed-seeds", apart=True),
        env("one-valid-action", "one-action"),
        env("constant-observations", "observations-constant"),
        env("limit-as-termination", "time-limit-as-termination", base="Pendulum-v1"),
        env("reward-of-chance", "reward-ignores-actions", base="Pendulum-v1", apart=True),
        env("noise-observed", "critic-explains-nothing", "entropy-never-falls", apart=True),
        settings("reward-never-found", "return-never-changes", algo="ppo", base="MountainCar-v0"),
        settings("learning-rate-1", "steps-too-large", "entropy-collapsed", algo="ppo", learning_rate=1.0),
        settings("learning-rate-1e-9", "policy-does-not-move", "steps-too-small", algo="ppo", learning_rate=1e-9),
        settings("max-kl-1e-7", "steps-too-small", algo="trpo", max_kl=1e-7),
        settings("gamma-0.3", "short-sighted", algo="a2c", gamma=0.3),
        settings("gamma-0", "short-sighted", algo="ppo", base="Pendulum-v1", gamma=0.0, apart=True),
        settings("entropy-coef-5", "entropy-never-falls", algo="ppo", entropy_coef=5.0),
        settings("entropy-coef-0.3", "stands-still", "entropy-never-falls", algo="ppo", entropy_coef=0.3, apart=True),
        settings(
            "entropy-coef-1",
            "stands-still",
            "entropy-never-falls",
            algo="ppo",
            base="Pendulum-v1",
            entropy_coef=1.0,
            apart=True,
        ),
        settings("cg-1", "cg-does-not-converge", algo="trpo", base="Pendulum-v1", cg_iterations=1),
        settings("damping-1e4", "damping-dominates", algo="trpo", damping=1e4),
        settings("annealed-over-3000", "annealed-too-soon", algo="ppo", num_steps=32, total_steps=3000),
        settings(
            "truncation-as-termination",
            "time-limit-as-termination",
            algo="trpo",
            base="Pendulum-v1",
            truncation_as_termination=True,
        ),
        settings("max-kl-10", "line-search-fails", algo="trpo", max_kl=10.0, max_backtracks=1),
        settings("epochs-100", "steps-too-large", algo="ppo", num_epochs=100, learning_rate=0.01, apart=True),
        settings(
            "at-bounds",
            "actions-at-bounds",
            "steps-too-large",
            algo="a2c",
            base="Pendulum-v1",
            learning_rate=0.1,
            max_grad_norm=np.inf,
        ),
        settings("short-rollouts", "too-few-episodes", algo="ppo", base="Pendulum-v1", **short),
        settings(
            "no-value-loss",
            "critic-explains-nothing",
            algo="ppo",
            base="Pendulum-v1",
            joint_update=True,
            value_coef=0.0,
        ),
        settings(
            "tiny-rewards",
            "reward-scale",
            "steps-too-small",
            algo="a2c",
            reward_scale=1e-6,
            normalize_advantages=False,
            entropy_coef=0.0,
        ),
        settings("tiny-observations", "observations-constant", algo="ppo", observation_clip=1e-7, apart=True),
        code("advantage-negated", "returns-fall", algo="ppo"),
        code("advantage-constant", "advantage-of-a-constant", algo="ppo"),
        code("critic-not-fitted", "critic-explains-nothing", algo="ppo", base="Pendulum-v1", apart=True),
        code("evaluation-of-others", "evaluation-below-training", algo="ppo"),
        code("step-lost", "policy-does-not-move", algo="a2c", apart=True),
    ]


def healthy() -> list[Run]:
    """Presets, some of them shorter than they come."""
    some, many = {"total_steps": 60_000}, {"total_steps": 400_000}
    cart = {"cem": many, "cma-es": many}
    found = [
        (algo, "CartPole-v1", cart.get(algo, some), seed)
        for seed in FIRST_SEEDS
        for algo in ("trpo", "ppo", "npg", "ppo-penalty", "a2c", "a2c-tr", "reinforce", "cem", "cma-es")
    ]
    found += [(algo, "Pendulum-v1", {}, seed) for seed in FIRST_SEEDS for algo in ("trpo", "npg", "ppo", "ppo-penalty")]
    found += [
        (algo, "Acrobot-v1", {"total_steps": 60_000}, seed)
        for seed in FIRST_SEEDS
        for algo in ("trpo", "npg", "ppo", "ppo-penalty")
    ]
    found += [
        (algo, "gymnasium/CartPole-v1", {"total_steps": 60_000}, seed)
        for seed in FIRST_SEEDS
        for algo in ("trpo", "ppo")
    ]
    found += [(algo, "MountainCarContinuous-v0", {}, seed) for seed in (0, 100) for algo in ("trpo", "ppo")]
    minatar = {"total_steps": 1_000_000, "convolutions": False}
    found += [("ppo", f"{name}-MinAtar", minatar, 0) for name in ("Breakout", "SpaceInvaders")]
    runs = [
        Run(f"{algo} {env} {seed}", (), algo, env, {**own, "eval_max_steps": 1000}, "", False, seed)
        for algo, env, own, seed in found
    ]
    return [run._replace(apart=run.first_seed > 0) for run in runs]


def groups() -> list[list[Run]]:
    """Runs that share a program: they differ in numbers only. Large groups first, then short runs before long ones."""
    found: dict[str, list[Run]] = {}
    for run in [run for pair in itertools.zip_longest(faults(), healthy()) for run in pair if run]:
        found.setdefault(repr((run.algo, run.env, run.patch, split(run)[0])), []).append(run)
    wrong, right = ([runs for runs in found.values() if bool(runs[0].expected) == has] for has in (True, False))
    turns = [runs for pair in itertools.zip_longest(wrong, right) for runs in pair if runs]
    steps = [max(run.settings.get("total_steps", 10**6) for run in runs) for runs in turns]
    return [runs for _, runs in sorted(zip(steps, turns, strict=True), key=lambda x: (len(x[1]) < 3, x[0]))]


def split(run: Run) -> tuple[dict[str, Any], dict[str, float]]:
    """What shapes the program of a run, and its numbers."""
    config = preset(run.algo, run.env)
    numbers = {name: x for name, x in run.settings.items() if traced(config, name)}
    return {name: x for name, x in run.settings.items() if name not in numbers}, numbers


@contextlib.contextmanager
def patched(fault: str) -> Iterator[None]:
    """Code in which something is wrong."""
    from purejaxppo import evaluation, improvement, train

    def advantages(change: Callable[[jax.Array], jax.Array]) -> Any:
        right = train.gae
        return mock.patch.object(train, "gae", lambda *arguments: change(right(*arguments)))

    def nothing_learnt(agent: Any) -> Any:
        right = value_loss(agent)
        return lambda params, batch: jax.tree.map(lambda x: 0.0 * x, right(params, batch))

    def others(agent: Any, state: Any, *arguments: Any) -> Any:
        return play(agent, state.replace(policy=jax.tree.map(lambda x: -x, state.policy)), *arguments)

    value_loss, play = improvement.value_loss, evaluation._play
    patches: dict[str, Any] = {
        "advantage-negated": lambda: advantages(lambda x: -x),
        "advantage-constant": lambda: advantages(lambda x: 0.0 * x + 1.0),
        "critic-not-fitted": lambda: mock.patch.object(improvement, "value_loss", nothing_learnt),
        "evaluation-of-others": lambda: mock.patch.object(evaluation, "_play", others),
        "step-lost": lambda: mock.patch.object(train, "learning_rate", return_value=np.float32(0.0)),
    }
    with patches[fault]() if fault else contextlib.nullcontext():
        yield


def train_and_probe(runs: list[Run], work: Path) -> None:
    """Keep what the run directories would say, and what probes of the environment find."""
    base = preset(runs[0].algo, runs[0].env, **split(runs[0])[0])
    usual, own = settings_of(base), [split(run)[1] for run in runs]
    names = {name for numbers in own for name in numbers}
    swept = {name: np.repeat([float(x.get(name, usual[name])) for x in own], SEEDS) for name in names}
    seeds = np.ravel([np.arange(run.first_seed, run.first_seed + SEEDS) for run in runs]).astype(np.uint32)
    with patched(runs[0].patch), base.environment:
        train = jax.vmap(lambda own, key: make_train(with_settings(base, own))(key))
        keys = jax.vmap(jax.random.key)(seeds)
        state, metrics = jax.device_get(jax.jit(train)(swept, keys))
        play = jax.vmap(lambda state, key: evaluate(base, state, key, EPISODES).returns.mean())
        scores = (
            np.asarray(jax.jit(play)(state, keys)) if any(run.is_evaluated for run in runs) else np.zeros(len(seeds))
        )
    for i, run in enumerate(runs):
        mine = slice(i * SEEDS, (i + 1) * SEEDS)
        keep(run, work, jax.tree.map(lambda x: x[mine], (state, metrics, scores)))  # noqa: B023


def keep(run: Run, work: Path, outcome: Any) -> None:
    """What came of one run: state, metrics [seeds, updates], scores of an evaluation [seeds]."""
    state, metrics, scores = outcome
    out, config = place(run, work), preset(run.algo, run.env, **run.settings)
    seeds = [*range(run.first_seed, run.first_seed + SEEDS)]
    columns, ends = rows_of(metrics)
    np.savez(out.with_suffix(".npz"), update=ends, **columns)
    known: dict[str, Any] = {"settings": to_json(settings_of(config)), "seeds": seeds, "summary": None, "probe": None}
    failed = [
        {"seed": seed, "update": int(update), "cause": CAUSES[cause - 1]}
        for seed, update, cause in zip(seeds, *state.failure, strict=True)
        if update
    ]
    if run.is_evaluated:
        known["summary"] = {"eval_return": {"per_seed": scores.astype(float).tolist()}, "failed_seeds": failed}
    if run.is_probed:
        seen = probe(config, jax.tree.map(lambda x: x[0], state))._asdict()
        known["probe"] = {name: x.tolist() if isinstance(x, np.ndarray) else x for name, x in seen.items()}
    out.with_suffix(".json").write_text(json.dumps(known))


def rows_of(metrics: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Metrics [seeds, updates] as in metrics.csv: means over updates, or episodes, of at most 100 rows; their ends."""
    metrics = {name: np.asarray(x, np.float64) for name, x in metrics.items()}
    updates = metrics["alive"].shape[1]
    starts = np.arange(0, updates, -(-updates // 100))
    total = lambda x: np.add.reduceat(np.nan_to_num(x), starts, axis=1)  # noqa: E731
    counts = {"episodes": metrics["episodes"], "alive": metrics["alive"]}
    columns = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, x in metrics.items():
            by = counts["episodes" if name in PER_EPISODE else "alive"]
            columns[name] = total(x * by) / total(by)
    columns["episodes"] = total(metrics["episodes"])
    columns["alive"] = total(metrics["alive"]) / total(np.ones_like(metrics["alive"]))
    return columns, np.append(starts[1:], updates)


def diagnosed(run: Run, out: Path) -> list[dict[str, Any]]:
    """What is found in what `train_and_probe` has kept."""
    known, kept = json.loads(out.with_suffix(".json").read_text()), np.load(out.with_suffix(".npz"))
    columns = {name: kept[name] for name in kept.files if name != "update"}
    steps = kept["update"] * known["settings"]["num_envs"] * known["settings"]["num_steps"]
    table = MetricsTable(known["seeds"], kept["update"].astype(float), steps.astype(float), columns)
    shown_settings = {name: shown(x) for name, x in known["settings"].items()}
    env = repr(run.env)
    contents = RunContents(out, run.algo, env, known["seeds"], shown_settings, {}, table, known["summary"])
    seen = known["probe"]
    if seen:
        std = seen["observation_std"]
        seen |= {"returns": np.array(seen["returns"]), "observation_std": None if std is None else np.array(std)}
    return as_rows(findings(contents, ProbeResult(**seen) if seen else None))


def place(run: Run, work: Path) -> Path:
    """Where it is kept, but for the suffix."""
    return work / run.name.replace("/", "-").replace(" ", "_").replace(".", "_")


def as_rows(found: list[Finding]) -> list[dict[str, Any]]:
    """What is kept of findings."""
    return [{"name": x.name, "evidence": x.evidence, "seeds": len(x.seeds)} for x in found]


def row_of(run: Run, work: Path) -> dict[str, Any]:
    """What is said of a run, and whether it is right."""
    found = diagnosed(run, place(run, work))
    first = [x["name"] for x in found[:2]]
    right = bool({*first} & {*run.expected}) if run.expected else not found
    about = {"name": run.name, "algo": run.algo, "env": repr(run.env), "apart": run.apart, "probe": run.is_probed}
    return about | {"right": right, "expected": run.expected, "found": found}


def total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many of how many."""
    counted = {}
    for kind, some in (
        ("faults found", [row for row in rows if row["expected"]]),
        ("healthy runs without a warning", [row for row in rows if not row["expected"]]),
    ):
        for which, these in (("all", some), ("apart", [row for row in some if row["apart"]])):
            counted[f"{kind}, {which}"] = f"{sum(row['right'] for row in these)} of {len(these)}"
    return counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "diagnosis.json")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "diagnosis")
    parser.add_argument("--again", action="store_true", help="apply the rules anew to the runs that are there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    by_name = {row["name"]: row for row in rows}
    for runs in groups():
        there = all(place(run, options.work).with_suffix(".json").exists() for run in runs)
        known = all(run.name in by_name for run in runs)
        if not there and not options.again and not known:
            train_and_probe(runs, options.work)
        elif not there or (known and not options.again):
            continue
        for run in runs:
            by_name[run.name] = row = row_of(run, options.work)
            names = [x["name"] for x in row["found"]]
            print(f"{'  ' if row['right'] else '✗ '}{run.name}: {names}", flush=True)
        order = {run.name: i for i, run in enumerate([*faults(), *healthy()])}
        rows = sorted(by_name.values(), key=lambda row: order.get(row["name"], 0))
        content = {"command": "python benchmarks/diagnosis.py", "total": total(rows), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(total(list(by_name.values())), indent=1))


if __name__ == "__main__":
    main()
