"""The command line: how good a trained policy is, in the environment it was trained in and in Gymnasium's."""

import dataclasses
import itertools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table

from purejaxppo.cli.command import start_jax
from purejaxppo.cli.flags import Command
from purejaxppo.cli.settings import PolicyOptions
from purejaxppo.config import Config
from purejaxppo.envs.base import host_failures
from purejaxppo.errors import UsageError, plural
from purejaxppo.evaluation import evaluate
from purejaxppo.experiment.progress import plain_console
from purejaxppo.fields import static
from purejaxppo.keys import EVALUATION
from purejaxppo.parallel.runs import over_runs, padded_count
from purejaxppo.policy.frames import in_gymnasium
from purejaxppo.policy.load import load_all, seed_index
from purejaxppo.rundir.files import check_out, write_json
from purejaxppo.rundir.record import read_record
from purejaxppo.statistics import Estimate, bootstrap, decimals, interval_text, iqm_over_seeds, return_text
from purejaxppo.types import TrainState

Result = dict[str, Any]
# returns, lengths, which were cut off and, where the environment tells, which were a success, [E] each
Episodes = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(PolicyOptions):
    """What is evaluated, and where."""

    seed: str = static("all", "all, best (by the final evaluation), or a seed's number", metavar="all|best|K")
    episodes: int = static(100, "episodes per seed, each from its start to its end", interval="[1, 1e6]")
    gymnasium: str | None = static(None, "compare with this Gymnasium environment; CartPole-v1, say", metavar="ID")
    eval_max_steps: int | None = static(None, "longest episode, in steps", interval="[1, 1e9]", usual="as in the run")
    greedy: bool = static(False, "take the policy's mode. Neither this nor --sample: as in the run")
    sample: bool = static(False, "take samples of the policy")
    episode_seed: int = static(0, "what the episodes are drawn with", interval="[0, 4294967295]")
    json: str | None = static(None, "write the figures to this file, too", metavar="FILE")


def print_evaluation(options: EvaluateOptions) -> None:
    """Evaluate, and print the figures; write them to a file if one is given. Raises: UsageError."""
    if options.greedy and options.sample:
        raise UsageError("greedy and sample exclude each other; pass one of them.")
    if options.json:
        check_out(Path(options.json), flag="json")
    start_jax()
    result = evaluate_run(options)
    console, rows = plain_console(), results_table(result)
    whole = Measurement.get(console, console.options.update(width=1000), rows)
    console.width = max(console.width, whole.maximum)  # a terminal wraps what is too wide; rich would cut digits
    console.print(rows)
    for place, found in result["returns"].items():
        if cut := sum(row.get("cut_off", 0) for row in found["per_seed"]):
            limit = f"eval_max_steps = {result['eval_max_steps']:,}"
            console.print(f"{place}: {plural(cut, 'episode')} cut off after {limit}", soft_wrap=True)
    if options.json:
        write_json(Path(options.json), result)


def evaluate_run(options: EvaluateOptions) -> Result:
    """The figures that the command prints. Raises: UsageError: the options cannot be met."""
    record = read_record(options.directory, options.env)
    config = record.config
    if options.greedy or options.sample:
        config = config.replace(eval_greedy=options.greedy)
    if options.eval_max_steps is not None:
        config = config.replace(eval_max_steps=options.eval_max_steps)
    there = in_gymnasium(config, options.gymnasium) if options.gymnasium else None
    snapshot, states = load_all(record, options.checkpoint)
    every = range(len(record.seeds))
    chosen = list(every) if options.seed == "all" else [seed_index(record, snapshot, options.seed)]
    states = jax.tree.map(lambda x: x[np.asarray(chosen)], states)
    seeds = [record.seeds[i] for i in chosen]
    here = play_episodes(config, states, seeds, options)
    places = {"port": summarize(here)}
    if there:
        original = play_episodes(there, states, seeds, options)
        places |= {"gymnasium": summarize(original), "difference": difference(here, original)}
    return {
        "directory": str(options.directory),
        "algo": config.algo_name,
        "env": config.env_name,
        "gymnasium": options.gymnasium,
        "env_steps": snapshot.about["env_steps"],
        "episodes": options.episodes,
        "eval_max_steps": config.eval_max_steps,
        "policy": "greedy" if config.eval_greedy else "sample",
        "episode_seed": options.episode_seed,
        "seeds": seeds,
        "returns": places,
    }


