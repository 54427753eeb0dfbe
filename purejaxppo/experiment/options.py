"""How the host runs an experiment; nothing here changes what is learnt, `env_devices` only what is drawn."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from purejaxppo.config import Config
from purejaxppo.types import UsageError

Flag = tyro.conf.FlagCreatePairsOff[bool]
RunDirectory = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR", help="the run's directory")]
OneSeed = Annotated[str, tyro.conf.arg(metavar="best|K", help="the best by the final evaluation, or a seed's number")]
Checkpoint = Annotated[
    str, tyro.conf.arg(metavar="last|STEPS", help="the last, or the environment steps of one that was kept")
]
EnvAgain = Annotated[
    str | None, tyro.conf.arg(help="needed again where it is module:Class: a file is not trusted to run code")
]


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """What is logged, saved and evaluated, and how often."""

    log_interval: Annotated[int | None, tyro.conf.arg(help="updates per row of metrics.csv. None: 100 rows")] = None
    checkpoint_interval: Annotated[
        int | None, tyro.conf.arg(help="updates between checkpoints. None: one every 30 seconds")
    ] = None
    keep_checkpoints: Annotated[int, tyro.conf.arg(help="checkpoints kept: so many of the last, and the best")] = 3
    final_episodes: Annotated[int, tyro.conf.arg(help="episodes per seed of the evaluation after training")] = 100
    tensorboard: Annotated[Flag, tyro.conf.arg(help="log for TensorBoard, too, in OUT/tensorboard")] = False
    wandb: Annotated[Flag, tyro.conf.arg(help="log to Weights & Biases, too; needs the extra of that name")] = False
    wandb_project: Annotated[str, tyro.conf.arg(help="project in Weights & Biases")] = "purejaxppo"
    run_per_seed: Annotated[
        Flag, tyro.conf.arg(help="in TensorBoard and W&B, a run for each seed instead of one of their IQM")
    ] = False

    env_devices: Annotated[
        int, tyro.conf.arg(help="devices that share each seed: each has its part of the environments")
    ] = 1

    def check(self) -> None:
        """Raises: UsageError."""
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            if value is None and field.default is None:
                continue
            if kind in (str, bool) and not isinstance(value, kind):
                raise UsageError(f"{field.name} = {value!r} must be a {kind.__name__}; the default is {field.default}.")
            if kind not in (str, bool) and (type(value) is not int or value < 1):
                raise UsageError(f"{field.name} = {value!r} must be a whole number in [1, inf); pass a positive one.")

    def check_devices(self, config: Config, devices: int) -> None:
        """Raises: UsageError, so many devices cannot be shared out like this."""
        if self.env_devices > 1 and getattr(config.environment, "on_host", False):
            raise UsageError(
                f"env_devices = {self.env_devices} must be 1 for {config.env!r}, whose environments run on the host; "
                "leave it out: seeds are spread over devices all the same."
            )
        if devices % self.env_devices:
            raise UsageError(
                f"env_devices = {self.env_devices} must divide the {devices} devices in use; pass --devices, or "
                "--env-devices 1."
            )
        kind, length = ("sequences", 1) if config.is_recurrent else ("samples", config.num_steps)
        part, rest = divmod(config.num_envs, self.env_devices)
        if rest or part * length % config.num_minibatches:
            raise UsageError(
                f"num_envs = {config.num_envs} must be a multiple of env_devices = {self.env_devices}, and each part's "
                f"{kind} of num_minibatches = {config.num_minibatches}; pass another --num-envs."
            )

    @classmethod
    def of(cls, options: dict[str, Any]) -> "HostOptions":
        """As config.json keeps them.

        Raises:
            UsageError: an unknown name, or a value that cannot be.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        for unknown in options.keys() - known:
            raise UsageError(f"options: {unknown!r:.80} is not one of: {', '.join(sorted(known))}; restore the file.")
        chosen = cls(**options)
        chosen.check()
        return chosen
