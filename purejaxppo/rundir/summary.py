"""summary.json: what came of a run."""

from typing import Any

import jax
import numpy as np

from purejaxppo.presets import settings_of
from purejaxppo.rundir.files import write_json
from purejaxppo.rundir.record import RunRecord
from purejaxppo.statistics import iqm, iqm_interval

Summary = dict[str, Any]


def write_summary(
    record: RunRecord,
    returns: np.ndarray,
    sick: list[dict[str, Any]],
    seconds: dict[str, float],
    devices: list[jax.Device],
) -> Summary:
    """Write it, and return it; `returns` [seeds] are those of the final evaluation."""
    config, seeds, out = record.config, record.seeds, record.directory
    algo, env = settings_of(config)["algo"], config.env if isinstance(config.env, str) else repr(config.env)
    low, high = iqm_interval(returns)
    known = returns[~np.isnan(returns)]  # a sick seed's environment may give nothing else
    mean = float(known.mean()) if known.size else np.nan
    summary = {
        "algo": algo,
        "env": env,
        "num_seeds": len(seeds),
        "seeds": seeds,
        "env_steps": config.env_steps,
        "eval_return": {
            "mean": mean,
            "iqm": iqm(returns),
            "ci_low": low,
            "ci_high": high,
            "per_seed": returns.astype(float).tolist(),
        },
        "sick_seeds": sick,
        "steps_per_second": config.env_steps * len(seeds) / seconds["run"],
        "compile_seconds": seconds["compile"],
        "run_seconds": seconds["run"],
        "device": f"{len(devices)} × {devices[0].device_kind}",
    }
    write_json(out / "summary.json", summary)
    return summary
