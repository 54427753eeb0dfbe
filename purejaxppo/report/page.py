"""One page that compares runs: settings, curves, scores, diagnostics, cost."""

import importlib.resources
import itertools
import string
import warnings
from collections.abc import Callable
from pathlib import Path

from purejaxppo._version import __version__
from purejaxppo.errors import UsageError, plural
from purejaxppo.report import sections
from purejaxppo.report.diagnostics import diagnosis, diagnostics
from purejaxppo.report.figures import looks
from purejaxppo.report.html import breakable, escape, fixed, interval, listed, paragraph
from purejaxppo.report.labels import labels, seed_range
from purejaxppo.report.sections import Entry, seeds_of
from purejaxppo.rundir.contents import RunContents, read_contents
from purejaxppo.rundir.files import check_out, write_text
from purejaxppo.rundir.logs import has_log
from purejaxppo.statistics import decimals, iqm_over_seeds


def write_report(directories: list[Path], out: Path) -> None:
    """Compare the runs of `directories` on one page of HTML that needs nothing beside itself.

    The same directories give the same bytes. They are only read; nothing but `out` is written, and it only whole.

    Raises:
        UsageError: no directory holds a run, a file of a run is malformed, or `out` cannot be written.
    """
    check_out(out, (".html", ".htm"))
    runs = [read_contents(directory) for directory in run_directories(directories)]
    try:
        write_text(out, page(runs))
    except OSError as error:
        raise UsageError(f"out = {str(out)!r} cannot be written ({error.strerror}); choose another --out.") from error


def run_directories(paths: list[Path]) -> list[Path]:
    """Those that hold a run, and instead of one that holds several, as a sweep's does, these.

    What holds none is skipped with a warning.

    Raises:
        UsageError: a path does not exist, or there is no run at all.
    """
    found: dict[Path, Path] = {}
    strays = []
    for path in paths:
        if not path.exists() and not path.is_symlink():
            raise UsageError(f"{str(path)!r} does not exist; give run directories, as left by --out.")
        inside = sorted(path.iterdir()) if path.is_dir() else []
        runs = [run for run in ([path] if _is_run(path) else inside) if _is_run(run)]
        found |= {run.resolve(): run for run in runs}
        if not runs:
            strays.append(path)
    if not found:
        which = f"{str(strays[0])!r} holds no run's config.json and metrics.csv" if strays else "no directory is given"
        raise UsageError(f"{which}, and a report needs at least one run; name the --out of a run.")
    for path in strays:
        warnings.warn(f"{path} is skipped: it holds no run's config.json and metrics.csv", stacklevel=2)
    return list(found.values())


def _is_run(path: Path) -> bool:
    return (path / "config.json").is_file() and has_log(path)


def page(runs: list[RunContents]) -> str:
    """The report as HTML."""
    entries = named(runs)
    groups: dict[str, list[Entry]] = {}  # environment -> its runs, both in the order given
    for entry in entries:
        groups.setdefault(entry.run.env, []).append(entry)
    cautions = shared_seeds(entries)
    for caution in cautions:
        warnings.warn(caution, stacklevel=2)

    def each(section: Callable[[str, list[Entry]], str]) -> str:
        return "\n".join(section(env, own) for env, own in groups.items())

    contents = {
        "Learning curves": f'<div class="figures">{each(sections.learning_curves)}</div>',
        "Final scores": each(sections.final_scores),
        "Performance profiles": f'<div class="figures">{each(sections.performance_profiles)}</div>',
        "Probability of improvement": each(sections.improvements),
        "Settings": sections.settings(entries),
        "Update diagnostics": each(diagnostics),
        "Diagnosis": diagnosis(entries),
        "Throughput": sections.throughput(entries),
        "Failed seeds": sections.failed_seeds(entries),
        "How the numbers are made": sections.methods(),
    }
    ids = {title: title.lower().replace(" ", "-") for title in contents}
    body = [f'<section id="{ids[title]}">\n<h2>{title}</h2>\n{text}\n</section>' for title, text in contents.items()]
    template = importlib.resources.files("purejaxppo.report").joinpath("template.html").read_text("utf-8")
    return string.Template(template).substitute(
        title=escape(f"{listed(dict.fromkeys(run.algo for run in runs))} on {listed(groups)}"),
        lead=breakable(lead(groups)),
        cautions="\n".join(paragraph(caution, "caution") for caution in cautions),
        contents=" ".join(f'<a href="#{ids[title]}">{title}</a>' for title in contents),
        body="\n".join(body),
        footer=f"Made by purejaxppo {__version__} from {len(runs)} run director{'y' if len(runs) == 1 else 'ies'}.",
    )


