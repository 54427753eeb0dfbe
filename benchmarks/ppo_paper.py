"""Table 1 and figure 3 of the PPO paper (Schulman et al., 2017, arXiv:1707.06347), in Gymnasium's MuJoCo v5.

    python benchmarks/ppo_paper.py                    # all that has no row yet: some 20 hours on 2 cores
    python benchmarks/ppo_paper.py --only Reacher     # a word of a batch's name
    python benchmarks/ppo_paper.py --only switch      # what the paper leaves open, one choice at a time
    python benchmarks/ppo_paper.py --seeds 5          # more seeds, where they differ most first
    python benchmarks/ppo_paper.py --report           # the report of the rows that are there

A process for each core, with tasks of its own (`taskset -c 0 … --only Reacher`), makes about twice as many steps per
second as one process with both cores: see "Environments on the host" in NOTES.md.

Needs `pip install -e ".[gymnasium]"`. Table 1: PPO-clip with four ε, the adaptive penalty with three targets, the fixed
one with four β; figure 3: PPO-clip against A2C, A2C with a trust region, CEM, a policy gradient with adaptive step, and
TRPO. One million steps, scored as in the paper: the mean return of the last 100 training episodes, per task shifted and
scaled so that the random policy has 0 and the best run 1.

As the paper says: a 64-64 tanh network, T = 2048, Adam 3e-4, 10 epochs, minibatches of 64, γ 0.99, λ 0.95, no entropy
bonus, β 1 at first. It does not say what follows, which is as in openai/baselines of July 2017: one environment,
observations standardised, advantages standardised over the batch, rewards as they are, no annealing and no clipping of
gradients. Other than there, a time limit is no termination; the critic's change is not clipped, which baselines took
out a month later, when it began to anneal; standardised observations are clipped at ±10 instead of ±5, and no least
standard deviation of 0.1 is assumed of them; weights are orthogonal at first; Adam's ε is 1e-5. The random policy
draws actions uniformly.

The paper does not give the settings of the other methods. TRPO has δ, damping, γ, λ, batches and the critic's epochs of
baselines' `trpo_mpi`, but the network of all others, and Fisher-vector products over all samples. The adaptive step
aims at the KL 0.002, as in the homework that the paper refers to. A2C has batches of 128.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from long_runs import RESULTS, Batch, Row, scores, train
from matplotlib.figure import Figure
from scipy.stats import rankdata, spearmanr, trim_mean

from purejaxppo.statistics import Estimate, bootstrap

# Those that take the least time come first.
TASKS = ("InvertedPendulum", "Reacher", "HalfCheetah", "InvertedDoublePendulum", "Hopper", "Swimmer", "Walker2d")
PAPER = {
    **{"none": -0.39, "clip 0.1": 0.76, "clip 0.2": 0.82, "clip 0.3": 0.70},
    **{"adaptive 0.003": 0.68, "adaptive 0.01": 0.74, "adaptive 0.03": 0.71},
    **{"fixed 0.3": 0.62, "fixed 1": 0.71, "fixed 3": 0.72, "fixed 10": 0.69},
}
FIGURE = {
    "clip 0.2": "PPO-clip",
    "a2c": "A2C",
    "a2c-tr": "A2C + trust region",
    "cem": "CEM",
    "adaptive step": "policy gradient, adaptive step",
    "trpo": "TRPO",
}
# All in full: a preset, which PPO and TRPO have in some of these tasks, decides nothing.
SAME = "--total-steps 1000000 --log-interval 1 --normalize-observations --no-normalize-rewards"
STEP = (
    "--num-envs 1 --num-steps 2048 --learning-rate 3e-4 --no-anneal-learning-rate --num-epochs 10 --num-minibatches 32"
)
CRITIC = "--gamma 0.99 --gae-lambda 0.95 --value-clip-eps inf --max-grad-norm inf"
PPO = f"{SAME} {STEP} {CRITIC} --entropy-coef 0 --normalize-advantages batch"
SMALL_STEPS = f"{SAME} --num-envs 1 --num-steps 128 --learning-rate 7e-4 --entropy-coef 0 --gae-lambda 0.95"

# What the paper leaves open, in the tasks in which it is tried: the default's flag, and the flags of the other choice.
SWITCHED = ("InvertedDoublePendulum", "HalfCheetah")
SWITCHES = {
    "switch step and clipping annealed": ("--no-anneal-learning-rate", "--anneal-learning-rate --anneal clip_eps"),
    "switch critic's change clipped": ("--value-clip-eps inf", "--value-clip-eps 0.2"),
    "switch one update of both networks": ("", "--joint-update"),
    "switch observations within 5": ("", "--observation-clip 5"),
    "switch time limit is termination": ("", "--truncation-as-termination"),
}
SCALED = ("HalfCheetah", "Hopper", "Swimmer", "Walker2d")  # in which clipping is tried with rewards scaled, too


def scaled(method: str) -> str:
    return f"{method}, rewards scaled"


def batches_of(task: str) -> list[Batch]:
    """All programs of a task."""

    def batch(flags: str, methods: dict[str, str]) -> Batch:
        return Batch(task, f"gymnasium/{task}-v5", flags, methods)

    clip = {f"clip_eps={eps}": name for eps, name in (("inf", "none"), *((x, f"clip {x}") for x in (0.1, 0.2, 0.3)))}
    adaptive = {f"kl_target={x}": f"adaptive {x}" for x in (0.003, 0.01, 0.03)}
    fixed = {f"kl_coef={x:.1f}": f"fixed {x:g}" for x in (0.3, 1, 3, 10)}
    trpo = "--num-envs 1 --num-steps 1024 --gamma 0.99 --gae-lambda 0.98 --max-kl 0.01 --damping 0.1 --cg-iterations 10"
    switches = [
        batch(f"--algo ppo --clip-eps 0.2 {PPO.replace(default, '')} {other}", {"": name})
        for name, (default, other) in (SWITCHES.items() if task in SWITCHED else ())
    ]
    if task in SCALED:
        other = PPO.replace("--no-normalize-rewards", "--normalize-rewards")
        names = {setting: scaled(method) for setting, method in clip.items()}
        switches.append(batch(f"--algo ppo {other} --grid clip_eps=inf,0.1,0.2,0.3", names))
    return [
        batch(f"--algo ppo {PPO} --grid clip_eps=inf,0.1,0.2,0.3", clip),
        batch(f"--algo ppo-penalty {PPO} --kl-coef 1 --grid kl_target=0.003,0.01,0.03", adaptive),
        batch(f"--algo ppo-penalty {PPO} --no-adaptive --grid kl_coef=0.3,1,3,10", fixed),
        batch(f"--algo trpo {SAME} {trpo} --learning-rate 1e-3 --num-epochs 5 --num-minibatches 16", {"": "trpo"}),
        batch(f"--algo a2c {SMALL_STEPS}", {"": "a2c"}),
        batch(f"--algo a2c-tr {SMALL_STEPS}", {"": "a2c-tr"}),
        batch(f"--algo a2c {SAME} {STEP} {CRITIC} --entropy-coef 0 --desired-kl 0.002", {"": "adaptive step"}),
        batch(f"--algo cem {SAME} --num-envs 20 --num-steps 1000", {"": "cem"}),
        *switches,
    ]


def random_scores(path: Path, tasks: tuple[str, ...], episodes: int = 100) -> dict[str, float]:
    """Mean return of uniformly random actions in each task, measured once and kept."""
    known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
    for task in tasks:
        if task not in known:
            known[task] = float(np.mean([_random_return(task, seed) for seed in range(episodes)]))
            path.write_text(json.dumps(known, indent=1) + "\n")
    return known


def _random_return(task: str, seed: int) -> float:
    import gymnasium

    with gymnasium.make(f"{task}-v5") as env:
        env.reset(seed=seed)
        env.action_space.seed(seed)
        total, over = 0.0, False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, over = total + float(reward), terminated or truncated
    return total


def normalized(rows: list[Row], random: dict[str, float], score: str = "last_100") -> dict[tuple[str, str], np.ndarray]:
    """(task, method) ↦ scores [seeds], where the random policy has 0 and the best run of the task 1."""
    found = scores(rows, score)
    best: dict[str, float] = {}
    for (task, _), values in found.items():
        best[task] = max(best.get(task, -np.inf), *values)
    return {
        (task, method): (np.array(values) - random[task]) / (best[task] - random[task])
        for (task, method), values in found.items()
    }


def attainable(published: np.ndarray, error: float, draws: int = 10_000) -> np.ndarray:
    """2.5%, 50% and 97.5% of Spearman's correlation of two tables that differ by chance alone.

    Both are the `published` means with normal errors of this standard deviation: what to expect of a repetition that
    is right in all, as the paper's own table has errors of that kind, too.
    """
    rng = np.random.default_rng(0)
    one, other = rankdata(published + rng.normal(0.0, error, (2, draws, published.size)), axis=-1)
    one, other = (x - x.mean(axis=1, keepdims=True) for x in (one, other))
    found = np.sum(one * other, axis=1) / np.sqrt(np.sum(one**2, axis=1) * np.sum(other**2, axis=1))
    return np.percentile(found, (2.5, 50.0, 97.5))


def shuffled(published: np.ndarray, draws: int = 10_000) -> np.ndarray:
    """2.5%, 50% and 97.5% of Spearman's correlation with an order by chance, in which only the lowest has its place."""
    ranks = np.sort(rankdata(published))
    by_chance = np.random.default_rng(0).permuted(np.tile(ranks[1:], (draws, 1)), axis=1)
    found = [spearmanr(ranks, [ranks[0], *order]).statistic for order in by_chance]
    return np.percentile(found, (2.5, 50.0, 97.5))


