"""The command line's flags, made from the fields of `Config`, the algorithm and `RunOptions`."""

import contextlib
import dataclasses
import difflib
import io
from typing import Annotated, Any, Literal

import tyro

from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.config import Config
from purejaxppo.presets import preset
from purejaxppo.types import UsageError


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """What a run is, beside its settings."""

    algo: Annotated[Literal["reinforce", "a2c", "npg", "trpo", "ppo", "ppo-penalty"], tyro.conf.arg(help="update rule")]
    env: Annotated[str, tyro.conf.arg(help="environment, or module:Class for one of your own; see --list-envs")]
    seed: Annotated[int, tyro.conf.arg(help="the first seed")] = 0
    num_seeds: Annotated[int, tyro.conf.arg(help="seeds seed … seed + num_seeds - 1, trained as one program")] = 8
    out: Annotated[str | None, tyro.conf.arg(help="run directory; must be new. None: runs/ENV-ALGO-seedS-TIME")] = None
    devices: Annotated[
        int | None, tyro.conf.arg(help="devices to spread the seeds over. None: all; cores are devices")
    ] = None
    log_interval: Annotated[int | None, tyro.conf.arg(help="updates per row of metrics.csv. None: 100 rows")] = None
    final_episodes: Annotated[int, tyro.conf.arg(help="episodes per seed of the evaluation after training")] = 100
    quiet: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="print errors only")] = False
    list_envs: Annotated[tyro.conf.FlagCreatePairsOff[bool], tyro.conf.arg(help="print the environments' names")] = (
        False
    )

    def check(self) -> None:
        """Raises: UsageError."""
        if not 0 <= self.seed <= 2**32 - self.num_seeds:
            raise UsageError(f"seed = {self.seed} must be within 0 … 2³² - num_seeds; the default is 0.")
        for name in ("num_seeds", "log_interval", "final_episodes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} = {value} must be a whole number in [1, inf); pass a positive one.")


def parse(argv: list[str]) -> tuple[Config, RunOptions]:
    """Flags → config and options. `--help` and errors show the flags and defaults of the `--algo` and `--env` given.

    Raises:
        UsageError: an unknown flag, or a value of the wrong type.
        SystemExit: after `--help`.
    """
    algo, env = _peek(argv, "algo", "ppo"), _peek(argv, "env", "CartPole-v1")
    base = preset(algo, env)
    options = RunOptions(algo=algo, env=env)  # type: ignore[arg-type]
    groups = {"run": options, "config": _flags(base, ("env", "algo")), algo.replace("-", "_"): _flags(base.algo, ())}
    known = {field.name.replace("_", "-") for group in groups.values() for field in dataclasses.fields(group)}
    _refuse_unknown_flags(argv, known | {"help"}, algo)
    flags = dataclasses.make_dataclass("Flags", [(name, type(group)) for name, group in groups.items()], frozen=True)
    parsed = _parse_in_one_line(flags, flags(**groups), argv)
    chosen, *settings = (getattr(parsed, name) for name in groups)
    numbers = {f.name: getattr(group, f.name) for group in settings for f in dataclasses.fields(group)}
    return preset(algo, env, **numbers), chosen


def _peek(argv: list[str], flag: str, default: str) -> str:
    """The value of one flag, the last if it is repeated; needed before the others can be known."""
    value = default
    for this, following in zip(argv, [*argv[1:], default], strict=False):
        if this == f"--{flag}":
            value = following
        elif this.startswith(f"--{flag}="):
            value = this.partition("=")[2]
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
        flag = token.partition("=")[0].replace("_", "-")
        bare = flag.removeprefix("--").removeprefix("no-")
        if not flag.startswith("--") or bare in known:
            continue
        name = bare.replace("-", "_")
        owners = [other for other, cls in ALGORITHMS.items() if name in {f.name for f in dataclasses.fields(cls)}]  # type: ignore[arg-type]
        close = difflib.get_close_matches(bare, known, n=1)
        hint = f"did you mean --{close[0]}?" if close else "--help shows all."
        if owners:
            hint = f"it belongs to --algo {' or '.join(owners)}."
        raise UsageError(f"{flag} is not a flag of --algo {algo}; {hint}")


def _parse_in_one_line(flags: Any, default: Any, argv: list[str]) -> Any:
    """tyro's parsing, its boxed errors turned into one line."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(
                flags,
                prog="python -m purejaxppo.run",
                description="Train one algorithm on many seeds, as one compiled program.",
                default=default,
                args=argv,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
    _, *lines = (line.strip(" │╭╮╰╯─┃") for line in boxed.getvalue().splitlines())
    text = " ".join(line for line in lines if line)
    for aside in ("Argument helptext:", "For full helptext"):
        text = text.partition(aside)[0]
    raise UsageError(f"{text.strip().rstrip('.')}; --help shows what each flag takes.")
