"""Does it learn what others report? Trains every claim of the table below and writes data, a table and a figure.

    python benchmarks/learning.py                  # all, about 10 minutes on 2 cores
    python benchmarks/learning.py --only trpo      # those whose name contains a word; the other results are kept

Each policy is judged by the mean of 100 greedy episodes after training.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure

from purejaxppo import plotting
from purejaxppo.config import Config
from purejaxppo.evaluation import evaluate
from purejaxppo.parallel.devices import use_cpu_cores
from purejaxppo.parallel.runs import best_vmap_size, over_runs
from purejaxppo.presets import preset, settings_of
from purejaxppo.rundir.record import versions
from purejaxppo.statistics import iqm, iqm_over_seeds
from purejaxppo.train import make_train

RESULTS = Path(__file__).parent / "results"


class Claim(NamedTuple):
    name: str
    algo: str
    env: str
    total_steps: int
    at_least: float | None  # what we ask of ourselves; None: a curve to record
    published: str  # what others report, at how many steps
    seeds: int = 10
    settings: tuple[tuple[str, Any], ...] = ()


CLAIMS = [
    Claim("reinforce CartPole", "reinforce", "CartPole-v1", 500_000, 450, "483.3 at 2e5 (SLM-Lab)"),
    Claim(
        "a2c CartPole",
        "a2c",
        "CartPole-v1",
        500_000,
        475,
        "496.7 at 2e5 (SLM-Lab), 500.0 at 5e5, one run (rl-baselines3-zoo)",
    ),
    Claim("npg CartPole", "npg", "CartPole-v1", 100_000, 475, "–"),
    Claim("trpo CartPole", "trpo", "CartPole-v1", 100_000, 490, "500.0 at 1e5, one run (rl-baselines3-zoo)"),
    Claim(
        "ppo CartPole",
        "ppo",
        "CartPole-v1",
        500_000,
        490,
        "498.9 at 2e5 (SLM-Lab), 490.0 ± 6.1 at 5e5 (CleanRL)",
        seeds=64,
    ),
    Claim(
        "ppo-penalty adaptive CartPole", "ppo-penalty", "CartPole-v1", 100_000, 470, "492 ± 9 at 1e5 (arXiv:2606.23932)"
    ),
    Claim(
        "ppo-penalty fixed CartPole",
        "ppo-penalty",
        "CartPole-v1",
        100_000,
        470,
        "484 ± 23 at 1e5 (arXiv:2606.23932)",
        settings=(("adaptive", False),),
    ),
    Claim("trpo Acrobot", "trpo", "Acrobot-v1", 100_000, -90, "-83.1 at 1e5, one run (rl-baselines3-zoo)"),
    Claim("ppo Acrobot", "ppo", "Acrobot-v1", 500_000, -86, "-81.3 at 3e5 (SLM-Lab), -86.4 ± 1.3 at 5e5 (CleanRL)"),
    Claim("trpo Pendulum", "trpo", "Pendulum-v1", 300_000, -250, "-174.6 at 1e5, one run (rl-baselines3-zoo)"),
    Claim("ppo Pendulum", "ppo", "Pendulum-v1", 300_000, -200, "-174.9 at 3e5 (SLM-Lab)"),
    Claim(
        "trpo MountainCarContinuous",
        "trpo",
        "MountainCarContinuous-v0",
        300_000,
        90,
        "92.5 at 5e4, one run (rl-baselines3-zoo)",
    ),
    Claim(
        "ppo MountainCarContinuous",
        "ppo",
        "MountainCarContinuous-v0",
        300_000,
        90,
        "88.3 at 2e4, one run (rl-baselines3-zoo)",
    ),
]


def measure(claim: Claim) -> dict[str, Any]:
    """Train all seeds of a claim as one program; the seeds are 0 … seeds-1."""
    config = preset(claim.algo, claim.env, total_steps=claim.total_steps, **dict(claim.settings))
    train = make_train(config)

    def run(key: jax.Array) -> Any:
        state, metrics = train(key)
        return evaluate(config, state, state.key, 100).returns.mean(), metrics

    devices = jax.devices()
    devices = devices[: max(n for n in range(1, len(devices) + 1) if claim.seeds % n == 0)]
    keys = jax.vmap(jax.random.key)(np.arange(claim.seeds))
    compiled = over_runs(run, devices, vmap_size=best_vmap_size(config.on_host, devices)).lower(keys).compile()
    began = time.monotonic()
    scores, metrics = jax.block_until_ready(compiled(keys))
    seconds = time.monotonic() - began
    scores = np.asarray(scores, np.float64)
    _, low, high = iqm_over_seeds(scores)
    return {
        "algo": claim.algo,
        "env": claim.env,
        "at_least": claim.at_least,
        "published": claim.published,
        "reached": None if claim.at_least is None else bool(scores.mean() >= claim.at_least),
        "mean": scores.mean(),
        "std": scores.std(),
        "iqm": iqm(scores),
        "ci_low": low,
        "ci_high": high,
        "per_seed": scores.tolist(),
        "env_steps": config.env_steps,
        "steps_per_second": claim.seeds * config.env_steps / seconds,
        "settings": {name: str(value) for name, value in settings_of(config).items()},
        "curve": curve(config, metrics),
        "versions": versions(),
    }


def curve(config: Config, metrics: dict[str, jax.Array], points: int = 40) -> dict[str, list[Any]]:
    """Training returns at `points` places: mean over the episodes that ended since the last one, per seed."""
    returns, episodes = np.asarray(metrics["episode_return"]), np.asarray(metrics["episodes"])
    edges = np.unique(np.linspace(0, config.num_updates, points + 1).astype(int))
    return {
        "env_steps": (edges[1:] * config.num_envs * config.num_steps).tolist(),
        "episode_return": means_between(edges, returns, episodes),
    }


def means_between(edges: np.ndarray, returns: np.ndarray, episodes: np.ndarray) -> list[list[float | None]]:
    """[seeds][parts] Mean return of the episodes that ended in each part of [seeds, rows]; None where none did."""
    totals = np.where(episodes > 0, returns, 0.0) * episodes
    parts = [*itertools.pairwise(edges)]
    count = np.array([episodes[:, a:b].sum(axis=1) for a, b in parts])
    means = np.array([totals[:, a:b].sum(axis=1) for a, b in parts]) / np.maximum(count, 1e-9)
    means = np.where(count >= 1, means, np.nan)
    return [[None if np.isnan(x) else round(float(x), 2) for x in seed] for seed in means.T]


def write(results: dict[str, dict[str, Any]], stem: str, title: str, table: Callable[[Any], str]) -> None:
    """The data and their table, under results/."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{stem}.json").write_text(json.dumps(results, indent=1) + "\n")
    made = f"Made by `python benchmarks/{stem}.py`; mean of 100 greedy episodes per final policy."
    (RESULTS / f"{stem}.md").write_text(f"# {title}\n\n{made}\n\n{table(results)}")


