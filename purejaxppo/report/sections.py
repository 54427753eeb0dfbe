"""The sections of a report, each from the runs to HTML."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from purejaxppo import statistics
from purejaxppo.errors import plural
from purejaxppo.report import figures
from purejaxppo.report.html import (
    Markup,
    breakable,
    decimals,
    escape,
    figure,
    fixed,
    interval,
    listed,
    paragraph,
    table,
)
from purejaxppo.report.labels import differing, seed_range
from purejaxppo.rundir.contents import RunContents

POINTS = 60  # of a curve at most: each is a bootstrap of its own


class Entry(NamedTuple):
    """A run, with what it is called and how it is drawn throughout the page."""

    run: RunContents
    label: str
    look: figures.Look
    score: statistics.Estimate  # IQM of the final scores

    @property
    def drawn_label(self) -> str:
        return self.label if self.run.summary else f"{self.label} (in progress)"

    @property
    def name(self) -> Markup:
        state = "" if self.run.summary else ' <span class="tag">in progress</span>'
        return Markup(f'<span class="name">{figures.swatch(self.look)}{breakable(self.label)}</span>{state}')


Groups = dict[str, list[Entry]]  # environment -> its runs, both in the order given


def settings(entries: list[Entry]) -> str:
    """What differs between the runs, and, folded, what does not."""
    tables = [{**e.run.settings, "seeds": seed_range(e.run.seeds), **e.run.surroundings} for e in entries]
    keys = differing(tables)
    head = ["setting", *(entry.name for entry in entries)]
    rows = [[breakable(key), *(values.get(key, "–") for values in tables)] for key in keys]
    shared = [(key, value) for key, value in tables[0].items() if key not in keys]
    items = "\n".join(f"<li><span>{breakable(key)}</span><span>{escape(value)}</span></li>" for key, value in shared)
    where = "\n".join(f"<li>{e.name}<span>{escape(str(e.run.directory))}</span></li>" for e in entries)
    differences = (
        table(head, rows, "settings")
        if keys
        else paragraph("All settings are the same." if entries[1:] else "One run: nothing to compare.")
    )
    note = paragraph("“–”: the algorithm has no such setting.", "note") if any("–" in row for row in rows) else ""
    return (
        f"{differences}{note}<details><summary>Settings and versions that all runs share: {len(shared)}</summary>"
        f'<ul class="columns">{items}</ul></details>'
        f'<details><summary>Run directories</summary><ul class="columns">{where}</ul></details>'
    )


def learning_curves(groups: Groups) -> str:
    """The IQM over seeds of what was returned in training and, where there is one, in evaluations on the way."""
    found = [
        curve(env, entries, column, kind)
        for env, entries in groups.items()
        for column, kind in (("episode_return", "episode return in training"), ("eval_return", "evaluation return"))
        if column == "episode_return" or any(column in e.run.metrics.columns for e in entries)
    ]
    return f'<div class="figures">{"".join(found)}</div>'


def curve(env: str, entries: list[Entry], column: str, kind: str) -> str:
    """One environment's learning curves."""
    series = [(e, s) for e in entries if (s := series_of(e, column, statistics.iqm_over_seeds)) is not None]
    if not series:
        return paragraph(f"{env}: no run has finished an episode yet.")
    drawn = [e for e, _ in series]
    ends = "; ".join(f"{e.label} ends at {float(s.y.point[-1]):.4g}" for e, s in series)
    missing = {e.label for e in entries} - {e.label for e in drawn} if column == "episode_return" else set()
    caption = Markup(
        f"<b>{escape(env)}.</b> {kind.capitalize()}: IQM over seeds ({escape(seeds_of(drawn))}) and its pointwise "
        f"95% bootstrap interval{escape(_without(drawn))}."
        + (f" Nothing to draw yet: {escape(listed(sorted(missing)))}." if missing else "")
    )
    image = figures.lines([s for _, s in series], "environment steps per seed", kind)
    return figure(image, f"Learning curves on {env}, {kind} against environment steps: {ends}.", caption)


def final_scores(groups: Groups) -> str:
    """Aggregates of the final scores as table and figure."""
    return "\n".join(scores_on(env, entries) for env, entries in groups.items())


