"""What the site takes from elsewhere: settings and flags from the code, notes and figures from the repository.

MkDocs calls `on_files` and `on_page_markdown`; `mkdocs.yml` names this file.
"""

import dataclasses
import re
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from latex2mathml.converter import convert
from mkdocs.structure.files import File

from purejaxppo.__main__ import COMMANDS
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.settings import ResumeOptions, RunOptions
from purejaxppo.cli.sweep import SweepOptions, SweepRunOptions
from purejaxppo.cli.tune import WITHOUT, TuneOptions, TuneRunOptions
from purejaxppo.config import DEFAULTS, Config
from purejaxppo.diagnosis.rules import read_rules
from purejaxppo.experiment.options import HostOptions
from purejaxppo.presets import PRESETS, SOURCES, as_flags

ROOT = Path(__file__).parent.parent
REPOSITORY = "https://github.com/purejaxppo/purejaxppo/blob/main"
COPIED = {  # page ↦ the file that it is, and the folder that its links are relative to
    "inside/contributing.md": "CONTRIBUTING.md",
    "inside/scaling.md": "benchmarks/SCALING.md",
    "inside/notes.md": "benchmarks/NOTES.md",
    "inside/changelog.md": "CHANGELOG.md",
}
FIGURES = ("benchmarks/results", "notebooks/figures")
COMMAND_OPTIONS: dict[str, tuple[Any, ...]] = {  # the others have one record each, `main.options`
    "run": (RunOptions, HostOptions),
    "sweep": (SweepOptions, SweepRunOptions, HostOptions),
    "tune": (TuneOptions, TuneRunOptions, HostOptions),
}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are generated, and the figures that the benchmarks and notebooks drew."""
    pages = {
        "reference/settings.md": settings_page(),
        "reference/command-line.md": command_line_page(),
        **{page: repository_links(Path(source)) for page, source in COPIED.items()},
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for folder in FIGURES:
        for path in sorted((ROOT / folder).glob("*.png")):
            files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Formulas between dollars as MathML, which browsers draw themselves; what is code stays. And what rules say."""
    markdown = markdown.replace("<!-- the rules of diagnose -->", rules_sections())

    def drawn(match: "re.Match[str]") -> str:
        code, block, inline = match.groups()
        if code:
            return code
        return convert(block.strip(), display="block") if block else convert(inline)

    return re.sub(r"(^```.*?^```|`[^`\n]*`)|\$\$(.+?)\$\$|\$([^$\n]+)\$", drawn, markdown, flags=re.M | re.S)


def rules_sections() -> str:
    """Of each rule of `purejaxppo diagnose`: what it means, what to try, and when it is told."""
    lines = []
    for rule in read_rules():
        limits = ", ".join(f"{name} {x:g}" for name, x in rule.thresholds.items())
        told = "It is told of seeds that have learnt, too." if rule.always else "It is told of seeds that do not learn."
        lines += ["", f"### {rule.title} {{#{rule.name}}}", "", rule.means, ""]
        lines += [f"- {words(attempt)}" for attempt in rule.tries]
        lines += ["", f"{f'Thresholds: {limits}. ' if limits else ''}{told} Source: {rule.source}."]
    return "\n".join(lines)


def repository_links(path: Path) -> str:
    """A Markdown file of the repository, its relative links made absolute."""
    text = (ROOT / path).read_text()
    return re.sub(
        r"\]\((?!https?:|#)([^)]+)\)", lambda link: f"]({REPOSITORY}/{(path.parent / link[1]).as_posix()})", text
    )


def cell(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, tuple):
        value = ", ".join(map(str, value)) or "()"
    text = "inf" if value == float("inf") else str(value)
    return f"`{text}`".replace("|", "\\|")


