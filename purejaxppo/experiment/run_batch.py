"""What one program trains together: all seeds of a run, or of several runs of a sweep whose numbers differ."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from purejaxppo.config import Config
from purejaxppo.errors import UsageError, plural
from purejaxppo.experiment.learning_curve import learning_curve
from purejaxppo.experiment.options import HostOptions
from purejaxppo.experiment.timetable import Timetable
from purejaxppo.parallel.hosts import group
from purejaxppo.parallel.runs import laid_out, on_host, own_runs
from purejaxppo.presets import lacks_preset, settings_of, with_settings
from purejaxppo.rundir import checkpoint
from purejaxppo.rundir.learnt import learnt_shapes, read_learnt
from purejaxppo.rundir.lock import check_claim
from purejaxppo.rundir.metrics import MetricsTable, Row
from purejaxppo.rundir.record import RunRecord, resume_command
from purejaxppo.rundir.snapshot import Snapshot
from purejaxppo.rundir.summary import FailedSeed, Summary, write_summary
from purejaxppo.statistics import iqm
from purejaxppo.train import init
from purejaxppo.types import Learnt, TrainState


@dataclasses.dataclass(frozen=True)
class RunBatch:
    """All seeds of one run directory; or, given `out`, of several that a sweep trains as one program.

    The program trains equally many runs on each device: copies of the last member fill it up.
    """

    records: Sequence[RunRecord]  # config.json of each run directory; only the settings `differing` differ
    devices: list[jax.Device]
    differing: tuple[str, ...] = ()
    size: int = 0  # runs that the program is made for; 0: as few as these members need
    out: Path | None = None  # where checkpoints of all of them are kept until the end; None: the run directory
    sweep: Path | None = None  # the directory of the sweep that they are part of; None: a run by itself
    claimed: Path | None = None  # what must be this process's where it saves; None: the run directory
    command: str = "sweep"  # what goes on with it, where `sweep` is given; `tune` for a study
    source: Learnt | None = None  # what `init_from` has learnt, if it was read already

    @property
    def config(self) -> Config:
        return self.records[0].config

    @cached_property
    def options(self) -> HostOptions:
        return HostOptions.of(self.records[0].options)

    @cached_property
    def timetable(self) -> Timetable:
        config, options = self.config, self.options
        every = options.log_interval or 1, config.eval_interval, options.checkpoint_interval
        return Timetable(config.num_updates, *every)

    @property
    def directory(self) -> Path:
        return self.out or self.records[0].directory

    @property
    def resume_command(self) -> str:
        """What to type to go on."""
        if self.sweep is None:
            return resume_command("run", self.records[0].directory, self.config.env)
        by_worker = self.claimed not in (None, self.sweep)
        return resume_command(self.command, self.sweep, self.config.env, "--join" if by_worker else "--resume")

    @cached_property
    def members(self) -> list[tuple[RunRecord, int]]:
        """Run directory and seed of each."""
        return [(record, seed) for record in self.records for seed in record.seeds]

    def members_of(self, record: int) -> slice:
        """Which members the n-th run directory has."""
        size = len(self.records[0].seeds)
        return slice(record * size, (record + 1) * size)

    @cached_property
    def rows(self) -> np.ndarray:
        """[runs] Which member each run of the program is."""
        count = len(self.members)
        runs = self.size or self.options.padded(self.config, count, self.devices)
        return np.minimum(np.arange(runs), count - 1)

    @cached_property
    def own_rows(self) -> slice:
        """The runs of the program that lie on this process's devices, if only in part."""
        return own_runs(len(self.rows), self.devices, self.options.mesh_shape.devices_per_run)

    @cached_property
    def own(self) -> slice:
        """The members that this process logs and saves: none where others share its run, and it is not their first."""
        start, stop = (min(i, len(self.members)) for i in (self.own_rows.start, self.own_rows.stop))
        first = self.devices[self.own_rows.start * len(self.devices) // len(self.rows)]
        return slice(start, stop if first.process_index == jax.process_index() else start)

    def own_of(self, record: int) -> slice:
        """Which seeds of the n-th run directory are this process's own."""
        its = self.members_of(record)
        return self.own_among(its, its.start)

    def own_among(self, members: slice, first: int = 0) -> slice:
        """Which of some members are this process's own, counted from member `first` on."""
        start, stop = max(members.start, self.own.start), min(members.stop, self.own.stop)
        return slice(start - first, max(start, stop) - first)

    def of_all(self, own: Row) -> dict[str, np.ndarray]:
        """Values of all members from those of each process's; in others than process 0, those of others are missing."""
        if (parts := group().gathered(own)) is not None:
            return {name: np.concatenate([part[name] for part in parts]) for name in own}
        everybody = {}
        for name, x in own.items():
            nothing = np.nan if np.issubdtype(x.dtype, np.floating) else 0
            everybody[name] = np.full((len(self.members), *x.shape[1:]), nothing, x.dtype)
            everybody[name][self.own] = x
        return everybody

    @property
    def shared(self) -> bool:
        """Whether no process can make an update of a run alone: several share it, or devices share its environments."""
        shape = self.options.mesh_shape
        return shape.env > 1 or len({device.process_index for device in self.devices[: shape.devices_per_run]}) > 1

    @property
    def own_count(self) -> int:
        return int(self.own.stop - self.own.start)

    def spread(self, own: np.ndarray) -> np.ndarray:
        """Values of this process's runs [own_rows], as the program takes them of all [runs]: it reads no others."""
        if len(own) == len(self.rows):
            return own
        everybody = np.zeros((len(self.rows), *own.shape[1:]), own.dtype)
        everybody[self.own_rows] = own
        return everybody

    @cached_property
    def keys(self) -> jax.Array:
        """[runs]"""
        seeds = np.asarray([seed for _, seed in self.members], np.uint32)
        return jax.vmap(partial(jax.random.key, impl=self.records[0].prng))(seeds[self.rows])

    @cached_property
    def swept(self) -> dict[str, np.ndarray]:
        """The settings `differing`, each [runs]."""
        seeds, values = len(self.records[0].seeds), self._differing_values
        return {name: np.repeat(np.float32(x), seeds)[self.rows] for name, x in values.items()}

    @cached_property
    def learnt(self) -> Learnt | None:
        """What each run [runs] begins with, if it begins with another's: seed by seed, and again from the first.

        Once there is a checkpoint, it is of no account, and the other run may be gone. Raises: UsageError.
        """
        if not self.options.init_from:
            return None
        if checkpoint.steps_saved(self.directory / "checkpoints"):
            shapes = learnt_shapes(self.config)
            return jax.tree.map(lambda x: np.zeros((len(self.rows), *x.shape), x.dtype), shapes)
        learnt = self.source or read_learnt(Path(self.options.init_from), self.config)
        position = self.rows % len(self.records[0].seeds)
        return jax.tree.map(lambda x: x[position % len(x)], learnt)

    @cached_property
    def full_config(self) -> Config:
        """The config with all values, one for each run directory, of the settings `differing`."""
        return with_settings(self.config, self._differing_values)

    @cached_property
    def _differing_values(self) -> dict[str, np.ndarray]:
        settings = [settings_of(record.config) for record in self.records]
        return {name: np.asarray([own[name] for own in settings], np.float64) for name in self.differing}

    @cached_property
    def state_shapes(self) -> TrainState:
        """The shapes of all members' states, which only a run that is resumed must know."""
        own = {name: x[: len(self.members)] for name, x in self.swept.items()}
        begin = jax.vmap(lambda key, own: init(with_settings(self.config, own), key))
        return jax.eval_shape(begin, self.keys[: len(self.members)], own)

    def restored(self, snapshot: Snapshot, fresh: TrainState, metrics: int) -> tuple[TrainState, np.ndarray]:
        """What a checkpoint has, laid out as the `fresh` state is: states [runs], and totals [own_rows, metrics].

        Environments on the host have no state on disk, and stay as they are in `fresh`.

        Raises:
            UsageError: it has other metrics.
        """
        totals: np.ndarray = snapshot.arrays["totals"][self.rows[self.own_rows]]
        if totals.shape[1] != metrics:
            raise UsageError(
                f"{snapshot.directory} logs other metrics than this version; resume with the one that began the run."
            )
        kept = snapshot.state(self.state_shapes)
        state = laid_out(jax.tree.map(lambda old: old[self.rows], kept), fresh)
        if self.config.on_host:
            begun = fresh.reward_normalizer.discounted_return
            normalizer = state.reward_normalizer.replace(discounted_return=begun)
            state = state.replace(rollout=fresh.rollout, reward_normalizer=normalizer)
        return state, totals

    @property
    def notes(self) -> list[str]:
        """What is to be said before they begin."""
        config, notes = self.config, []
        if config.env_steps != config.total_steps:
            notes.append(
                f"total_steps = {config.total_steps:,} is rounded up to {config.env_steps:,}: "
                f"{plural(config.num_updates, 'update')} of {config.steps_per_update:,} steps."
            )
        if lacks_preset(config):
            what = "observations are not" if config.normalize_rewards else "neither observations nor rewards are"
            notes.append(
                f"no preset for {config.algo_name} on {config.env_name}: {what} normalised; for "
                "continuous actions begin with the settings in the guide Choose settings"
            )
        if not config.environment.has_time_limit:
            notes.append(
                f"{config.env} declares no time limit: evaluations cut episodes off after eval_max_steps = "
                f"{config.eval_max_steps:,}"
            )
        return notes

    def write_checkpoint(
        self,
        directory: Path,
        members: slice,
        config: Config,
        done: int,
        state: TrainState,
        totals: np.ndarray,
        returns: np.ndarray,
        seconds: Mapping[str, float],
        logs: Sequence[Mapping[str, Any]],
    ) -> None:
        """A checkpoint of some members, after `done` updates, in one of their run directories; others go if need be."""
        own = returns[members]
        about = {
            "update": done,
            "env_steps": done * config.steps_per_update,
            "score": iqm(own),
            "scores": own,
            "seconds": {name: x * len(own) / len(returns) for name, x in seconds.items()},
            "seeds": [seed for _, seed in self.members[members]],
            "settings": settings_of(config),
            "logs": logs,
        }
        here = on_host(state)  # cut on a device, each shape would need a kernel compiled for it
        mine = self.own_among(members, self.own.start)
        kept = {"state": jax.tree.map(lambda x: x[mine], here), "totals": totals[mine]}
        group().by_leader(lambda: check_claim(self.claimed or self.directory))
        written, keep = directory / "checkpoints" / str(about["env_steps"]), self.options.keep_checkpoints
        checkpoint.save(written, kept, about, [seed for _, seed in self.members[self.own_among(members)]])
        group().by_leader(lambda: checkpoint.prune(directory / "checkpoints", keep, written))

    def write_outcome(
        self,
        i: int,
        log: MetricsTable,
        played: Mapping[str, np.ndarray],
        failed: Mapping[int, FailedSeed],
        seconds: Mapping[str, float],
        done: int,
    ) -> Summary:
        """The summary and the learning curve of the i-th run directory, which gets its share of the seconds."""
        record, own = self.records[i], self.members_of(i)
        share = {name: x / len(self.records) for name, x in seconds.items()}
        here = [found for member, found in failed.items() if own.start <= member < own.stop]
        steps = done * self.config.steps_per_update
        title, returns = f"{record.config.algo_name} on {record.config.env_name}", log.metric("episode_return")
        learning_curve(record.directory / "learning_curve.png", title, log.env_steps, returns)
        mine = {name: x[own] for name, x in played.items()}
        return write_summary(record, mine, here, share, self.devices, steps)  # last: with it, a run is finished

    def newest_checkpoint(self, warn: Callable[[str], None]) -> Snapshot | None:
        """The last checkpoint that is whole, None if none was saved: the same in all processes. Raises: UsageError."""
        seeds = [seed for _, seed in self.members]

        def check(found: Snapshot) -> None:
            found.check(self.full_config, seeds, self.state_shapes)

        snapshot = checkpoint.newest_in_all(self.directory / "checkpoints", check, warn)
        if snapshot and snapshot.about["update"] > self.config.num_updates:
            raise UsageError(f"{snapshot.directory} has {snapshot.about['update']} updates; raise --total-steps.")
        return snapshot