def iqm_over_tasks(parts: list[np.ndarray]) -> Estimate:
    """The IQM over the scores of all tasks; the interval is a stratified bootstrap's, with tasks as strata."""
    return bootstrap(lambda *of: trim_mean(np.concatenate(of, axis=1), 0.25, axis=1), *parts)


def error_of_means(found: dict[tuple[str, str], np.ndarray], tasks: list[str], methods: Iterable[str]) -> float:
    """Standard error of a method's mean over these tasks, from the seeds' variance within the methods of each task."""
    each = [
        np.mean([found[task, method].var(ddof=1) / found[task, method].size for method in methods]) for task in tasks
    ]
    return float(np.sqrt(np.sum(each)) / len(tasks))


def report(rows: list[Row]) -> None:
    """The table and the figure of the rows that are there."""
    random = random_scores(RESULTS / "ppo_paper_random.json", tuple(dict.fromkeys(row["task"] for row in rows)))
    of_paper = [row for row in rows if row["method"] in PAPER]
    found = normalized(of_paper, random)
    whole = [task for task in TASKS if all((task, method) in found for method in PAPER)]
    lines = [
        "# Table 1 of the PPO paper",
        "",
        "Made by `python benchmarks/ppo_paper.py`: one million steps; mean return of the last 100 training episodes,",
        "per task 0 = random policy, 1 = best run of the table; means over tasks and seeds, and the IQM with its 95%",
        "interval, seeds resampled within each task (three a task: such an interval is narrow).",
        f"Tasks that all settings have: {', '.join(whole) or 'none yet'}.",
        "",
        f"| setting | the paper | ours | IQM [95%] | runs | {' | '.join(whole)} |",
        "|---|---|---|---|---|" + "---|" * len(whole),
    ]
    ours = {}
    for method, published in PAPER.items():
        parts = [found[task, method] for task in whole]
        if not parts:
            continue
        together = np.concatenate(parts)
        ours[method] = float(together.mean())
        middle, low, high = iqm_over_tasks(parts)
        each = " | ".join(f"{part.mean():.2f}" for part in parts)
        lines.append(
            f"| {method} | {published} | {ours[method]:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}] | "
            f"{together.size} | {each} |"
        )
    if ours:
        published = np.array([PAPER[method] for method in ours])
        each = {t: spearmanr(published, np.array([found[t, m].mean() for m in ours])).statistic for t in whole}
        overall = spearmanr(published, np.array([*ours.values()])).statistic
        lines += ["", f"Spearman's correlation with the paper's order: {overall:.2f}; of single tasks with it: "]
        lines[-1] += ", ".join(f"{task} {x:.2f}" for task, x in each.items()) + "."
        error = error_of_means(found, whole, [*ours])
        low, middle, high = attainable(published, error)
        lines += [
            f"The seeds' spread gives each of our means a standard error of {error:.2f}. Were the paper's means the",
            f"truth, two tables with such errors would have a correlation of {middle:.2f} [{low:.2f}, {high:.2f}].",
        ]
        low, middle, high = shuffled(published)
        rest = spearmanr(*(np.array([of[method] for method in ours if method != "none"]) for of in (PAPER, ours)))
        lines += [
            f"With “none” last and the others in an order by chance it would be {middle:.2f} [{low:.2f}, {high:.2f}];",
            f"without “none”, ours is {rest.statistic:.2f}.",
        ]
    lines += [
        "",
        "# Figure 3: mean return of the last 100 training episodes, and of 100 greedy episodes of the final policy",
    ]
    lines += ["", "| task | method | seeds | last 100 | final policy |", "|---|---|---|---|---|"]
    lines += _compared(rows, TASKS, FIGURE)
    lines += ["", "# Clipping with ε 0.2, one choice at a time that the paper leaves open", ""]
    lines += ["| task | choice | seeds | last 100 | final policy |", "|---|---|---|---|---|"]
    choices = {"clip 0.2": "as above"} | {x: x.removeprefix("switch ") for x in SWITCHES}
    lines += _compared(rows, SWITCHED, choices)
    lines += ["", "# Clipping, and the same with rewards scaled by the standard deviation of discounted returns", ""]
    lines += ["| task | method | seeds | last 100 | final policy |", "|---|---|---|---|---|"]
    clip = [method for method in PAPER if method.startswith(("none", "clip"))]
    lines += _compared(rows, SCALED, {name: name for method in clip for name in (method, scaled(method))})
    (RESULTS / "ppo_paper.md").write_text("\n".join(lines) + "\n")
    draw([row for row in rows if row["method"] in FIGURE])


