"""What `throughput.py` measured, as JSON, a table and a plot."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

COLORS = {
    "ours": "#D55E00",
    "ours-one-core": "#F0B48A",
    "purejaxrl": "#0072B2",
    "rejax": "#009E73",
    "stoix": "#CC79A7",
    "brax": "#E69F00",
    "sbx": "#56B4E9",
    "sb3": "#999999",
    "sb3-contrib": "#555555",
}


def write(out: Path, found: dict[str, Any]) -> None:
    """`out`.json with all rounds and their summary, `out`.md, `out`.png."""
    out.parent.mkdir(parents=True, exist_ok=True)
    summary = summarize(found["rows"])
    out.with_suffix(".json").write_text(json.dumps(found | {"summary": summary}, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(found, summary))
    if summary:
        draw(out.with_suffix(".png"), summary, found["machine"])


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per task and participant: medians with their ranges, and ours / peer of the same round."""
    ours = {(row["task"], row["round"]): row["steps_per_second"] for row in rows if row["peer"] == "ours"}
    summary = []
    for task, peer in dict.fromkeys((row["task"], row["peer"]) for row in rows):
        own = [row for row in rows if (row["task"], row["peer"]) == (task, peer)]
        ratios = [ours[task, row["round"]] / row["steps_per_second"] for row in own if (task, row["round"]) in ours]
        measured = ("steps_per_second", "compile_seconds", "cached_compile_seconds", "peak_rss_bytes", "final_return")
        summary.append(
            {"task": task, "peer": peer, "rounds": len(own), "seeds": own[0]["seeds"]}
            | {"steps_per_seed": own[0]["steps_per_seed"], "ours_over_peer": spread(ratios)}
            | {name: spread(row.get(name) for row in own) for name in measured}
        )
    return summary


def spread(values: Iterable[float | None]) -> list[float] | None:
    """[median, least, greatest], or None if there is no value."""
    known = [value for value in values if value is not None]
    return [statistics.median(known), min(known), max(known)] if known else None


def table(found: dict[str, Any], summary: list[dict[str, Any]]) -> str:
    machine, rounds = found["machine"], max((row["round"] for row in found["rows"]), default=0)
    lines = [
        "# Throughput",
        "",
        f"Made by `python benchmarks/throughput.py` on {machine['cores']} cores of {machine['cpu']}, "
        f"{machine['gpu'] or 'no GPU'}; {rounds} alternating rounds, each measurement in a process of its own. "
        "Medians, with [least – greatest]. Steps per second are those of all seeds together, compilation left out; "
        "*ours is* compares measurements of the same round. The return is that of the last episodes of training, or "
        "of the evaluation that the peer comes with.",
    ]
    if found["quick"]:
        lines += ["", "**A smoke test of ten updates, too short to compare anything.**"]
    for task in dict.fromkeys(row["task"] for row in summary):
        lines += ["", f"## {task}", ""]
        lines += ["| | steps per second | ours is | compile, s | peak memory, MB | return | steps per seed | seeds |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in (row for row in summary if row["task"] == task):
            compiled = cell(row["compile_seconds"], "{:.1f}")
            if row["cached_compile_seconds"]:
                compiled += f"; cached {cell(row['cached_compile_seconds'], '{:.1f}')}"
            memory = row["peak_rss_bytes"] and [x / 1e6 for x in row["peak_rss_bytes"]]
            ratio = "" if row["peer"] == "ours" else cell(row["ours_over_peer"], "{:.2f}×")
            lines += [
                f"| {row['peer']} | {cell(row['steps_per_second'], '{:,.0f}')} | {ratio} | {compiled} | "
                f"{cell(memory, '{:,.0f}')} | {cell(row['final_return'], '{:.1f}')} | {row['steps_per_seed']:,} | "
                f"{row['seeds']} |"
            ]
    notes = {row["peer"]: row["note"] for row in found["rows"] if row["note"]}
    versions = {row["peer"]: ", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in found["rows"]}
    lines += ["", "## Versions and differences", ""]
    lines += [f"- {name}: {versions[name]}. {notes.get(name, '')}".rstrip() for name in versions]
    if found["failures"]:
        lines += ["", "## Not measured", "", "| task | | reason |", "|---|---|---|"]
        lines += [f"| {f['task']} | {f['peer']} | {f['reason'].replace('|', '/')} |" for f in found["failures"]]
    return "\n".join(lines) + "\n"


def cell(values: list[float] | None, form: str) -> str:
    if not values:
        return "–"
    median, least, greatest = (form.format(x) for x in values)
    return median if least == greatest else f"{median} [{least} – {greatest}]"


def draw(path: Path, summary: list[dict[str, Any]], machine: dict[str, Any]) -> None:
    """A row per task, a dot per participant at its median, a line over its range."""
    tasks = list(dict.fromkeys(row["task"] for row in summary))
    figure = Figure(figsize=(9, 1.6 + 0.48 * len(tasks)), dpi=110, layout="constrained")
    axes = figure.subplots()
    for peer in (name for name in COLORS if any(row["peer"] == name for row in summary)):
        own = [row for row in summary if row["peer"] == peer]
        median, least, greatest = zip(*(row["steps_per_second"] for row in own), strict=True)
        y = [tasks.index(row["task"]) for row in own]
        axes.hlines(y, least, greatest, color=COLORS[peer], linewidth=2.5, alpha=0.6)
        marker, size = ("D", 60) if peer == "ours" else ("o", 40)
        above = 4 if peer == "ours" else 3
        axes.scatter(median, y, s=size, marker=marker, color=COLORS[peer], label=peer, zorder=above)
    for y, task in enumerate(tasks):
        ours = next((r["steps_per_second"][0] for r in summary if (r["task"], r["peer"]) == (task, "ours")), None)
        if ours:
            axes.annotate(f"{ours / 1000:,.0f}k", (ours, y), (9, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(tasks)), [label(task) for task in tasks])
    axes.set_ylim(len(tasks) - 0.4, -0.6)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 1e6:g}M" if x >= 1e6 else f"{x / 1000:g}k"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", which="major", alpha=0.35)
    axes.grid(axis="x", which="minor", alpha=0.12)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    device = machine["gpu"] or f"{machine['cores']} CPU cores"
    axes.set_xlabel(f"environment steps per second, all seeds together ({device})")
    figure.legend(loc="outside upper center", ncols=8, frameon=False, handletextpad=0.1, columnspacing=1.2)
    figure.savefig(path)


def label(task: str) -> str:
    """`CartPole-v1/ppo/16x4` as a reader says it."""
    env, algo, size = task.split("/")
    seeds, envs = (f"{n} {unit}" + "s" * (n != "1") for n, unit in zip(size.split("x"), ("seed", "env"), strict=True))
    return f"{env} {algo.upper()}, {seeds} × {envs}"