def scores_on(env: str, entries: list[Entry]) -> str:
    """One environment's final scores."""
    digits = decimals([x for e in entries for x in e.run.scores])
    rows, bars = [], []
    for e in entries:
        known = e.run.scores[~np.isnan(e.run.scores)]
        spread = f" ± {fixed(known.std(ddof=1), digits)}" if known.size > 1 else ""
        rows.append(
            [
                e.name,
                f"{e.run.env_steps:,}",
                fixed(e.score.point, digits),
                interval(e.score, digits),
                f"{fixed(known.mean(), digits)}{spread}" if known.size else "–",
                _extreme(e.run, np.nanargmin, digits),
                _extreme(e.run, np.nanargmax, digits),
                str(known.size) if known.size == len(e.run.seeds) else f"{known.size} of {len(e.run.seeds)}",
            ]
        )
        bars.append(figures.Interval(e.drawn_label, e.look, e.score, known))
    head = ["", "steps per seed", "IQM", "95% interval", "mean ± std", "worst seed", "best seed", "seeds"]
    notes = []
    if any(e.run.summary is None for e in entries):
        notes.append("In progress: each seed's last return in training, which is not comparable with an evaluation.")
    if any(np.isnan(e.run.scores).any() for e in entries):
        notes.append("Seeds without a finite score are left out: the aggregate is one of survivors.")
    if any(0 < row.dots.size < statistics.FEWEST for row in bars):
        notes.append(f"Fewer than {statistics.FEWEST} seeds give no interval.")
    bars = [bar for bar in bars if bar.dots.size]
    text = "; ".join(f"{row.label} {fixed(row.value.point, digits)} {interval(row.value, digits)}" for row in bars)
    caption = Markup(
        f"<b>{escape(env)}.</b> Final scores: marker, IQM; bar, its 95% bootstrap interval; ticks, single "
        f"seeds ({escape(seeds_of(entries))})."
    )
    drawn = figure(figures.intervals(bars, "final return"), f"Final IQM on {env}: {text}.", caption) if bars else ""
    return table(head, rows, "numbers", env) + paragraph(" ".join(notes), "note") + drawn


def _extreme(run: RunContents, which: Callable[[np.ndarray], np.intp], digits: int) -> str:
    if np.isnan(run.scores).all():
        return "–"
    index = int(which(run.scores))
    return f"{fixed(run.scores[index], digits)} (seed {run.seeds[index]})"


def profiles(groups: Groups) -> str:
    """The fraction of seeds above each score."""
    found = []
    for env, entries in groups.items():
        known = [e for e in entries if not np.isnan(e.run.scores).all()]
        if not known:
            found.append(paragraph(f"{env}: there is no score yet."))
            continue
        scores = np.concatenate([e.run.scores[~np.isnan(e.run.scores)] for e in known])
        margin = 0.02 * (np.ptp(scores) or abs(scores[0]) or 1.0)
        taus = np.linspace(scores.min() - margin, scores.max() + margin, 121)
        shares = [statistics.performance_profile(e.run.scores, taus) for e in known]
        series = [figures.Series(e.drawn_label, e.look, taus, y) for e, y in zip(known, shares, strict=True)]
        image = figures.lines(series, "score τ", "fraction of seeds with score > τ", ylim=(-0.03, 1.03), steps=False)
        caption = Markup(
            f"<b>{escape(env)}.</b> Fraction of seeds ({escape(seeds_of(known))}) whose final score is above τ, with "
            f"pointwise 95% bootstrap bands{escape(_without(known))}. Higher everywhere is better throughout."
        )
        found.append(figure(image, f"Performance profiles on {env}: {listed(e.label for e in known)}.", caption))
    return f'<div class="figures">{"".join(found)}</div>'


def improvements(groups: Groups) -> str:
    """P(a seed of X scores higher than a seed of Y)."""
    return "\n".join(improvements_on(env, entries) for env, entries in groups.items())


