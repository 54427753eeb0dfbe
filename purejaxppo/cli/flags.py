"""Flags from the fields of dataclasses, or from files that say the same; what is wrong with them in one line."""

import contextlib
import dataclasses
import io
import itertools
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from purejaxppo.algorithms import ALGORITHMS, hyperparameters
from purejaxppo.cli.command import exit_code
from purejaxppo.config import Config
from purejaxppo.errors import UsageError
from purejaxppo.fields import check_fields, did_you_mean, whole_number, without_none
from purejaxppo.presets import as_flags, without_derived
from purejaxppo.rundir.files import read_toml
from purejaxppo.rundir.record import read_config, refuse_code, usual_settings

Options = TypeVar("Options")
_EITHER = ("minibatch_size", "num_minibatches")  # one makes the other
_MOST_TOLD = 8  # flags that are not known
_READERS: dict[Any, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", whole_number),
    float: ("FLOAT", float),
    str: ("STR", str),
}

_MARKS: dict[str, Any] = {"positional": tyro.conf.Positional, "append": tyro.conf.UseAppendAction}


class Group(NamedTuple):
    """Flags that are shown together in `--help`."""

    owner: Any  # a dataclass, or an instance of one: then its values are the defaults
    without: Collection[str] = ()  # fields that are no flags
    preset: Collection[str] = ()  # fields whose defaults come from a preset

    @property
    def fields(self) -> "list[dataclasses.Field[Any]]":
        return [field for field in dataclasses.fields(self.owner) if field.name not in self.without]


class Command(NamedTuple):
    """A command whose flags are the fields of one dataclass."""

    name: str
    options: type
    about: str
    act: Callable[[Any], None]

    def __call__(self, argv: list[str]) -> int:
        """Act, and return the exit code, see `exit_code`."""
        prog = f"purejaxppo {self.name}"
        return exit_code(lambda: self.act(parse_flags(self.options, argv, prog, self.about)))


def parse_flags(
    kind: type[Options], argv: Sequence[str], prog: str, about: str, without: Collection[str] = ()
) -> Options:
    """One dataclass from its flags, `without` some.

    Raises:
        UsageError: an unknown flag, a value that its field does not allow, or one that is missing.
        SystemExit: after `--help`.
    """
    group = Group(kind, without)
    refuse_unknown(argv, flags_of([group]), prog)
    options = kind(**vars(_parse(flags_class(group), argv, prog, about)))
    check_fields(options)
    return options


def parse_groups(groups: Mapping[str, Group], argv: Sequence[str], prog: str, about: str) -> list[dict[str, Any]]:
    """The values of each group of flags, by the field's name. Raises as `parse_flags`."""
    parsed = _parse(grouped(groups), argv, prog, about)
    return [vars(getattr(parsed, title)) for title in groups]


def grouped(groups: Mapping[str, Group]) -> type:
    """A dataclass for tyro with a field for each group."""
    kinds = {title: flags_class(group) for title, group in groups.items()}
    return dataclasses.make_dataclass("Flags", [(title, kind, kind()) for title, kind in kinds.items()], frozen=True)


def flags_of(groups: Collection[Group]) -> set[str]:
    """All flags of some groups."""
    fields = (field for group in groups for field in group.fields if not field.metadata.get("positional"))
    return {"--" + field.name.replace("_", "-") for field in fields}


