"""What is said of a run that fails: of its numbers, of its files."""

import os
from pathlib import Path

import flax
import jax
import optax
from jax.experimental import checkify

from purejaxppo import train
from purejaxppo.config import Config
from purejaxppo.rundir.summary import FailedSeed
from purejaxppo.train import update_step
from purejaxppo.types import TrainState

_OURS = os.path.join(os.path.dirname(train.__file__), "")
_LIBRARIES = tuple(os.path.join(os.path.dirname(str(module.__file__)), "") for module in (jax, flax, optax))


def explain(config: Config, state: TrainState, failed: FailedSeed) -> str:
    """Make the update that a frozen seed could not make once more, every operation checked for NaN.

    What the environment gave is not blamed on those whom it was given to, nor anything on the mean over no episodes.
    """
    checked = checkify.checkify(lambda state: update_step(config, state)[1], errors=checkify.float_checks)
    error, _ = jax.jit(checked)(state)
    found = error.get_exception()
    where = "no operation makes NaN of finite numbers, so look for a constant or an overflow"
    if found is not None:
        frame = next(x for x in found.traceback_info.frames if not x.file_name.startswith(_LIBRARIES))
        ours = frame.file_name.startswith(_OURS) and not frame.file_name.startswith(os.path.join(_OURS, "envs"))
        given = failed["cause"] in ("observation", "reward") and ours
        if not given and frame.function_name != update_step.__name__:
            where = f"{str(found).rstrip('.')} in {frame.function_name}, {frame.file_name}:{frame.line_num}"
    return (
        f"{failed['cause']} of seed {failed['seed']} is not finite in update {failed['update']}: {where}; mend the "
        "environment or lower --learning-rate."
    )


def file_remedy(error: BaseException | None, directory: Path) -> str:
    """What must be done, before anything else, about a file that could not be written: "make room, then "."""
    if not directory.is_dir():
        return f"{directory} is not there any more; move it back, then "
    while error:
        # as the system or tensorstore says it, and as we do
        if any(said in str(error) for said in ("No space left", "quota exceeded", "are free")):
            return "make room, then "
        error = error.__cause__
    return ""