def improvements_on(env: str, entries: list[Entry], all_pairs_up_to: int = 6) -> str:
    """One environment's pairs; with many runs, only those with the first."""
    known = [e for e in entries if not np.isnan(e.run.scores).all()]
    pairs = [(x, y) for i, x in enumerate(known) for y in known[i + 1 :]]
    if len(known) > all_pairs_up_to:
        pairs = [(x, known[0]) for x in known[1:]]
    pairs = [(x, y) for x, y in pairs if (x.run.summary is None) == (y.run.summary is None)]
    if not pairs:
        return paragraph(f"{env}: no two runs with scores of the same kind.")
    values = [statistics.probability_of_improvement(x.run.scores, y.run.scores) for x, y in pairs]
    rows = [[x.name, y.name, fixed(p.point, 2), interval(p, 2)] for (x, y), p in zip(pairs, values, strict=True)]
    bars = [
        figures.Interval(f"{x.label}\n> {y.label}", x.look, p, np.zeros(0))
        for (x, y), p in zip(pairs, values, strict=True)
    ]
    text = "; ".join(f"{bar.label} {fixed(bar.value.point, 2)} {interval(bar.value, 2)}" for bar in bars)
    text = text.replace("\n", " ")
    first = f" {len(known)} runs, each against the first." if len(known) > all_pairs_up_to else ""
    caption = Markup(
        f"<b>{escape(env)}.</b> Probability that a seed of X scores higher than one of Y, ties counting one half, with "
        f"95% bootstrap intervals ({escape(seeds_of(known))}).{first} An interval that holds ½ leaves the "
        "order open."
    )
    image = figures.intervals(bars, "P(X > Y)", reference=0.5, xlim=(-0.03, 1.03))
    head = ["X", "Y", "P(X > Y)", "95% interval"]
    drawn = figure(image, f"Probability of improvement on {env}: {text}.", caption)
    return f'<div class="pair">{table(head, rows, "numbers pairs", env)}{drawn}</div>'


def throughput(entries: list[Entry]) -> str:
    """What the runs cost."""
    rows = []
    for entry in entries:
        known = entry.run.summary
        cells = ["–"] * 4
        if known:
            speed = "–" if math.isnan(known["steps_per_second"]) else f"{known['steps_per_second']:,.0f}"
            cells = [speed, fixed(known["compile_seconds"], 1), fixed(known["run_seconds"], 1), known["device"]]
        rows.append([entry.name, entry.run.env, str(len(entry.run.seeds)), f"{entry.run.env_steps:,}", *cells])
    head = ["", "environment", "seeds", "steps per seed", "steps per second", "compile s", "run s", "device"]
    return table(head, rows, "numbers") + paragraph(
        "Steps per second: environment steps of all seeds together, without compilation.", "note"
    )


def failed_seeds(entries: list[Entry]) -> str:
    """Which seeds turned non-finite, when, and why."""
    rows = [
        [e.name, e.run.env, str(failed["seed"]), str(failed["update"]), failed["cause"]]
        for e in entries
        for failed in (e.run.summary["failed_seeds"] if e.run.summary else ())
    ]
    running = [e.label for e in entries if e.run.summary is None]
    unknown = paragraph(f"Not known before the end: {listed(running)}.", "note") if running else ""
    return (table(["", "environment", "seed", "update", "cause"], rows, "") if rows else paragraph("None.")) + unknown


def methods() -> str:
    """What a reader needs to judge the numbers."""
    return paragraph(
        "A score is a seed’s mean return over the evaluation episodes of its final policy. IQM, the interquartile "
        "mean, is the mean of the middle half of the seeds. Intervals are percentile intervals of "
        f"{statistics.RESAMPLES:,} bootstrap resamples of the seeds, drawn with a fixed random seed; fewer than "
        f"{statistics.FEWEST} seeds give none. See Agarwal et al., Deep reinforcement learning at the edge of the "
        "statistical precipice, 2021, arXiv:2108.13264. The intervals speak of other seeds on the same environment, "
        "not of other environments; those of curves and profiles hold at each point, not for the whole line. ± is the "
        f"standard deviation over seeds (n − 1). Curves are drawn at up to {POINTS} of their log intervals, without "
        "smoothing; seeds in which no episode ended in an interval are not part of that point."
    )


def series_of(
    entry: Entry, column: str, aggregate: Callable[[np.ndarray], statistics.Estimate]
) -> figures.Series | None:
    """A column's aggregate over seeds at up to `POINTS` of the rows where some seed has it; None if there are none."""
    values = entry.run.metrics.columns.get(column)
    if values is None or np.isnan(values).all():
        return None
    known = np.flatnonzero(~np.isnan(values).all(axis=0))
    rows = known[figures.evenly(known.size, POINTS)]
    return figures.Series(entry.label, entry.look, entry.run.metrics.env_steps[rows], aggregate(values[:, rows]))


def seeds_of(entries: Sequence[Entry]) -> str:
    """ "8 seeds each", "4 to 8 seeds"."""
    counts = [len(e.run.seeds) for e in entries]
    if len({*counts}) == 1:
        return f"{plural(counts[0], 'seed')}{' each' if counts[1:] else ''}"
    return f"{min(counts)} to {max(counts)} seeds"


def _without(entries: Sequence[Entry]) -> str:
    few = [e.label for e in entries if len(e.run.seeds) < statistics.FEWEST]
    return f"; none for {listed(few)}: fewer than {statistics.FEWEST} seeds" if few else ""
