"""Where the rows of a run's log go beside metrics.csv: TensorBoard, Weights & Biases."""

import math
import secrets
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from purejaxppo.errors import UsageError, reason
from purejaxppo.experiment.options import HostOptions
from purejaxppo.rundir.metrics import Row
from purejaxppo.statistics import iqm

_GROUPS = {  # other metrics are the policy's
    "critic": ("explained_variance", "value_loss", "value_grad_norm"),
    "trust_region": ("accepted", "backtracks", "cg_residual", "predicted_gain", "predicted_kl", "step_norm", "xFx"),
    "training": ("alive", "learning_rate"),
    "episode": ("episodes", "success_rate"),
}
_GROUP_OF = {name: group for group, names in _GROUPS.items() for name in names}


def grouped(name: str) -> str:
    """A metric's name in TensorBoard and W&B, which show what is before the slash as one section: episode/return."""
    for prefix in ("episode", "eval"):
        if name.startswith(f"{prefix}_"):
            return f"{prefix}/{name.removeprefix(f'{prefix}_')}"
    return f"{_GROUP_OF.get(name, 'policy')}/{name}"


class TensorBoard:
    """OUT/tensorboard: one run of the IQM over seeds, or one for each seed. Its settings are TensorBoard's hparams."""

    def __init__(self, out: Path, seeds: list[int], per_seed: bool, settings: Mapping[str, Any], begin: int) -> None:
        """Steps from `begin` on, which an interrupted run may have left, are purged."""
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.summary import hparams, scalar

        runs = {f"seed_{seed}": {"seed": seed} for seed in seeds} if per_seed else {"iqm": {"num_seeds": len(seeds)}}
        places = [out / "tensorboard" / name for name in runs]
        for place in places:
            place.mkdir(parents=True, exist_ok=True)
        # written here, and not in a thread, whose failure on a full disk nobody would hear of
        self._writers = [EventsWriter(str(place / "events")) for place in places]
        self._per_seed, self._event, self._scalar = per_seed, Event, scalar
        shown = {name: x if isinstance(x, int | float | str) else str(x) for name, x in settings.items()}
        metrics = dict.fromkeys(["episode/return", *(["eval/return"] if settings.get("eval_interval") else [])], 0.0)
        for writer, own in zip(self._writers, runs.values(), strict=True):
            if begin:
                self._add(writer, step=begin, session_log=SessionLog(status=SessionLog.START))
            for part in hparams(shown | own, metrics):
                self._add(writer, summary=part)
            writer.flush()

    def write(self, update: int, env_steps: int, row: Row) -> None:
        for writer, values in zip(self._writers, _values(row, self._per_seed), strict=True):
            for name, value in values.items():
                self._add(writer, step=env_steps, summary=self._scalar(name, value))
            writer.flush()

    def _add(self, writer: Any, **event: Any) -> None:
        writer.write_event(self._event(wall_time=time.time(), **event))

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class WeightsAndBiases:
    """One group, with one run of the IQM over seeds, or one for each seed. A resumed run goes on in the same ones."""

    def __init__(self, out: Path, seeds: list[int], options: HostOptions, settings: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UsageError('--wandb needs Weights & Biases; pip install "purejaxppo[wandb]".') from error
        self._per_seed = options.run_per_seed
        group, unique = out.resolve().name, _wandb_id(out)
        runs = {f"seed{seed}": [seed] for seed in seeds} if options.run_per_seed else {"iqm": seeds}
        self._runs: list[Any] = []
        try:
            for name, own in runs.items():
                run = wandb.init(
                    project=options.wandb_project,
                    group=group,
                    name=f"{group}-{name}",
                    id=f"{unique}-{name}",
                    dir=out,
                    config={**settings, "seeds": own},
                    resume="allow",
                    reinit="create_new",
                    settings=wandb.Settings(silent=True),
                )
                self._runs.append(run)
        except wandb.Error as error:
            self.close()
            raise UsageError(f"--wandb cannot begin a run ({reason(error)}); or set WANDB_MODE=offline.") from error

    def write(self, update: int, env_steps: int, row: Row) -> None:
        for run, values in zip(self._runs, _values(row, self._per_seed), strict=True):
            run.log({**values, "update": update, "env_steps": env_steps}, step=env_steps)

    def close(self) -> None:
        for run in self._runs:
            run.finish()


def _wandb_id(out: Path) -> str:
    """What tells this run directory's runs from those of all others of its name; kept in it for when it is resumed."""
    path = out / "wandb" / "id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_text(secrets.token_hex(4))
    return path.read_text()


def _values(row: Row, per_seed: bool) -> list[dict[str, float]]:
    """For each run its finite values: of each seed, or the IQM over the seeds; of `alive` the mean, as each counts.

    They have the names that TensorBoard and W&B group by.
    """
    count = len(next(iter(row.values()))) if per_seed else 1

    def value(name: str, x: np.ndarray, i: int) -> float:
        return float(x[i]) if per_seed else float(np.mean(x)) if name == "alive" else iqm(x)

    runs = [{grouped(name): value(name, x, i) for name, x in row.items()} for i in range(count)]
    return [{name: value for name, value in values.items() if math.isfinite(value)} for values in runs]


def sinks_of(
    out: Path, seeds: list[int], options: HostOptions, settings: Mapping[str, Any], begin: int
) -> Iterator[TensorBoard | WeightsAndBiases]:
    """What the options ask for beside metrics.csv, begun one after the other; it shows all seeds."""
    if options.tensorboard:
        yield TensorBoard(out, seeds, options.run_per_seed, settings, begin)
    if options.wandb:
        yield WeightsAndBiases(out, seeds, options, settings)
