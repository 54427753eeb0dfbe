"""The sections of a report, each from the runs to HTML."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from purejaxppo import statistics
from purejaxppo.errors import plural
from purejaxppo.report import figures
from purejaxppo.report.html import Markup, breakable, escape, figure, fixed, interval, listed, paragraph, table
from purejaxppo.report.labels import differing, seed_range
from purejaxppo.rundir.contents import RunContents
from purejaxppo.rundir.files import shown

POINTS = 60  # of a curve at most: each is a bootstrap of its own


class Entry(NamedTuple):
    """A run, with what it is called and how it is drawn throughout the page."""

    run: RunContents
    label: str
    look: figures.Look
    score: statistics.Estimate  # IQM of the final scores

    @property
    def known(self) -> np.ndarray:
        """The scores that are finite."""
        return statistics.known(self.run.scores)

    @property
    def drawn_label(self) -> str:
        return self.label if self.run.summary else f"{self.label} (in progress)"

    @property
    def name(self) -> Markup:
        state = "" if self.run.summary else ' <span class="tag">in progress</span>'
        return Markup(f'<span class="name">{figures.swatch(self.look)}{breakable(self.label)}</span>{state}')


def settings(entries: list[Entry]) -> str:
    """What differs between the runs, and, folded, what does not."""
    alike = len({seed_range(e.run.seeds) for e in entries}) < len({tuple(sorted(e.run.seeds)) for e in entries})
    name_seeds = (lambda seeds: f"seeds {', '.join(map(str, sorted(seeds)))}") if alike else seed_range
    tables = [{**e.run.settings, "seeds": name_seeds(e.run.seeds), **e.run.surroundings} for e in entries]
    keys = differing(tables)
    head = ["setting", *(entry.name for entry in entries)]
    rows = [[breakable(key), *(shown(values.get(key, "–"), 200) for values in tables)] for key in keys]
    shared = [(key, shown(value)) for key, value in tables[0].items() if key not in keys]
    items = "\n".join(f"<li><span>{breakable(key)}</span><span>{escape(value)}</span></li>" for key, value in shared)
    where = "\n".join(f"<li>{e.name}<span>{escape(str(e.run.directory))}</span></li>" for e in entries)
    same = "All settings are the same." if entries[1:] else "One run: nothing to compare."
    differences = table(head, rows, "settings") if keys else paragraph(same)
    note = paragraph("“–”: the algorithm has no such setting.", "note") if any("–" in row for row in rows) else ""
    return (
        f"{differences}{note}<details><summary>Settings and versions that all runs share: {len(shared)}</summary>"
        f'<ul class="columns">{items}</ul></details>'
        f'<details><summary>Run directories</summary><ul class="columns">{where}</ul></details>'
    )


def learning_curves(env: str, entries: list[Entry]) -> str:
    """The IQM over seeds of what was returned in training and, where there is one, in evaluations on the way."""
    found = curve(env, entries, "episode_return", "episode return in training")
    if any("eval_return" in e.run.metrics.columns for e in entries):
        found += curve(env, entries, "eval_return", "evaluation return")
    return found


def curve(env: str, entries: list[Entry], column: str, kind: str) -> str:
    """One environment's learning curves."""
    drawn, series = series_of(entries, column, statistics.iqm_over_seeds)
    if not series:
        return paragraph(f"{env}: no run has finished an episode yet.")
    ends = "; ".join(f"{line.label} ends at {statistics.return_text(line.y.point[-1])}" for line in series)
    missing = {e.label for e in entries} - {e.label for e in drawn} if column == "episode_return" else set()
    counts = [len(e.run.seeds) for e in drawn]
    failed = [
        f"{len(e.run.summary['failed_seeds'])} of {len(e.run.seeds)} of {e.label}"
        for e in drawn
        if e.run.summary and e.run.summary["failed_seeds"]
    ]
    caption = Markup(
        f"<b>{escape(env)}.</b> {kind.capitalize()}: IQM over seeds ({escape(seeds_of(counts))}) and its pointwise "
        f"95% bootstrap interval{escape(_without(drawn, counts))}."
        + (f" Seeds that failed are left out from then on: {escape(listed(failed))}." if failed else "")
        + (f" Nothing to draw yet: {escape(listed(sorted(missing)))}." if missing else "")
    )
    image = figures.lines(series, "environment steps per seed", kind)
    return figure(image, f"Learning curves on {env}, {kind} against environment steps: {ends}.", caption)


