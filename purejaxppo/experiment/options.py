"""How the host runs an experiment.

Nothing here changes what a seed learns, but for three: `init_from` begins with what another run has learnt; a `mesh`
with `env=M` gives other episodes; any other mesh, and `seed_mode`, may change the last digits.
"""

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import jax

from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import check_fields, static
from purejaxppo.parallel.devices import first_devices
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.runs import best_vmap_size, check_processes, padded_count

SEED_MODES = ("vmap", "map")
_COUNT = "[1, 1e9]"


class MeshShape(NamedTuple):
    """`run=N,env=M,net=2`: how devices are shared out."""

    run: int | None = None  # groups of devices that the runs lie on; None: as many as there are
    env: int = 1  # devices that share the environments of each run
    net: int = 1  # 2 if the policy and the critic of each run have devices of their own

    @property
    def devices_per_run(self) -> int:
        return self.env * self.net

    @property
    def needed(self) -> int:
        """Devices, at least."""
        return (self.run or 1) * self.devices_per_run

    def within(self, devices: int) -> str:
        """The mesh without `run`; without anything if that does not fit so many devices either."""
        shared = {name: size for name in ("env", "net") if (size := getattr(self, name)) > 1}
        return ",".join(f"{name}={size}" for name, size in shared.items() if self.devices_per_run <= devices)

    @classmethod
    def parse(cls, text: str) -> "MeshShape":
        """Raises: UsageError."""
        sizes: dict[str, int] = {}
        for part in text.split(",") if text else ():
            name, _, size = part.partition("=")
            if name not in cls._fields or name in sizes or not (size.isdecimal() and 0 < int(size) < 2**20):
                raise UsageError(f"mesh = {text!r:.80} must be run=N,env=M,net=2, N, M ≥ 1; leave out what is 1.")
            sizes[name] = int(size)
        if sizes.get("net", 1) > 2:
            raise UsageError(f"mesh = {text!r:.80}: net must be 1 or 2, for policy and critic; pass net=2.")
        return cls(**sizes)


@dataclasses.dataclass(frozen=True)
class HostOptions:
    """What is logged, saved and evaluated, and how often."""

    log_interval: int | None = static(None, "updates per row of metrics.csv", interval=_COUNT, usual="100 rows")
    checkpoint_interval: int | None = static(None, "updates per checkpoint", interval=_COUNT, usual="every 30 seconds")
    keep_checkpoints: int = static(3, "checkpoints kept: so many of the last, and the best", interval=_COUNT)
    final_episodes: int = static(100, "episodes per seed of the evaluation after training", interval=_COUNT)
    tensorboard: bool = static(False, "log for TensorBoard, too, in OUT/tensorboard; viewer: pip install tensorboard")
    wandb: bool = static(False, "log to Weights & Biases, too; needs the extra of that name")
    wandb_project: str = static("purejaxppo", "project in Weights & Biases")
    init_from: str = static("", "begin with the networks and statistics of this run", metavar="DIR")
    run_per_seed: bool = static(False, "in TensorBoard and W&B, a run for each seed instead of one of their IQM")

    mesh: str = static(
        "",
        "N × M devices, twice as many with net=2: runs lie on N, M share the environments of each, and net=2 gives its "
        "policy and critic devices of their own",
        usual="M 1, net 1, N as many as there are",
        metavar="run=N,env=M,net=2",
    )
    seed_mode: str = static("vmap", "a device's runs: vmap, at once; map, in turn, as if alone", choices=SEED_MODES)

    def check(self) -> None:
        """Raises: UsageError."""
        check_fields(self)
        _ = self.mesh_shape  # refuses what it cannot read

    @cached_property
    def mesh_shape(self) -> "MeshShape":
        """What `mesh` says. Raises: UsageError."""
        return MeshShape.parse(self.mesh)

    def vmap_size(self, config: Config, devices: list[jax.Device]) -> int | None:
        """Runs of a device that are made at once, None being all; see `over_runs`."""
        return 1 if self.seed_mode == "map" else best_vmap_size(config.on_host, devices)

    def padded(self, config: Config, runs: int, devices: list[jax.Device]) -> int:
        """Runs, equally many on all devices and in all lots: what is left over trains copies of the last one."""
        groups = len(devices) // self.mesh_shape.devices_per_run
        return padded_count(runs, groups, self.vmap_size(config, devices))

    def place(self, config: Config, runs: int, devices: list[jax.Device]) -> list[jax.Device]:
        """The devices to take, of those there are.

        Raises:
            UsageError: there are not so many, or runs or environments cannot be shared out equally.
        """
        if self.seed_mode == "map" and config.on_host:
            raise UsageError(
                f"seed_mode = 'map' is not for {config.env!r}, which the host steps for all; leave it out."
            )
        if config.on_host and group().count > 1:
            raise UsageError(f"env = {config.env!r} is stepped by the workers of one process; pass --distributed off.")
        shape = self.mesh_shape
        rows = shape.run or max(1, min(runs, len(devices) // shape.devices_per_run))
        needed = rows * shape.devices_per_run
        if needed > len(devices):
            raise UsageError(f"mesh = {self.mesh!r} takes {needed} devices, and there are {len(devices)}; pass fewer.")
        if shape.run and runs % shape.run:
            raise UsageError(f"mesh = {self.mesh!r}: run = {shape.run} must divide {runs} runs; pass one that does.")
        config.check_mesh(shape.env, shape.net)
        chosen, size = first_devices(devices, needed), shape.devices_per_run
        if not shape.run and len({device.process_index for device in chosen}) < group().count:
            each = needed // group().count // size * size  # fewer devices, of which every process has some
            chosen = first_devices(devices, each * group().count) if each else chosen
        check_processes(chosen, size, runs, self.vmap_size(config, chosen))
        return chosen

    @classmethod
    def of(cls, options: "HostOptions | Mapping[str, Any] | None") -> "HostOptions":
        """Of what config.json keeps, or of the same. Raises: UsageError: an unknown name, or a value that cannot be."""
        if not isinstance(options, HostOptions):
            options, known = options or {}, {field.name for field in dataclasses.fields(cls)}
            for unknown in options.keys() - known:
                raise UsageError(f"options: {unknown!r:.80} is not one of: {', '.join(sorted(known))}.")
            options = cls(**options)
        options.check()
        return options
