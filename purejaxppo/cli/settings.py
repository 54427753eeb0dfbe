"""What `run` and `sweep` take: the settings of a run and its options, as flags."""

import dataclasses
import secrets
import shlex
import time
from pathlib import Path
from typing import Any, TypeVar

from purejaxppo.algorithms import ALGORITHMS, hyperparameters
from purejaxppo.cli.flags import Group, flag_name, flags_of, parse_flags, parse_groups, refuse_unknown, value_of
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.experiment import seed_list
from purejaxppo.experiment.options import HostOptions
from purejaxppo.fields import check_fields, static
from purejaxppo.presets import preset, preset_of
from purejaxppo.rundir.files import read_toml
from purejaxppo.rundir.record import read_config

More = TypeVar("More")
DEBUG = "say which parts run as kernels of ours, and stop when a seed's numbers turn non-finite"
DISTRIBUTED = "this is process I of N that train together; off: it is by itself; see the guide One run on many hosts"
PLACE = "coordinator=HOST:PORT,processes=N,process=I[,timeout=60][,wait=300]"
DETECTED = "as JAX detects it in SLURM, Open MPI, Kubernetes and cloud TPU"
NEW_DIRECTORY = "directory of the {}; must be new"
GO_ON = "go on with the {} in this directory; see --resume DIR --help"
ENV_AGAIN = "needed again where it is module:Class: a file is not trusted to run code"


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run is, beside its settings."""

    algo: str = static("ppo", "update rule", choices=ALGORITHMS)
    env: str = static("CartPole-v1", "environment, or ENV,key=value, or module:Class of your own; see purejaxppo envs")
    config: str | None = static(None, "TOML of flags, or another run's config.json; flags here win", metavar="FILE")
    schedule: str | None = static(None, "TOML with stages, as tune --method pbt writes it", metavar="FILE")
    seed: int = static(
        0, "the first seed; runs of one setting whose seeds overlap share results", interval="[0, 4294967295]"
    )
    num_seeds: int = static(8, "seeds seed … seed + num_seeds - 1, trained as one program", interval="[1, 1e6]")
    out: str | None = static(None, NEW_DIRECTORY.format("run"), metavar="DIR", usual="runs/ENV-ALGO-seedS-TIME")
    resume: str | None = static(None, GO_ON.format("run"), metavar="DIR")
    resume_or_start: bool = static(
        False, "go on with this run if --out holds it already, else begin it: for jobs that are queued again"
    )
    devices: int | None = static(None, "devices to use; cores are devices", usual="all, or one core for one small run")
    distributed: str | None = static(None, DISTRIBUTED, metavar=PLACE, usual=DETECTED)
    debug: bool = static(False, DEBUG)
    quiet: bool = static(False, "print errors only")

    @property
    def seeds(self) -> list[int]:
        """Raises: UsageError."""
        return seed_list(self.num_seeds, self.seed)

    def directory(self, before: str = "", after: str = "") -> str:
        """`--out`, or a new name: the time is in it, and what tells jobs of the same second apart."""
        env = self.env.replace("/", "-").replace(":", "-")  # which not every system lets be in a name
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        return self.out or f"runs/{before}{env}-{self.algo}{after}-{stamp}"


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Of a command that has none of its own."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """What may be said of a run that goes on."""

    resume: str = static(dataclasses.MISSING, "the run's directory", metavar="DIR")
    total_steps: int | None = static(None, "train longer than was planned; not if the learning rate is annealed")
    env: str | None = static(None, ENV_AGAIN)
    devices: int | None = static(None, "devices; others change the last digits", usual="as many as before")
    mesh: str | None = static(None, "see run --help", metavar="run=N,env=M,net=2", usual="as before, if it fits")
    distributed: str | None = static(None, DISTRIBUTED, metavar=PLACE, usual=DETECTED)
    debug: bool = static(False, DEBUG)
    quiet: bool = static(False, "print errors only")


@dataclasses.dataclass(frozen=True)
class PolicyOptions:
    """Which policy of which run: what is common to the commands that do something with one."""

    directory: Path = static(dataclasses.MISSING, "the run's directory", metavar="DIR", positional=True)
    seed: str = static("best", "the best by the final evaluation, or a seed's number", metavar="best|K")
    checkpoint: str = static("last", "the last, or the environment steps of one that was kept", metavar="last|STEPS")
    env: str | None = static(None, ENV_AGAIN)


def groups_of(options: RunOptions, more: Any, without: tuple[str, ...] = ()) -> dict[str, Group]:
    """The flags of `options`, `without` some, of its algorithm, and of `more`. Raises: UsageError."""
    base, given = preset(options.algo, options.env), preset_of(options.algo, options.env)
    return {
        "run": Group(options, without),
        type(more).__name__.removesuffix("Options").lower(): Group(more),
        "config": Group(base, ("env", "algo", "policy_network", "critic_network"), given),
        type(base.algo).__name__: Group(base.algo, (), given),
        "host": Group(HostOptions()),
    }


def parse_settings(
    argv: list[str],
    prog: str,
    about: str,
    more: More,
    kind: type[RunOptions] = RunOptions,
    without: tuple[str, ...] = (),
) -> tuple[Config, RunOptions, HostOptions, More]:
    """Flags → config, options of a `kind` `without` some, and `more`, a dataclass of a command's own options.

    `--help` and errors show the flags and defaults of the `--algo` and `--env` given.

    Raises:
        UsageError: an unknown flag, or a value that cannot be.
        SystemExit: after `--help`.
    """
    algo, env = value_of(argv, "algo", "ppo"), value_of(argv, "env", "CartPole-v1")
    groups = groups_of(kind(algo=algo, env=env), more, without)
    refuse_unknown(argv, flags_of(groups.values()), f"--algo {algo}", hyperparameters())
    run, own, config, algorithm, host = parse_groups(groups, argv, prog, about)
    options, given = kind(**run), {flag_name(token).replace("-", "_") for token in argv}
    check_fields(options)
    _ = options.seeds  # refuses what are none
    if options.resume_or_start and not options.out:
        raise UsageError("--resume-or-start needs a run directory to look into; pass --out DIR.")
    settings = {name: value for name, value in {**config, **algorithm}.items() if name in given}
    if host["init_from"] and "env" not in given:
        _check_default_env(Path(host["init_from"]), env)
    if options.schedule:
        if settings.get("stages"):
            raise UsageError("stages and schedule both say which numbers change when; leave out one of them.")
        settings["stages"] = read_schedule(Path(options.schedule))
    return preset(algo, env, **settings), options, HostOptions(**host), type(more)(**own)


def _check_default_env(begun_from: Path, env: str) -> None:
    """Raises: UsageError: the run to begin from was trained in another environment than the default, `env`."""
    about = begun_from / "config.json"
    theirs = read_config(about)["settings"]["env"] if about.is_file() else env  # what is no run is told by who reads it
    if theirs != env:
        raise UsageError(
            f"init_from = {str(begun_from)!r} was trained on {theirs:.80}, and without --env a run is on {env}; "
            f"add --env {shlex.quote(theirs)}, or --env {env} if you mean that."
        )


def read_schedule(path: Path) -> tuple[str, ...]:
    """The `stages` of a TOML file. Raises: UsageError: it has none."""
    stages = read_toml(path).get("stages")
    if not isinstance(stages, list) or not stages:
        raise UsageError(f"schedule = {str(path)!r} has no stages; give stages = ['20480 learning_rate=1e-4'], say.")
    return tuple(map(str, stages))


def parse_resume(argv: list[str], prog: str, what: str = "run", without: tuple[str, ...] = ()) -> ResumeOptions:
    """What is said of a run, or what else it is, `without` some. Raises: UsageError, SystemExit after `--help`."""
    known = flags_of([Group(ResumeOptions, without)])
    for token in argv:
        if (name := flag_name(token)) and f"--{name}" not in {*known, "--help"}:
            raise UsageError(
                f"--{name} cannot be changed on --resume of a {what}; what can: "
                f"{', '.join(sorted({*known} - {'--resume'}))}."
            )
    return parse_flags(ResumeOptions, argv, prog, f"Go on exactly where a {what} was.", without)