def final_scores(env: str, entries: list[Entry]) -> str:
    """Aggregates of one environment's final scores, as table and figure."""
    digits = statistics.decimals(*(e.run.scores for e in entries))
    rows = [_score_row(e, digits) for e in entries]
    head = ["", "steps per seed", "IQM", "95% interval", "mean ± std", "worst seed", "best seed", "seeds"]
    notes = []
    if any(e.run.summary is None for e in entries):
        notes.append("In progress: each seed's last return in training, which is not comparable with an evaluation.")
    if any(e.known.size < len(e.run.seeds) for e in entries):
        notes.append("Seeds without a finite score are left out: the aggregate is one of survivors.")
    if failed := [f"{len(x)} of {e.label}" for e in entries if e.run.summary and (x := e.run.summary["failed_seeds"])]:
        notes.append(f"Failed seeds count with the policy that they had before they failed: {listed(failed)}.")
    if cut := [f"{n} of {e.label}" for e in entries if e.run.summary and (n := e.run.summary["cut_off"])]:
        notes.append(f"Episodes that eval_max_steps cut off count as they were then: {listed(cut)}.")
    if len({e.run.env_steps for e in entries if e.run.summary}) > 1:
        notes.append("Not all made the same number of steps: a longer run may be better for that alone.")
    if any(0 < e.known.size < statistics.FEWEST for e in entries):
        notes.append(f"Fewer than {statistics.FEWEST} seeds give no interval.")
    found = table(head, rows, "numbers", env) + paragraph(" ".join(notes), "note")
    known = [e for e in entries if e.known.size]
    if not known:
        return found
    bars = [figures.Interval(e.drawn_label, e.look, e.score, e.known) for e in known]
    caption = Markup(
        f"<b>{escape(env)}.</b> Final scores: marker, IQM; bar, its 95% bootstrap interval; ticks, single "
        f"seeds ({escape(seeds_of([e.known.size for e in known]))})."
    )
    alt = f"Final IQM on {env}: {_read_out(bars, digits)}."
    return found + figure(figures.intervals(bars, "final return"), alt, caption)


def _score_row(entry: Entry, digits: int) -> list[str]:
    known, count = entry.known, len(entry.run.seeds)
    steps, seeds = f"{entry.run.env_steps:,}", str(count) if known.size == count else f"{known.size} of {count}"
    if not known.size:
        return [entry.name, steps, *"–––––", seeds]
    spread = f" ± {fixed(known.std(ddof=1), digits)}" if known.size > 1 else ""
    worst, best = (int(which(entry.run.scores)) for which in (np.nanargmin, np.nanargmax))
    ends = [f"{fixed(entry.run.scores[i], digits)} (seed {entry.run.seeds[i]})" for i in (worst, best)]
    score = [fixed(entry.score.point, digits), interval(entry.score, digits)]
    return [entry.name, steps, *score, f"{fixed(known.mean(), digits)}{spread}", *ends, seeds]


def _read_out(bars: list[figures.Interval], digits: int) -> str:
    text = "; ".join(f"{bar.label} {fixed(bar.value.point, digits)} {interval(bar.value, digits)}" for bar in bars)
    return text.replace("\n", " ")


def performance_profiles(env: str, entries: list[Entry]) -> str:
    """The fraction of seeds above each score."""
    known = [e for e in entries if e.known.size]
    if not known:
        return paragraph(f"{env}: there is no score yet.")
    scores = np.concatenate([e.known for e in known])
    margin = 0.02 * (np.ptp(scores) or abs(scores[0]) or 1.0)
    taus = np.linspace(scores.min() - margin, scores.max() + margin, 121)
    shares = [statistics.performance_profile(e.known, taus) for e in known]
    series = [figures.Series(e.drawn_label, e.look, taus, y) for e, y in zip(known, shares, strict=True)]
    image = figures.lines(series, "score τ", "fraction of seeds with score > τ", ylim=(-0.03, 1.03), steps=False)
    counts = [e.known.size for e in known]
    caption = Markup(
        f"<b>{escape(env)}.</b> Fraction of seeds ({escape(seeds_of(counts))}) whose final score is above τ, with "
        f"pointwise 95% bootstrap bands{escape(_without(known, counts))}. Higher everywhere is better throughout."
    )
    return figure(image, f"Performance profiles on {env}: {listed(e.label for e in known)}.", caption)


