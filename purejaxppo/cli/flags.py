"""The flags of a run, made from the fields of `Config`, the algorithm and the options of the host."""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

import tyro

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.command import closest_flag, flag_name, parse_flags
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.experiment.options import EnvAgain, Flag, HostOptions
from purejaxppo.presets import preset

_PROG = "purejaxppo run"
More = TypeVar("More")


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run is, beside its settings."""

    algo: Annotated[Literal["reinforce", "a2c", "npg", "trpo", "ppo", "ppo-penalty"], tyro.conf.arg(help="update rule")]
    env: Annotated[
        str,
        tyro.conf.arg(
            help="environment, ENV,key=value with parameters, or module:Class for one of your own; see --list-envs"
        ),
    ]
    seed: Annotated[int, tyro.conf.arg(help="the first seed")] = 0
    num_seeds: Annotated[int, tyro.conf.arg(help="seeds seed … seed + num_seeds - 1, trained as one program")] = 8
    out: Annotated[str | None, tyro.conf.arg(help="run directory; must be new. None: runs/ENV-ALGO-seedS-TIME")] = None
    resume: Annotated[
        str | None, tyro.conf.arg(help="go on with the run in this directory; --resume DIR --help shows its flags")
    ] = None
    devices: Annotated[
        int | None,
        tyro.conf.arg(
            help="devices to spread the seeds over; cores are devices. None: all, or one core for one small run"
        ),
    ] = None
    debug: Annotated[Flag, tyro.conf.arg(help="stop when a seed's numbers turn non-finite, and name the operation")] = (
        False
    )
    quiet: Annotated[Flag, tyro.conf.arg(help="print errors only")] = False
    list_envs: Annotated[Flag, tyro.conf.arg(help="print the environments' names")] = False

    def check(self) -> None:
        """Raises: UsageError."""
        if not 0 <= self.seed <= 2**32 - self.num_seeds:
            raise UsageError(f"seed = {self.seed} must be within 0 … 2³² - num_seeds; the default is 0.")
        if self.num_seeds < 1:
            raise UsageError(f"num_seeds = {self.num_seeds} must be a whole number in [1, inf); pass a positive one.")


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """What may be said of a run that goes on."""

    resume: Annotated[str, tyro.conf.arg(help="the run's directory")]
    total_steps: Annotated[
        int | None, tyro.conf.arg(help="train longer than was planned; not if the learning rate is annealed")
    ] = None
    env: EnvAgain = None
    devices: Annotated[int | None, tyro.conf.arg(help="None: as many as before; others change the last digits")] = None
    mesh: Annotated[str | None, tyro.conf.arg(metavar="run=N,env=M,net=2", help="None: as before, if it fits")] = None
    debug: Annotated[Flag, tyro.conf.arg(help="stop when a seed's numbers turn non-finite, and name the operation")] = (
        False
    )
    quiet: Annotated[Flag, tyro.conf.arg(help="print errors only")] = False


def parse(argv: list[str]) -> tuple[Config, RunOptions, HostOptions]:
    """Flags → config and options, see `parse_with`."""
    about = "Train one algorithm on many seeds, as one compiled program."
    return parse_with(argv, _PROG, about, _Nothing())[:3]


@dataclasses.dataclass(frozen=True)
class _Nothing:
    """No more options."""


def parse_with(argv: list[str], prog: str, about: str, more: More) -> tuple[Config, RunOptions, HostOptions, More]:
    """Flags → config, options and `more`, a dataclass of a command's own options.

    `--help` and errors show the flags and defaults of the `--algo` and `--env` given.

    Raises:
        UsageError: an unknown flag, or a value of the wrong type.
        SystemExit: after `--help`.
    """
    algo, env = value_of(argv, "algo", "ppo"), value_of(argv, "env", "CartPole-v1")
    base = preset(algo, env)
    options = RunOptions(algo=algo, env=env)  # type: ignore[arg-type]
    groups = {
        "run": options,
        "host": HostOptions(),
        "more": more,
        "config": _flags(base, ("env", "algo", "policy_network", "critic_network")),
        algo.replace("-", "_"): _flags(base.algo, ()),
    }
    known = {field.name.replace("_", "-") for group in groups.values() for field in dataclasses.fields(group)}
    _refuse_unknown_flags(argv, known | {"help"}, algo)
    flags = dataclasses.make_dataclass("Flags", [(name, type(group)) for name, group in groups.items()], frozen=True)
    parsed = parse_flags(flags, argv, prog, about, flags(**groups))
    chosen, host, others, *settings = (getattr(parsed, name) for name in groups)
    numbers = {f.name: getattr(group, f.name) for group in settings for f in dataclasses.fields(group)}
    return preset(algo, env, **numbers), chosen, host, others


def parse_resume(argv: list[str], prog: str = _PROG) -> ResumeOptions:
    """Raises: UsageError, a flag that a run cannot change; SystemExit after `--help`."""
    known = {field.name.replace("_", "-") for field in dataclasses.fields(ResumeOptions)}
    for token in argv:
        if (name := flag_name(token)) and name not in known | {"help"}:
            raise UsageError(
                f"--{name} cannot be changed on --resume; what can: {', '.join(f'--{x}' for x in sorted(known))}."
            )
    return parse_flags(ResumeOptions, argv, prog, "Go on exactly where a run was.")


def value_of(argv: list[str], flag: str, default: str) -> str:
    """The value of one flag, the last if it is repeated; needed before the others can be known."""
    value = default
    for this, following in zip(argv, [*argv[1:], default], strict=False):
        if flag_name(this) == flag:
            value = this.partition("=")[2] if "=" in this else following
    return value


def _flags(owner: Any, without: tuple[str, ...]) -> Any:
    """A plain dataclass instance with the fields, help texts and present values of a config or algorithm."""
    fields = []
    for field in dataclasses.fields(owner):
        if field.name in without:
            continue
        choices, interval = field.metadata.get("choices"), field.metadata.get("interval")
        kind: Any = Literal[choices] if choices else field.type
        text = field.metadata["help"] + (f", in {interval}" if interval else "")
        fields.append((field.name, Annotated[kind, tyro.conf.arg(help=text)], getattr(owner, field.name)))
    return dataclasses.make_dataclass(type(owner).__name__, fields, frozen=True)()


def _refuse_unknown_flags(argv: list[str], known: set[str], algo: str) -> None:
    """Name a flag that is none here, and the one that was meant or the algorithms that it belongs to."""
    for token in argv:
        if not (name := flag_name(token)) or name in known:
            continue
        field = name.replace("-", "_")
        owners = [other for other, cls in ALGORITHMS.items() if field in {f.name for f in dataclasses.fields(cls)}]  # type: ignore[arg-type]
        hint = f"it belongs to --algo {' or '.join(owners)}." if owners else closest_flag(name, known)
        raise UsageError(f"{token.partition('=')[0]} is not a flag of --algo {algo}; {hint}")