def words(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def type_name(field: "dataclasses.Field[Any]", owner: type) -> str:
    hint = get_type_hints(owner).get(field.name, Any)
    name = getattr(hint, "__name__", "") if not getattr(hint, "__args__", None) else str(hint)
    return (name or str(hint)).replace("typing.", "").replace("pathlib._local.", "").replace("pathlib.", "")


def allowed(field: "dataclasses.Field[Any]") -> str:
    """What a field takes: its interval or its choices."""
    choices = field.metadata.get("choices") or ()
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    interval = field.metadata.get("interval")
    return f"`{interval}`" if interval else ""


def default_of(field: "dataclasses.Field[Any]") -> str:
    """The default of a flag, as `--help` shows it."""
    if field.default is dataclasses.MISSING:
        return "required"
    usual = field.metadata.get("usual")
    if usual or field.default in (None, "", ()):
        return words(usual or "–")
    return cell(field.default)


def settings_table(owner: type, without: Collection[str] = ()) -> Iterator[str]:
    yield "| setting | type | values | default | effect |"
    yield "|---|---|---|---|---|"
    for field in dataclasses.fields(owner):
        if field.name in without:
            continue
        default = "by algorithm, [below](#defaults-by-algorithm)" if field.name in DEFAULTS else cell(field.default)
        if field.name == "algo":
            default = "`PPO()`"
        kind = "number" if field.metadata.get("type") is float else f"static `{type_name(field, owner)}`"
        yield f"| `{field.name}` | {kind} | {allowed(field)} | {default} | {words(field.metadata.get('help', ''))} |"


def settings_page() -> str:
    """Every field of `Config` and of each algorithm, its defaults by algorithm, and the presets."""
    lines = [
        "# Settings",
        "",
        "Generated from the fields themselves. On the command line, `num_envs` is `--num-envs`; the algorithm's own "
        "settings are flags beside the others. In Python they are fields of the algorithm: "
        "`Config(algo=TRPO(max_kl=0.02), num_envs=8)`.",
        "",
        "A **number** may be traced: one compiled program serves many values of it. A **static** setting shapes the "
        "program: a new value means a new compilation. Intervals are written `[closed, open)`.",
        "",
        "## `Config`",
        "",
        *settings_table(Config),
        "",
        "## Defaults by algorithm",
        "",
        "What these settings are if you leave them open. `inf` means no limit.",
        "",
        "| setting | " + " | ".join(f"`{name}`" for name in ALGORITHMS) + " |",
        "|---|" + "---|" * len(ALGORITHMS),
    ]
    for name in DEFAULTS:
        values = [getattr(Config(algo=kind()), name) for kind in ALGORITHMS.values()]
        lines.append(f"| `{name}` | " + " | ".join(map(cell, values)) + " |")
    for name, kind in ALGORITHMS.items():
        lines += ["", f"## `{kind.__name__}`", "", f"`--algo {name}`", "", *settings_table(kind)]
    lines += ["", "## Presets", "", "The command line uses them, and so does `preset(algo, env)`.", ""]
    lines += ["| algorithm | environment | settings | source |", "|---|---|---|---|"]
    for algo, env in PRESETS:
        flags = " ".join(as_flags(PRESETS[algo, env]))
        lines.append(f"| `{algo}` | `{env}` | `{flags}` | {words(SOURCES[algo, env])} |")
    return "\n".join(lines) + "\n"


def flags_table(owner: type, without: Collection[str] = ()) -> Iterator[str]:
    yield "| flag | values | default | effect |"
    yield "|---|---|---|---|"
    for field in dataclasses.fields(owner):
        if field.name in without:
            continue
        told = field.metadata
        flag = told.get("metavar", field.name) if told.get("positional") else f"--{field.name.replace('_', '-')}"
        if type_name(field, owner) == "bool":
            flag = f"{flag}, --no-{field.name.replace('_', '-')}"
        values = allowed(field) or (
            f"`{told['metavar']}`" if told.get("metavar") and not told.get("positional") else ""
        )
        values = values.replace("|", "\\|")
        yield f"| `{flag}` | {values} | {default_of(field)} | {words(told.get('help', ''))} |"


def command_line_page() -> str:
    """Every command with its flags."""
    lines = [
        "# Command line",
        "",
        "Generated from the parsers. `purejaxppo COMMAND --help` shows the same for one command, and "
        "`purejaxppo run --algo ALGO --env ENV --help` the defaults of that algorithm and environment. "
        "`python -m purejaxppo` is the same command as `purejaxppo`.",
        "",
        "Whole numbers may be written as `1e6`. Exit codes: 0, done; 2, a request that cannot be met (one line says "
        "why); 1, the system or an environment on the host failed; 128 + n after signal n.",
    ]
    titles = {
        RunOptions: "Which run",
        SweepRunOptions: "Which runs",
        TuneRunOptions: "Which runs",
        HostOptions: "Log, checkpoints, devices",
        SweepOptions: "What is swept",
        TuneOptions: "What is searched, and how",
    }
    for name, about in COMMANDS.items():
        lines += ["", f"## `purejaxppo {name}`", "", f"{about[0].upper()}{about[1:]}."]
        for owner in COMMAND_OPTIONS.get(name) or (import_module(f"purejaxppo.cli.{name}").main.options,):
            if owner in titles:
                lines += ["", f"**{titles[owner]}**"]
            lines += ["", *flags_table(owner, WITHOUT if name == "tune" else ())]
        if name == "run":
            lines += ["", "**With `--resume DIR`**, these are all the flags:", "", *flags_table(ResumeOptions)]
        if name in ("run", "sweep", "tune"):
            lines += ["", "**Settings of the run**: each [setting](settings.md) is a flag."]
    return "\n".join(lines) + "\n"