def flags_class(group: Group) -> type:
    """A dataclass for tyro with the names, types, defaults and help texts of a group's fields."""
    owner = group.owner if isinstance(group.owner, type) else type(group.owner)
    hints, fields = typing.get_type_hints(owner), []
    for field in group.fields:
        kind, told, interval = hints[field.name], field.metadata, field.metadata.get("interval")
        default = getattr(group.owner, field.name, dataclasses.MISSING)
        if told.get("choices"):
            kind = Literal[tuple(told["choices"])]
        elif reader := _reader(kind):
            kind = Annotated[kind, reader]
        plain = (default is False and field.name not in group.preset) or default is None or default in ("", ())
        usual = told.get("usual") or ("" if plain else "{}")
        notes = ["required"] if default is dataclasses.MISSING else [f"default: {usual}"] * bool(usual)
        notes += ["from the preset"] * (field.name in group.preset)
        notes += [f"in {interval}"] * bool(interval)
        hint = f"({', '.join(notes)})".format if notes else ""
        shown = tyro.conf.arg(help=told.get("help", ""), metavar=told.get("metavar"), help_behavior_hint=hint)
        for mark in (mark for name, mark in _MARKS.items() if told.get(name)):
            kind = mark[kind]
        fields.append((field.name, Annotated[kind, shown], default))
    given = [field[:2] if field[2] is dataclasses.MISSING else field for field in fields]
    return dataclasses.make_dataclass(owner.__name__, given, frozen=True)


def _reader(kind: Any) -> PrimitiveConstructorSpec[Any] | None:
    """How a value is read where tyro would do less: `1e6` as a whole number, `64,64` as sizes."""
    kind, _ = without_none(kind)
    several = kind == tuple[int, ...]
    base = typing.get_args(kind)[0] if several else kind
    if base not in _READERS:
        return None
    metavar, read = _READERS[base]

    def sizes(words: list[str]) -> tuple[Any, ...]:
        return tuple(map(read, re.sub(r"(?<=\d)x(?=\d)|,", " ", " ".join(words)).split()))  # as in --grid, 64x64

    return PrimitiveConstructorSpec(
        nargs="*" if several else 1,
        metavar=f"{metavar} ..." if several else metavar,
        instance_from_str=sizes if several else lambda words: read(words[0]),
        is_instance=lambda x: True,
        str_from_instance=lambda x: [*map(str, x)] if several and x is not None else [str(x)],
    )


