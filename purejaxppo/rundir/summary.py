"""summary.json: what came of a run."""

import os
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np

from purejaxppo.rundir.files import malformed, read_json, refusing, shown, to_float, write_json
from purejaxppo.rundir.record import RunRecord
from purejaxppo.statistics import iqm, iqm_interval


class EvalReturn(TypedDict):
    """The final evaluation."""

    mean: float
    iqm: float
    ci_low: float  # the ends of the IQM's 95% bootstrap interval
    ci_high: float
    per_seed: list[float]  # NaN where a seed's environment gives nothing else


class FailedSeed(TypedDict):
    """A seed whose numbers turned non-finite."""

    seed: int
    update: int
    cause: str


class Summary(TypedDict):
    """What summary.json holds."""

    algo: str
    env: str
    num_seeds: int
    seeds: list[int]
    env_steps: int  # of each seed; fewer than planned where all had failed before
    eval_return: EvalReturn
    failed_seeds: list[FailedSeed]
    steps_per_second: float  # of all seeds, by run_seconds
    compile_seconds: float
    run_seconds: float  # all after compilation: training, evaluation and saving
    training_seconds: float
    evaluation_seconds: float  # at intervals and after training
    saving_seconds: float  # of checkpoints
    device: str


def write_summary(
    record: RunRecord,
    returns: np.ndarray,
    failed: list[FailedSeed],
    seconds: dict[str, float],
    devices: list[jax.Device],
    env_steps: int,
) -> Summary:
    """Write it, and return it; `returns` [seeds] are those of the final evaluation, `env_steps` made by each seed."""
    config, seeds = record.config, record.seeds
    low, high = iqm_interval(returns)
    known = returns[~np.isnan(returns)]
    summary = Summary(
        algo=config.algo_name,
        env=config.env_name,
        num_seeds=len(seeds),
        seeds=seeds,
        env_steps=env_steps,
        eval_return=EvalReturn(
            mean=float(known.mean()) if known.size else np.nan,
            iqm=iqm(returns),
            ci_low=low,
            ci_high=high,
            per_seed=returns.astype(float).tolist(),
        ),
        failed_seeds=failed,
        steps_per_second=env_steps * len(seeds) / seconds["run"],
        compile_seconds=seconds["compile"],
        run_seconds=seconds["run"],
        training_seconds=seconds["run"] - seconds["evaluation"] - seconds["saving"],
        evaluation_seconds=seconds["evaluation"],
        saving_seconds=seconds["saving"],
        device=f"{len(devices)} × {devices[0].device_kind}",
    )
    write_json(record.directory / "summary.json", summary)
    return summary


def read_summary(directory: Path, seeds: list[int]) -> Summary | None:
    """None if the run has not ended. What older versions did not write is NaN, "–" or nothing.

    Raises:
        UsageError: the file is damaged.
    """
    path = directory / "summary.json"
    if not os.path.lexists(path):
        return None
    content = read_json(path)
    with refusing(path):
        final = content["eval_return"]
        scores, failed = final["per_seed"], content.get("failed_seeds", content.get("sick_seeds", []))
        if not isinstance(scores, list) or len(scores) != len(seeds):
            raise malformed(path, f"per_seed does not hold one return for each of {len(seeds)} seeds")
        if not isinstance(failed, list) or any(found["seed"] not in seeds for found in failed):
            raise malformed(path, "failed_seeds is not a list of this run's seeds")
        return Summary(
            algo=shown(content.get("algo", "–")),
            env=shown(content.get("env", "–")),
            num_seeds=len(seeds),
            seeds=seeds,
            env_steps=int(content.get("env_steps", 0)),
            eval_return=EvalReturn(
                mean=to_float(final.get("mean")),
                iqm=to_float(final.get("iqm")),
                ci_low=to_float(final.get("ci_low")),
                ci_high=to_float(final.get("ci_high")),
                per_seed=[to_float(score) for score in scores],
            ),
            failed_seeds=[
                FailedSeed(seed=found["seed"], update=int(found["update"]), cause=shown(found["cause"], 200))
                for found in failed
            ],
            steps_per_second=to_float(content.get("steps_per_second")),
            compile_seconds=to_float(content.get("compile_seconds")),
            run_seconds=to_float(content.get("run_seconds")),
            training_seconds=to_float(content.get("training_seconds")),
            evaluation_seconds=to_float(content.get("evaluation_seconds")),
            saving_seconds=to_float(content.get("saving_seconds")),
            device=shown(content.get("device", "–")),
        )