def table(results: dict[str, dict[str, Any]]) -> str:
    """A row for each claim, in Markdown."""
    lines = [
        "| claim | steps | seeds | mean ± std | IQM [95%] | worst seed | at least | reached | published |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, r in results.items():
        several = len(r["per_seed"]) > 1
        spread = f" ± {r['std']:.1f}" if several else ""
        interval = f"{r['iqm']:.1f} [{r['ci_low']:.1f}, {r['ci_high']:.1f}]" if several else "–"
        target = "–" if r["at_least"] is None else f"{r['at_least']:g}"
        reached = "–" if r["reached"] is None else ("yes" if r["reached"] else "**no**")
        lines.append(
            f"| {name} | {r['env_steps']:,} | {len(r['per_seed'])} | {r['mean']:.1f}{spread} | "
            f"{interval} | {min(r['per_seed']):.1f} | {target} | {reached} | {r['published']} |"
        )
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, Any]]) -> None:
    """One panel per environment: IQM over seeds of the training return, with a 95% bootstrap band."""
    envs = list(dict.fromkeys(r["env"] for r in results.values()))
    rows = -(-len(envs) // 2)
    figure = Figure(figsize=(9, 3.2 * rows), dpi=110, layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    colors = dict(zip(("reinforce", "a2c", "npg", "trpo", "ppo", "ppo-penalty"), OKABE_ITO, strict=True))
    for axes, env in zip(panels, envs, strict=False):
        for name, r in results.items():
            if r["env"] != env:
                continue
            x = r["curve"]["env_steps"]
            style = "--" if "fixed" in name else "-"
            label = name.removesuffix(" " + name.split()[-1])
            look: Any = {"linestyle": style, "color": colors[r["algo"]], "linewidth": 1.5}
            plotting.curve(axes, x, r["curve"]["episode_return"], label, **look)
        axes.set(title=env, xlabel="environment steps per seed", ylabel="episode return in training")
        axes.xaxis.set_major_formatter(lambda steps, _: f"{steps / 1000:,.0f}k")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8)
    for axes in panels[len(envs) :]:
        axes.remove()
    figure.savefig(RESULTS / "learning.png")


OKABE_ITO = ("#999999", "#E69F00", "#009E73", "#D55E00", "#0072B2", "#CC79A7")


def run_claims(
    claims: list[Claim],
    stem: str,
    title: str,
    about: str | None,
    table: Callable[[Any], str] = table,
    figure: Callable[[Any], None] = lambda results: None,
) -> int:
    """The command that measures claims: those chosen by `--only`, each written beside what is known of the others.

    Returns the exit code: 1 if one that is known has not been reached. `about` is the command's help.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only those whose name contains this")
    only = parser.parse_args().only
    use_cpu_cores()
    path = RESULTS / f"{stem}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    for claim in claims:
        if only in claim.name:
            result = measure(claim) | {"command": f"python benchmarks/{stem}.py --only {claim.name!r}"}
            print(f"{claim.name}: {result['mean']:.2f} ± {result['std']:.2f}, at least {claim.at_least}", flush=True)
            if path.exists():  # another run of this command may have written to it
                known = json.loads(path.read_text())
            known[claim.name] = result
            shown = {c.name: known[c.name] for c in claims if c.name in known}
            write(shown, stem, title, table)
            figure(shown)
    return 0 if all(r["reached"] is not False for r in known.values()) else 1


if __name__ == "__main__":
    sys.exit(run_claims(CLAIMS, "learning", "Learning", __doc__, figure=draw))