def _parse(kind: type, argv: Sequence[str], prog: str, about: str) -> Any:
    """tyro's parsing, its boxed errors turned into one line."""
    boxed = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxed):
            return tyro.cli(kind, prog=prog, description=about, args=argv, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit as stop:
        if not stop.code:
            raise
    _, *lines = (line.strip(" │╭╮╰╯─┃") for line in boxed.getvalue().splitlines())
    text = " ".join(line for line in lines if line)
    for aside in ("Argument helptext:", "For full helptext"):
        text = text.partition(aside)[0]
    text = text.strip().rstrip(".").removeprefix("Error parsing ").replace(". Expected 1 values", "")
    stray = text.removeprefix("Unrecognized options: ").partition(" ")[0]
    if stray.lower() in ("true", "false"):
        raise UsageError(f"{stray} is no flag, and switches take no value; write --flag for True, --no-flag for False.")
    if stray in ALGORITHMS:
        raise UsageError(f"{stray} is no flag; did you mean --algo {stray}?")
    raise UsageError(f"{text}; {prog} --help shows what each flag takes.")


def flag_name(token: str) -> str:
    """`--no-some_flag=3` → `some-flag`; empty if the token is no flag."""
    flag = token.partition("=")[0].replace("_", "-")
    return flag.removeprefix("--").removeprefix("no-") if flag.startswith("--") else ""


def value_of(argv: Sequence[str], flag: str, default: str = "") -> str:
    """The value of one flag, the last if it is repeated; needed before the others can be known."""
    return [default, *values_of(argv, flag, default)][-1]


def values_of(argv: Sequence[str], flag: str, default: str = "") -> list[str]:
    """All values of one flag that may be repeated; the `default` where the last has none."""
    pairs = zip(argv, [*argv[1:], default], strict=False)
    return [
        this.partition("=")[2] if "=" in this else following for this, following in pairs if flag_name(this) == flag
    ]


def refuse_unknown(
    argv: Sequence[str], known: Collection[str], where: str, owners: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> None:
    """Refuse flags that are not known: say which ones were meant, or which algorithms are the `owners` of them."""
    unknown = [token for token in argv if (name := flag_name(token)) and f"--{name}" not in {*known, "--help"}]
    told = []
    for token in unknown[:_MOST_TOLD]:
        name = flag_name(token)
        algos = " or ".join(owners.get(name.replace("-", "_"), ()))
        hint = did_you_mean(name, known, spelling=False) or (f"it belongs to --algo {algos}." if algos else "")
        hint = hint or did_you_mean(name, known) or "--help shows all."
        told.append(f"{token.partition('=')[0]:.80} is not a flag of {where}; {hint}")
    if told:
        raise UsageError(" ".join(told))


def with_file(argv: list[str], tables: Collection[str] = ()) -> list[str]:
    """`argv` after the flags of the file that its `--config` names. Raises: UsageError: it holds what no flag takes."""
    if not (name := value_of(argv, "config")):
        return argv
    path = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
    named = {flag_name(token).replace("-", "_") for token in argv}
    overruled = {other for name, other in itertools.permutations(_EITHER) if name in named}
    if path.suffix == ".json":
        return [*_flags_of_run(path, value_of(argv, "env"), overruled), *argv]
    axes = {axis.partition("=")[0].strip().replace("-", "_") for table in tables for axis in values_of(argv, table)}
    content, flags = read_toml(path), []
    samples = content.get("sample")
    if isinstance(samples, dict) and samples and not values_of(argv, "sample"):
        left = {name.replace("-", "_") for name in samples} - axes
        content = content if left else {key: x for key, x in content.items() if key != "random"}  # nothing is drawn
    for key, value in content.items():
        if key.replace("-", "_") in overruled:
            continue
        if key in ("config", "resume", "join"):
            raise UsageError(f"{path}: {key} is for the command line; take it out.")
        if not isinstance(value, dict):
            flags += _flag(path, key, value)
        elif key in tables:
            new = {field: axis for field, axis in value.items() if field.replace("-", "_") not in axes}
            flags += [x for field, axis in new.items() for x in (f"--{key}", f"{field}={_axis(path, field, axis)}")]
        else:
            known = f"there are {' and '.join(f'[{table}]' for table in tables)}" if tables else "there are none"
            raise UsageError(f"{path}: [{key:.40}] is none of its tables; {known}: write flags as keys.")
    return [*flags, *argv]


def _flags_of_run(path: Path, env: str, overruled: Collection[str]) -> list[str]:
    """The settings of another run as flags, and what it began with: not its seeds, nor where and how it was logged."""
    content = read_config(path)
    settings, begun_from = content["settings"], (content.get("options") or {}).get("init_from")
    if not env:
        refuse_code(path, settings["env"])
    known = {"algo", *hyperparameters(), *(field.name for field in dataclasses.fields(Config))}
    if unknown := settings.keys() - known:
        raise UsageError(f"{path}: {min(unknown)!r:.40} is not a setting; restore the file.")
    usual = usual_settings(settings.get("algo"), settings)
    given = {key: value for key, value in usual.items() if value is not None and key not in overruled}
    given = without_derived(given) | ({"init_from": begun_from} if begun_from else {})
    return [x for key, value in given.items() for x in _flag(path, key, value)]


def _flag(path: Path, key: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(x, str | int | float) and not str(x).startswith("--") for x in values):
        raise UsageError(f"{path}: {key:.40} = {value!r:.80} must be a number, a text or a list of such, and no flag.")
    return as_flags({key: value})


def _axis(path: Path, field: str, values: Any) -> str:
    """`a,b,c` of a list, the items of lists in it separated by spaces; a distribution is a string already."""
    if isinstance(values, str):
        return values
    if not isinstance(values, list):
        raise UsageError(f"{path}: {field} = {values!r:.80} must be a list of values, or a distribution as a string.")
    return ",".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)