def named(runs: list[RunContents]) -> list[Entry]:
    """The runs, each with its name, its look and its score."""
    names = labels(runs)
    scores = [iqm_over_seeds(run.scores) for run in runs]
    return [Entry(*entry) for entry in zip(runs, names, looks(runs, names), scores, strict=True)]


def lead(groups: dict[str, list[Entry]]) -> str:
    """The result in one sentence."""
    entries = [entry for group in groups.values() for entry in group]
    running = sum(entry.run.summary is None for entry in entries)
    state = f", {'one' if running == 1 else running} of them in progress" if running else ""
    runs = f"{len(entries)} runs{state}" if entries[1:] else f"One run{', in progress' if running else ''}"
    clauses = [f"on {env} {_best(group)}" for env, group in groups.items()]
    if len(clauses) > 4:
        clauses[4:] = [f"{plural(len(clauses) - 4, 'more environment')} below"]
    return f"{runs} ({seeds_of([len(e.run.seeds) for e in entries])}): {'; '.join(clauses)}."


def shared_seeds(entries: list[Entry]) -> list[str]:
    """What is to be said of runs of the same settings that share seeds, and so are the same runs in part."""
    alike: dict[frozenset[tuple[str, str]], list[Entry]] = {}
    for e in entries:
        annealed = e.run.settings.get("anneal_learning_rate") == "true" or e.run.settings.get("anneal")
        other = ("eval_",) if annealed else ("total_steps", "eval_")
        training = (item for item in e.run.settings.items() if not item[0].startswith(other))
        alike.setdefault(frozenset(training), []).append(e)
    found = [
        f"{x.label} and {y.label} on {x.run.env} are trained alike and share {seed_range(seeds)}. These runs are "
        "identical as far as both go, so the two are not independent samples; give one of them other seeds by --seed."
        for group in alike.values()
        for x, y in itertools.combinations(group, 2)
        if (seeds := {*x.run.seeds} & {*y.run.seeds})
    ]
    return [*found[:4], *([f"The same holds for {plural(len(found) - 4, 'more pair')} of runs."] if found[4:] else [])]


def _best(entries: list[Entry]) -> str:
    """Which runs have the highest final IQM, and whose intervals overlap with theirs."""
    ended = [e for e in entries if e.run.summary] or entries
    rated = [(e.label, e.score) for e in ended if e.known.size]
    if not rated:
        return "there is no score yet"
    top = max(value.point for _, value in rated)
    best = [(label, value) for label, value in rated if value.point == top]
    digits = decimals(*(e.run.scores for e in entries))
    intervals = {interval(value, digits) for _, value in best}
    score = f"{fixed(top, digits)} {intervals.pop() if len(intervals) == 1 else '–'}".removesuffix(" –")
    low = min(value.low for _, value in best)
    if len(rated) == 1:
        return f"{rated[0][0]} has a final IQM of {score}"
    among = " among the runs that have ended" if len(ended) < len(entries) else ""
    names = f"{listed(label for label, _ in best)} {'share' if best[1:] else 'has'}"
    close = [label for label, value in rated if value.point < top and value.high >= low]
    those = f", an interval that overlaps with {'those' if close[1:] else 'that'} of {listed(close)}" if close else ""
    return f"{names} the highest final IQM{among}, {score}{those}"