def play_episodes(config: Config, states: TrainState, seeds: list[int], options: EvaluateOptions) -> list[Episodes]:
    """Each seed's episodes in the environment of `config`, all at once."""
    devices = jax.devices()[: len(seeds)]
    padded = np.minimum(np.arange(padded_count(len(seeds), len(devices))), len(seeds) - 1)
    tagged = jax.random.fold_in(jax.random.key(options.episode_seed), EVALUATION)
    keys = jax.vmap(partial(jax.random.fold_in, tagged))(np.asarray(seeds, np.uint32))
    states, keys = jax.tree.map(lambda x: x[padded], (states, keys))
    with config.environment as env, host_failures(env, [seeds[i] for i in padded]):
        played = over_runs(lambda state, key: evaluate(config, state, key, options.episodes), devices)(states, keys)
        returns, *others = map(np.asarray, jax.tree.leaves(played))
    return [(np.asarray(returns[i], np.float64), *(x[i] for x in others)) for i in range(len(seeds))]


def summarize(played: list[Episodes]) -> Result:
    """What is said of each seed's episodes in one place, and of all seeds."""
    rows = []
    for returns, lengths, cut, *success in played:
        spread = {"std": returns.std(), "min": returns.min(), "max": returns.max(), "mean_length": lengths.mean()}
        row = _row(bootstrap(lambda x: x.mean(axis=1), returns))
        rates = {"success_rate": success[0].mean()} if success else {}
        rows.append(row | spread | {"cut_off": int(cut.sum())} | rates)
    means = [row["mean"] for row in rows]
    return {"per_seed": rows, "over_seeds": _row(iqm_over_seeds(means), "iqm")}


def difference(here: list[Episodes], there: list[Episodes]) -> Result:
    """Mean return in Gymnasium minus that in the port, of each seed's policy and in the mean over these policies."""
    pairs = [(a, b) for (a, *_), (b, *_) in zip(here, there, strict=True)]
    rows = [_row(bootstrap(_mean_difference, *pair)) for pair in pairs]
    return {"per_seed": rows, "over_seeds": _row(bootstrap(_mean_difference, *itertools.chain(*pairs)))}


def _mean_difference(*resamples: np.ndarray) -> np.ndarray:
    """Of pairs of resampled returns here and there, [R, E] each: the mean difference [R]."""
    pairs = zip(resamples[::2], resamples[1::2], strict=True)
    return np.mean([there.mean(axis=1) - here.mean(axis=1) for here, there in pairs], axis=0)


def _row(estimate: Estimate, point: str = "mean") -> dict[str, float]:
    return dict(zip((point, "ci_low", "ci_high"), map(float, estimate), strict=True))


def results_table(result: Result) -> Table:
    """A row for each seed and place."""
    trained = f"{result['algo']} on {result['env']} after {result['env_steps']:,} steps"
    rows = Table(
        title=f"{trained}: {plural(result['episodes'], 'episode')} per seed, {result['policy']}",
        caption="95% bootstrap intervals: of a mean over episodes, of an IQM over seeds",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    for column in ("seed", "", "return", "95% interval", "std", "min", "max", "length"):
        rows.add_column(column, justify="right" if column else "left", no_wrap=True)
    if any("success_rate" in row for place in result["returns"].values() for row in place["per_seed"]):
        rows.add_column("success", justify="right")
    names = {"port": "port", "gymnasium": result["gymnasium"], "difference": "difference"}
    returns: dict[str, Any] = result["returns"]
    digits = decimals([row[key] for row in returns["port"]["per_seed"] for key in ("min", "max")])

    def add(label: str, place: str, row: dict[str, float]) -> None:
        mean, low, high, *spread = (x for name, x in row.items() if name not in ("cut_off", "success_rate"))
        name = names[place] if returns.keys() - {"port"} else ""
        shown = [return_text(x, digits) for x in (mean, *spread)]
        shown.insert(1, interval_text(low, high, digits))
        shown += [return_text(row["success_rate"])] if "success_rate" in row else []
        rows.add_row(label, name, *shown, end_section=place == "difference")

    for i, seed in enumerate(result["seeds"]):
        for place, found in returns.items():
            add(str(seed) if place == "port" else "", place, found["per_seed"][i])
    rows.add_section()
    for place, found in returns.items() if result["seeds"][1:] else ():
        add("mean" if place == "difference" else "IQM", place, found["over_seeds"])
    return rows


main = Command("evaluate", EvaluateOptions, "Evaluate what a run has learnt.", print_evaluation)