def improvements(env: str, entries: list[Entry], all_pairs_up_to: int = 6) -> str:
    """P(a seed of X scores higher than a seed of Y) of all pairs; with many runs, only of those with one of them."""
    known = [e for e in entries if e.known.size]
    many, pairs = len(known) > all_pairs_up_to, list(itertools.combinations(known, 2))
    if many:
        one = next((e for e in known if e.run.summary), known[0])
        pairs = [(x, one) for x in known if x is not one]
    pairs = [(x, y) for x, y in pairs if (x.run.summary is None) == (y.run.summary is None)]
    if not pairs:
        return paragraph(f"{env}: no two runs with scores of the same kind.")
    rows, bars = [], []
    for x, y in pairs:
        p = statistics.probability_of_improvement(x.known, y.known)
        rows.append([x.name, y.name, fixed(p.point, 2), interval(p, 2)])
        bars.append(figures.Interval(f"{x.label}\n> {y.label}", x.look, p, np.zeros(0)))
    first = f" {len(known)} runs, each against {pairs[0][1].label}." if many else ""
    seeds = seeds_of([e.known.size for e in known])
    caption = Markup(
        f"<b>{escape(env)}.</b> Probability that a seed of X scores higher than one of Y, ties counting one half, with "
        f"95% bootstrap intervals ({escape(seeds)}).{escape(first)} An interval that holds ½ leaves the order open."
    )
    image = figures.intervals(bars, "P(X > Y)", reference=0.5, xlim=(-0.03, 1.03))
    drawn = figure(image, f"Probability of improvement on {env}: {_read_out(bars, 2)}.", caption)
    return f'<div class="pair">{table(["X", "Y", "P(X > Y)", "95% interval"], rows, "numbers pairs", env)}{drawn}</div>'


def throughput(entries: list[Entry]) -> str:
    """What the runs cost."""
    rows = []
    for entry in entries:
        known = entry.run.summary
        cells = ["–"] * 4
        if known:
            seconds = [fixed(known[name], 1) for name in ("compile_seconds", "run_seconds")]
            cells = [fixed(known["steps_per_second"], 0), *seconds, known["device"]]
        rows.append([entry.name, entry.run.env, str(len(entry.run.seeds)), f"{entry.run.env_steps:,}", *cells])
    head = ["", "environment", "seeds", "steps per seed", "steps per second", "compile s", "run s", "device"]
    about = (
        "Steps per second: environment steps of all seeds together, by the time of the run: with evaluation and saving."
    )
    return table(head, rows, "numbers") + paragraph(about, "note")


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
        "A score is a seed’s mean return over the evaluation episodes of its final policy; a failed seed’s is the one "
        "that it had before it failed. IQM, the interquartile mean, is the mean of the middle half of the seeds. "
        "Intervals are percentile intervals of "
        f"{statistics.RESAMPLES:,} bootstrap resamples of the seeds, drawn with a fixed random seed; fewer than "
        f"{statistics.FEWEST} seeds give none. Few seeds make them too narrow: of normally distributed scores, the "
        "intervals of 3, 5 and 10 seeds hold the truth in some 75%, 90% and 94% of cases. See Agarwal et al., Deep "
        "reinforcement learning at the edge of the statistical precipice, 2021, arXiv:2108.13264. The intervals speak "
        "of other seeds on the same environment, not of other environments; those of curves and profiles hold at each "
        "point, not for the whole line. ± is the standard deviation over seeds (n − 1). Curves are drawn at up to "
        f"{POINTS} of their log intervals, without smoothing; seeds that have failed, and those in which no episode "
        "ended in an interval, are not part of that point."
    )


def series_of(
    entries: list[Entry], column: str, aggregate: Callable[[np.ndarray], statistics.Estimate]
) -> tuple[list[Entry], list[figures.Series]]:
    """The runs that have a column, and its aggregate over seeds at up to `POINTS` of the rows where a seed has it."""
    drawn, series = [], []
    for entry in entries:
        steps, values = entry.run.metrics.env_steps, entry.run.metrics.columns.get(column, np.zeros((1, 0)))
        rows = np.flatnonzero(~np.isnan(values).all(axis=0))
        rows = rows[figures.evenly(rows.size, POINTS)]
        if rows.size:
            drawn.append(entry)
            series.append(figures.Series(entry.label, entry.look, steps[rows], aggregate(values[:, rows])))
    return drawn, series


def seeds_of(counts: Sequence[int]) -> str:
    """ "8 seeds each", "4 to 8 seeds"."""
    if len({*counts}) == 1:
        return f"{plural(counts[0], 'seed')}{' each' if counts[1:] else ''}"
    return f"{min(counts)} to {max(counts)} seeds"


def _without(entries: Sequence[Entry], counts: Sequence[int]) -> str:
    few = [e.label for e, count in zip(entries, counts, strict=True) if count < statistics.FEWEST]
    return f"; none for {listed(few)}: fewer than {statistics.FEWEST} seeds" if few else ""