def _compared(rows: list[Row], tasks: Iterable[str], names: dict[str, str]) -> list[str]:
    """Lines of a table, one for each task and method that has rows."""
    last, final = scores(rows, "last_100"), scores(rows, "final")
    return [
        f"| {task} | {name} | {len(last[key])} | {_spread(last[key])} | {_spread(final[key])} |"
        for task in tasks
        for method, name in names.items()
        if (key := (task, method)) in last
    ]


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):,.1f} ± {np.std(values):,.1f}"


COLORS = ("#0072B2", "#E69F00", "#56B4E9", "#999999", "#009E73", "#D55E00")


def draw(rows: list[Row]) -> None:
    """Figure 3: a panel per task, the mean over seeds of the training return, and the range of the seeds."""
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    figure = Figure(figsize=(12, 3.1 * max(1, -(-(len(tasks) + 1) // 4))), dpi=110, layout="constrained")
    panels = figure.subplots(max(1, -(-(len(tasks) + 1) // 4)), 4, squeeze=False).ravel()
    lines: dict[str, Any] = {}
    for axes, task in zip(panels, tasks, strict=False):
        for (method, name), color in zip(FIGURE.items(), COLORS, strict=True):
            curves = [r["curve"] for r in rows if (r["task"], r["method"]) == (task, method)]
            if not curves:
                continue
            y = np.array(curves, float)
            x = np.arange(1, y.shape[1] + 1) / y.shape[1]
            some = ~np.isnan(y).all(axis=0)
            lines[name] = axes.plot(x[some], np.nanmean(y[:, some], axis=0), color=color, linewidth=1.4)[0]
            axes.fill_between(
                x[some],
                np.nanmin(y[:, some], axis=0),
                np.nanmax(y[:, some], axis=0),
                color=color,
                alpha=0.12,
                linewidth=0,
            )
        axes.set(title=f"{task}-v5", xlabel="million steps", ylabel="episode return")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for axes in panels[len(tasks) :]:
        axes.axis("off")
    if lines:
        panels[len(tasks)].legend([*lines.values()], [*lines], loc="center", frameon=False)
    figure.savefig(RESULTS / "ppo_paper.png")


if __name__ == "__main__":
    every = [batch for task in TASKS for batch in batches_of(task)]
    sys.exit(train(every, "ppo_paper", __doc__, report, seeds=3))
