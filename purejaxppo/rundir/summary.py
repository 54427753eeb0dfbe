"""summary.json: what came of a run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.rundir.files import malformed, read_json, refusing, shown, to_float, to_json, write_json
from purejaxppo.rundir.manifest import digest
from purejaxppo.rundir.record import RunRecord
from purejaxppo.statistics import iqm_over_seeds


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
    cut_off: int  # episodes of the final evaluation, of all seeds, that had not ended after `eval_max_steps`
    success_rate: float  # of the episodes of the final evaluation; NaN where the environment does not tell
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
    played: Mapping[str, np.ndarray],
    failed: list[FailedSeed],
    seconds: dict[str, float],
    devices: list[jax.Device],
    env_steps: int,
) -> Summary:
    """Write it, and return it.

    Args:
        played: `eval_return` and where there is one `eval_success_rate`, means [seeds] of the final evaluation; and
            `cut`, how many episodes were cut off.
        env_steps: made by each seed.
    """
    returns = played["eval_return"]
    known, scores = returns[np.isfinite(returns)], returns.astype(float).tolist()
    middle, low, high = map(float, iqm_over_seeds(np.where(np.isfinite(returns), returns, np.nan)))
    mean = float(known.mean(dtype=np.float64)) if known.size else np.nan
    took = {**seconds, "training": seconds["run"] - seconds["evaluation"] - seconds["saving"]}
    summary: Any = {
        "algo": record.config.algo_name,
        "env": record.config.env_name,
        "num_seeds": len(record.seeds),
        "seeds": record.seeds,
        "env_steps": env_steps,
        "eval_return": EvalReturn(mean=mean, iqm=middle, ci_low=low, ci_high=high, per_seed=scores),
        "cut_off": int(played["cut"].sum()),
        **({"success_rate": float(played["eval_success_rate"].mean())} if "eval_success_rate" in played else {}),
        "failed_seeds": failed,
        "steps_per_second": env_steps * len(record.seeds) / seconds["run"],
        **{f"{name}_seconds": x for name, x in took.items()},
        "device": f"{len(devices)} × {devices[0].device_kind}",
    }
    write_json(record.directory / "summary.json", {**summary, "sha256": digest(to_json(summary))})
    return summary


def failed_summary(config: Config, seeds: list[int], why: str) -> Summary:
    """Of a run that has come to nothing; it is never written."""
    nothing = dict.fromkeys((name for name, of in EvalReturn.__annotations__.items() if of is float), np.nan)
    unknown: Any = dict.fromkeys((name for name, of in Summary.__annotations__.items() if of is float), np.nan)
    summary: Summary = unknown | {
        "algo": config.algo_name,
        "env": config.env_name,
        "num_seeds": len(seeds),
        "seeds": seeds,
        "env_steps": 0,
        "cut_off": 0,
        "eval_return": {**nothing, "per_seed": [np.nan] * len(seeds)},
        "failed_seeds": [FailedSeed(seed=seed, update=0, cause=why) for seed in seeds],
        "device": "–",
    }
    return summary


def read_summary(directory: Path, seeds: list[int]) -> Summary | None:
    """None if the run has not ended; NaN, 0 or "–" for what older versions did not write. Raises: UsageError."""
    path = directory / "summary.json"
    if not os.path.lexists(path):
        return None
    content = read_json(path)
    with refusing(path):
        if content.pop("sha256", None) not in (None, digest(content)):  # older versions wrote none
            raise malformed(path, "its SHA-256 is not what it says")
        scores = content["eval_return"]["per_seed"]
        failed = content.get("failed_seeds", content.get("sick_seeds", []))
        if not isinstance(scores, list) or len(scores) != len(seeds):
            raise malformed(path, f"per_seed does not hold one return for each of {len(seeds)} seeds")
        if not isinstance(failed, list) or any(found["seed"] not in seeds for found in failed):
            raise malformed(path, "failed_seeds is not a list of this run's seeds")
        summary: Any = _scalars(Summary, content) | {"num_seeds": len(seeds), "seeds": seeds}
        summary["eval_return"] = _scalars(EvalReturn, content["eval_return"]) | {"per_seed": [*map(to_float, scores)]}
        summary["failed_seeds"] = [
            FailedSeed(seed=x["seed"], update=int(x["update"]), cause=shown(x["cause"], 200)) for x in failed
        ]
        return summary


def _scalars(kind: Any, content: dict[str, Any]) -> dict[str, Any]:
    """The numbers and texts of a TypedDict, as a file has them."""
    read: dict[Any, Any] = {int: lambda x: int(x or 0), float: to_float, str: lambda x: "–" if x is None else shown(x)}
    return {name: read[of](content.get(name)) for name, of in kind.__annotations__.items() if of in read}
