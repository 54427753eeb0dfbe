"""Which operation made the first number that is not finite."""

import os
from typing import Any

import jax
from jax.experimental import checkify

from purejaxppo.config import Config
from purejaxppo.train import update_step
from purejaxppo.types import TrainState


def explain(config: Config, state: TrainState, failed: dict[str, Any]) -> str:
    """Make the update that a frozen seed could not make once more, every operation checked for NaN."""
    checked = checkify.checkify(lambda state: update_step(config, state)[1], errors=checkify.float_checks)
    error, _ = jax.jit(checked)(state)
    found = error.get_exception()
    where = "no operation makes NaN of finite numbers, so look for a constant or an overflow"
    if found is not None:
        frame = next(x for x in found.traceback_info.frames if f"{os.sep}jax{os.sep}" not in x.file_name)
        where = f"{str(found).rstrip('.')} in {frame.function_name}, {frame.file_name}:{frame.line_num}"
    return (
        f"{failed['cause']} of seed {failed['seed']} is not finite in update {failed['update']}: {where}; mend the "
        "environment or lower --learning-rate."
    )
