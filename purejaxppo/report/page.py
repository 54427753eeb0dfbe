"""One page that compares runs: settings, curves, scores, diagnostics, cost."""

import importlib.resources
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np

from purejaxppo._version import __version__
from purejaxppo.errors import UsageError
from purejaxppo.report import sections
from purejaxppo.report.diagnostics import diagnostics
from purejaxppo.report.figures import looks
from purejaxppo.report.html import decimals, escape, fixed, interval, listed
from purejaxppo.report.labels import labels
from purejaxppo.report.sections import Entry, Groups, seeds_of
from purejaxppo.rundir.contents import RunContents, read_contents
from purejaxppo.rundir.files import replacing
from purejaxppo.statistics import iqm_over_seeds


def write_report(directories: list[Path], out: Path) -> None:
    """Compare the runs of `directories` on one page of HTML that needs nothing beside itself.

    The same directories give the same bytes. They are only read; nothing but `out` is written, and it only whole.

    Raises:
        UsageError: a directory does not hold what a run leaves or `out` cannot be written.
    """
    if not directories:
        raise UsageError("no run directory is given, and a report needs at least one; name the --out of a run.")
    if out.suffix.lower() not in {".html", ".htm"} or out.is_dir():
        raise UsageError(f"out = {str(out)!r} must be the name of an .html file; write --out report.html.")
    content = page([read_contents(directory) for directory in directories])
    try:
        with replacing(out) as draft:
            draft.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"out = {str(out)!r} cannot be written ({error.strerror}); choose another --out.") from error


def page(runs: list[RunContents]) -> str:
    """The report as HTML."""
    names = labels(runs)
    scores = [iqm_over_seeds(run.scores) for run in runs]
    entries = [Entry(*entry) for entry in zip(runs, names, looks(runs, names), scores, strict=True)]
    groups: Groups = {}
    for entry in entries:
        groups.setdefault(entry.run.env, []).append(entry)
    contents: dict[str, Callable[[], str]] = {
        "Settings": lambda: sections.settings(entries),
        "Learning curves": lambda: sections.learning_curves(groups),
        "Final scores": lambda: sections.final_scores(groups),
        "Performance profiles": lambda: sections.profiles(groups),
        "Probability of improvement": lambda: sections.improvements(groups),
        "Update diagnostics": lambda: diagnostics(groups),
        "Throughput": lambda: sections.throughput(entries),
        "Failed seeds": lambda: sections.failed_seeds(entries),
        "How the numbers are made": sections.methods,
    }
    ids = {title: title.lower().replace(" ", "-") for title in contents}
    body = [f'<section id="{ids[title]}">\n<h2>{title}</h2>\n{make()}\n</section>' for title, make in contents.items()]
    template = importlib.resources.files("purejaxppo.report").joinpath("template.html").read_text("utf-8")
    return string.Template(template).substitute(
        title=escape(f"{listed(dict.fromkeys(run.algo for run in runs))} on {listed(groups)}"),
        lead=escape(lead(groups)),
        contents=" ".join(f'<a href="#{ids[title]}">{title}</a>' for title in contents),
        body="\n".join(body),
        footer=f"Made by purejaxppo {__version__} from {len(runs)} run director{'y' if len(runs) == 1 else 'ies'}.",
    )


def lead(groups: Groups) -> str:
    """The result in one sentence."""
    entries = [entry for group in groups.values() for entry in group]
    running = sum(entry.run.summary is None for entry in entries)
    state = f", {'one' if running == 1 else running} of them in progress" if running else ""
    runs = f"{len(entries)} runs{state}" if entries[1:] else f"One run{', in progress' if running else ''}"
    clauses = [f"on {env} {_best(group)}" for env, group in groups.items()]
    if len(clauses) > 4:
        clauses[4:] = [f"{len(clauses) - 4} more environments below"]
    return f"{runs} ({seeds_of(entries)}): {'; '.join(clauses)}."


def _best(entries: list[Entry]) -> str:
    """Which runs have the highest final IQM, and whose intervals overlap with theirs."""
    ended = [e for e in entries if e.run.summary] or entries
    rated = [(e.label, e.score) for e in ended if not np.isnan(e.run.scores).all()]
    if not rated:
        return "there is no score yet"
    top = max(value.point for _, value in rated)
    best = [(label, value) for label, value in rated if value.point == top]
    digits = decimals([x for e in entries for x in e.run.scores])
    score = f"{fixed(top, digits)} {interval(best[0][1], digits)}".removesuffix(" –")
    if len(rated) == 1:
        return f"{rated[0][0]} has a final IQM of {score}"
    among = " among the runs that have ended" if len(ended) < len(entries) else ""
    names = f"{listed(label for label, _ in best)} {'share' if best[1:] else 'has'}"
    close = [label for label, value in rated if value.point < top and value.high >= best[0][1].low]
    those = f", an interval that overlaps with {'those' if close[1:] else 'that'} of {listed(close)}" if close else ""
    return f"{names} the highest final IQM{among}, {score}{those}"
