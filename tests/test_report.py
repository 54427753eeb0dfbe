"""The report: its numbers against other ways to them, what it refuses, and how it looks to a browser."""

import base64
import csv
import html.parser
import itertools
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import scipy.stats

from purejaxppo.errors import UsageError
from purejaxppo.report.diagnostics import PANELS, panel_figure
from purejaxppo.report.labels import labels
from purejaxppo.report.page import named, run_directories, shared_seeds, write_report
from purejaxppo.report.page import page as page_of
from purejaxppo.report.sections import improvements
from purejaxppo.rundir.contents import read_contents
from purejaxppo.rundir.metrics import read_metrics

HOSTILE = "<script>alert(1)</script>\"'&$x_1$ _{}\n\u202e"
LONG = {"advantage_normalization_over_the_whole_batch_of_all_workers": "my_module.with_a_long_name.Network(512)"}
OWN = {"ppo": {"clip_eps": 0.2}, "trpo": {"max_kl": 0.01, "damping": 0.1}, "npg": {"max_kl": 0.01}, "a2c": {}}
COLUMNS = {
    "ppo": ["clip_fraction"],
    "trpo": ["accepted", "backtracks", "predicted_kl", "cg_residual"],
    "npg": ["accepted", "predicted_kl", "cg_residual"],
}


def make_run(path, algo="ppo", env="CartPole-v1", seeds=range(4), rows=9, scores=None, ended=True, failed=None, **more):
    """A run directory like those of `purejaxppo.run`, from random numbers."""
    rng, seeds = np.random.default_rng([len(algo), len(env), *seeds]), list(seeds)
    path.mkdir(parents=True)
    settings = {"algo": algo, "env": env, "num_envs": 4, "hidden_sizes": [64, 64], "target_kl": "inf"} | OWN.get(
        algo, {}
    )
    config = {"settings": settings | more, "seeds": seeds, "versions": {"jax": "0.8.0"}, "prng_implementation": "fry"}
    (path / "config.json").write_text(json.dumps(config))
    names = sorted({"episode_return", "episodes", "entropy", "explained_variance", "kl", *COLUMNS.get(algo, [])})
    with (path / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "update", "env_steps", *names])
        for row, seed in itertools.product(range(rows), seeds):
            cells = {name: f"{rng.uniform(0.1, 1):.7g}" for name in names}
            cells["episode_return"] = (
                "" if row == 0 or (row == 2 and seed == seeds[0]) else f"{rng.normal(20 * row):.7g}"
            )
            writer.writerow([seed, row + 1, 512 * (row + 1), *(cells[name] for name in names)])
    if ended:
        returns = rng.normal(100, 20, len(seeds)).tolist() if scores is None else list(scores)
        summary = {"algo": algo, "env": env, "num_seeds": len(seeds), "env_steps": 512 * rows, "device": "2 × cpu"}
        summary |= {"steps_per_second": 1234.5, "compile_seconds": 3.25, "run_seconds": 8.0}
        summary |= {"eval_return": {"per_seed": returns}} | ({} if failed is None else {"failed_seeds": failed})
        (path / "summary.json").write_text(json.dumps(summary))
    return path


class Page(html.parser.HTMLParser):
    """What a page holds: tables as lists of rows of text, attributes, images, all text."""

    def __init__(self, source):
        super().__init__()
        self.tables, self.attributes, self.tags, self.text, self.images = [], [], [], "", []
        self.source, self.in_cell = source, False
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
            self.in_cell = True
        elif tag == "img":
            self.images.append(dict(attrs))

    def handle_data(self, data):
        self.text += data
        if self.in_cell:
            self.tables[-1][-1][-1] += data

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def table(self, *head):
        """The rows of the tables whose first row holds `head`."""
        return [row for table in self.tables if {*head} <= {*table[0]} for row in table[1:]]


def report(tmp_path, *directories):
    write_report(list(directories), tmp_path / "report.html")
    return Page((tmp_path / "report.html").read_text())


def entries(*runs):
    return named([read_contents(run) for run in runs])


def tables_of(source, *head):
    return Page(source).table(*head)


def refuses(*directories, out, match):
    with pytest.raises(UsageError, match=match) as caught:
        write_report(list(directories), out)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert not out.is_file()


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Runs of every kind."""
    root = tmp_path_factory.mktemp("runs")
    failed = [{"seed": 3, "update": 17, "cause": "reward " + HOSTILE}]
    return [
        make_run(root / "trpo", "trpo", seeds=range(8), failed=failed, **LONG),
        make_run(root / "wide", "trpo", seeds=range(8), max_kl=0.05, rows=90, failed=[], **LONG),
        make_run(root / "ppo", scores=[100.0, 90.0, "nan", 80.0]),
        make_run(root / "one", "a2c", seeds=[7], scores=[55.5]),
        make_run(root / "running", "npg", ended=False),
        make_run(root / "hostile", HOSTILE, HOSTILE * 3, rows=3, **{HOSTILE: HOSTILE, "nested": {"a": [HOSTILE]}}),
    ]


@pytest.fixture(scope="module")
def page(many, tmp_path_factory):
    return report(tmp_path_factory.mktemp("page"), *many)


def test_iqm_of_scores_is_scipys(page, many):
    rows = {row[0]: row for row in page.table("IQM", "95% interval")}
    assert len(rows) == len(many)
    scores = read_contents(many[1]).scores
    assert rows["trpo · max_kl=0.05"][2] == f"{scipy.stats.trim_mean(scores, 0.25):.1f}"
    assert rows["trpo · max_kl=0.05"][4] == f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}"
    assert rows["trpo · max_kl=0.05"][5] == f"{scores.min():.1f} (seed {scores.argmin()})"
    assert rows["ppo"][2] == "90.0"  # the mean of 80, 90 and 100: nothing is trimmed of three
    assert rows["ppo"][-1] == "3 of 4"
    assert rows["a2c"][2:5] == ["55.5", "–", "55.5"]  # one seed: no interval
    low, high = (float(x) for x in rows["trpo · max_kl=0.05"][3].strip("[]").split(", "))
    assert scores.min() <= low < scipy.stats.trim_mean(scores, 0.25) < high <= scores.max()


def test_probability_of_improvement_is_brute_force(tmp_path):
    x, y = [3.0, 1.0, 2.0, 2.0, 5.0], [2.0, 2.0, 0.0]
    expected = sum((a > b) + 0.5 * (a == b) for a, b in itertools.product(x, y)) / 15
    first = make_run(tmp_path / "a", "ppo", seeds=range(5), scores=x)
    second = make_run(tmp_path / "b", "a2c", seeds=range(3), scores=y)
    [row] = tables_of(improvements("CartPole-v1", entries(first, second)), "P(X > Y)")
    assert row[:3] == ["ppo", "a2c", f"{expected:.2f}"]
    low, high = (float(x) for x in row[3].strip("[]").split(", "))
    assert 0 <= low < expected < high <= 1


def test_pairs_are_of_scores_of_one_kind_and_against_the_first_of_many(page, tmp_path):
    assert {"npg"}.isdisjoint({cell for row in page.table("P(X > Y)") for cell in row})  # in progress, or alone
    assert len(page.table("P(X > Y)")) == 6
    runs = [make_run(tmp_path / f"{i}", num_envs=i, rows=1) for i in range(8)]
    rows = tables_of(improvements("CartPole-v1", entries(*runs)), "P(X > Y)")
    assert [row[:2] for row in rows] == [[f"ppo · num_envs={i}", "ppo · num_envs=0"] for i in range(1, 8)]
    (tmp_path / "0" / "summary.json").unlink()  # in progress: the others are compared with one that has ended
    rows = tables_of(improvements("CartPole-v1", entries(*runs)), "P(X > Y)")
    assert [row[:2] for row in rows] == [[f"ppo · num_envs={i}", "ppo · num_envs=1"] for i in range(2, 8)]


def test_settings_that_differ(page):
    rows = {row[0]: row[1:] for row in page.table("setting")}
    assert rows["max_kl"] == ["0.01", "0.05", "–", "–", "0.01", "–"]
    assert rows["seeds"][0] == "seeds 0–7"
    assert "hidden_sizes" not in rows
    assert "hidden_sizes64, 64" in page.text


def test_in_progress_and_failed_seeds_are_told(page):
    rows = page.table("IQM")
    assert [row[0] for row in rows if "in progress" in row[0]] == ["npg in progress"]
    assert "6 runs, one of them in progress" in page.text
    assert "Seeds that failed are left out from then on: 1 of 8 of trpo · max_kl=0.01." in page.text
    assert "not comparable with an evaluation" in page.text
    assert "Fewer than 3 seeds give no interval" in page.text
    assert "sick" not in page.source.lower()
    [row] = page.table("cause")
    assert row[:4] == ["trpo · max_kl=0.01", "CartPole-v1", "3", "17"]
    assert row[4].startswith("reward <script>alert(1)</script>")


def test_a_run_that_is_being_made_longer_is_in_progress(tmp_path):
    run = make_run(tmp_path / "run", rows=9)
    assert read_contents(run).summary
    with (run / "metrics.csv").open("a", newline="") as file:
        columns = len((run / "metrics.csv").read_text().split("\n")[0].split(","))
        csv.writer(file).writerows([[seed, 10, 5120, *["3"] * (columns - 3)] for seed in range(4)])
    assert read_contents(run).summary is None
    assert "One run, in progress" in report(tmp_path, run).text


def test_scores_that_are_not_of_one_measure_are_told(tmp_path):
    one, other = make_run(tmp_path / "one"), make_run(tmp_path / "other", seeds=range(4, 8), rows=5)
    assert "Not all made the same number of steps" in report(tmp_path, one, other).text
    path = other / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cut_off": 7}))
    page = report(tmp_path, one, other).text
    assert "Episodes that eval_max_steps cut off count as they were then: 7 of " in page
    alone = report(tmp_path, one).text
    assert "Not all made" not in alone
    assert "eval_max_steps" not in alone


def test_every_seed_that_dies_is_drawn(tmp_path):
    """An interquartile mean would hide the first quarter of them."""
    run, [panel] = make_run(tmp_path / "run", seeds=range(8)), [x for x in PANELS if x.column == "alive"]
    for dead in range(3):
        rows = [f"{seed},1,512,{int(seed >= dead)}\n" for seed in range(8)]
        (run / "metrics.csv").write_text("".join(["seed,update,env_steps,alive\n", *rows]))
        drawn = panel_figure(panel, "CartPole-v1", entries(run))
        assert (f"ppo ends at {1 - dead / 8:.3g}." in drawn) == (dead > 0)


def test_no_failed_seeds_and_one_run(tmp_path):
    page = report(tmp_path, make_run(tmp_path / "run", failed=[]))
    assert "None." in page.text
    assert "One run: nothing to compare." in page.text


def test_results_come_before_settings(page):
    assert re.findall("<h2>(.*?)</h2>", page.source) == [
        "Learning curves",
        "Final scores",
        "Performance profiles",
        "Probability of improvement",
        "Settings",
        "Update diagnostics",
        "Diagnosis",
        "Throughput",
        "Failed seeds",
        "How the numbers are made",
    ]


def test_page_is_self_contained_and_escaped(page):
    assert not re.search(r"https?:|//[a-z]", re.sub(r'src="data:[^"]*"', "", page.source))
    assert {"script", "link", "iframe", "object"}.isdisjoint(page.tags)
    urls = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "style", "poster")]
    assert all(url.startswith(("data:image/svg+xml;base64,", "#")) for url in urls)
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert "<script>alert(1)</script>" in page.text
    assert "\u202e" not in page.source
    assert page.images
    for image in page.images:
        svg = base64.b64decode(image["src"].partition(",")[2]).decode()
        assert "<svg" in svg
        assert "<script" not in svg
        assert not re.search(r'href="(?!#)', svg)
        assert len(image["alt"]) > 20


def test_same_runs_same_bytes(many, tmp_path):
    state = np.random.get_state()[1].copy()
    first, second = (report(tmp_path, many[2]).source for _ in range(2))
    assert first == second
    assert (np.random.get_state()[1] == state).all()  # the caller's random numbers are left alone
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_labels_tell_runs_apart(tmp_path):
    def named(*runs):
        return labels([read_contents(run) for run in runs])

    a = make_run(tmp_path / "a", "trpo", max_kl=0.01)
    b = make_run(tmp_path / "b", "trpo", max_kl=0.02)
    seeds = make_run(tmp_path / "c", "trpo", max_kl=0.02, seeds=range(8, 12))
    again = make_run(tmp_path / "d", "trpo", max_kl=0.02)
    other = make_run(tmp_path / "e", "trpo", "Acrobot-v1", num_envs=99)
    assert named(a, other) == ["trpo", "trpo"]  # different environments: nothing to tell apart
    assert named(a, b) == ["trpo · max_kl=0.01", "trpo · max_kl=0.02"]
    assert named(b, seeds) == ["trpo · seeds 0–3", "trpo · seeds 8–11"]
    assert named(b, again) == ["trpo · b", "trpo · d"]
    assert named(b, b) == ["trpo", "trpo (2)"]
    assert len({*named(a, b, seeds, again)}) == 4


@pytest.mark.parametrize("content", ["", "seed,update,env_steps,episode_return\r\n", "seed,upd"])
def test_a_run_that_only_just_began(tmp_path, content):
    run = make_run(tmp_path / "run", ended=False)
    (run / "metrics.csv").write_text(content)
    others = [] if content else [make_run(tmp_path / "b", "a2c", "X")]
    assert "there is no score yet" in report(tmp_path, run, *others).text


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("seed,update,env_steps,kl\r\n5,1,8,0.5\r\n2,1,8,\r\n5,2,16,inf\r\n2,2,16,0.7\r\n5,3,24,0.12")
    log = read_metrics(path, [5, 2])
    np.testing.assert_array_equal(log.env_steps, [8, 16])
    np.testing.assert_array_equal(log.columns["kl"], [[0.5, np.nan], [np.nan, 0.7]])


def test_refuses_directories_and_names(tmp_path):
    run, out = make_run(tmp_path / "run"), tmp_path / "report.html"
    refuses(out=out, match="no directory is given")
    refuses(run, tmp_path / "none", out=out, match=r"'.*none' does not exist")
    refuses(run, out=tmp_path / "report.pdf", match=r"report\.pdf' must end in \.html or \.htm")
    refuses(run, out=tmp_path / "no" / "report.html", match="must be a file in a directory that exists")
    large = make_run(tmp_path / "large")
    os.truncate(large / "config.json", 2**26 + 1)
    refuses(large, out=out, match="67,108,865 bytes, and at most 67,108,864 are read")
    (run / "metrics.csv").unlink()
    refuses(run, out=out, match="holds no run's config.json and metrics.csv, and a report needs at least one run")


def test_strays_are_skipped_with_a_word_and_a_sweeps_directory_is_its_runs(tmp_path):
    """As `report DIR/*` gives them: files, directories that hold no run, and one that holds several, are not runs."""
    runs = [make_run(tmp_path / "runs" / name, max_kl=i) for i, name in enumerate(("b", "sweep/x", "sweep/y", "a"))]
    strays = [tmp_path / "runs" / name for name in ("notes.txt", "empty", "link")]
    strays[0].write_text("")
    strays[1].mkdir()
    strays[2].symlink_to("nowhere")
    (tmp_path / "runs" / "sweep" / "sweep.json").write_text("{}")
    with pytest.warns(UserWarning, match="is skipped") as told:
        found = run_directories([*sorted((tmp_path / "runs").iterdir()), runs[1]])
    assert found == [runs[3], runs[0], runs[1], runs[2]]  # each once
    assert sorted(str(w.message).partition(" is skipped")[0] for w in told) == sorted(map(str, strays))
    assert run_directories([tmp_path / "runs" / "sweep"]) == runs[1:3]


def test_runs_that_share_seeds_are_named(tmp_path):
    """--seed 0 and --seed 1 with eight seeds each are seven identical runs."""
    more = {"total_steps": 2000, "eval_interval": 3}
    runs = [
        make_run(tmp_path / "a", seeds=range(8)),
        make_run(tmp_path / "b", seeds=range(1, 9), **more),
        make_run(tmp_path / "c", seeds=range(8, 16)),
        make_run(tmp_path / "d", seeds=range(8), clip_eps=0.1),
        make_run(tmp_path / "e", "a2c", seeds=range(8)),
        make_run(tmp_path / "f", env="X", seeds=range(8)),
    ]
    for name, mesh in (("g", "env=2"), ("h", "run=2")):  # other episodes; the same
        runs.append(make_run(tmp_path / name, env="Y", seeds=range(8)))
        config = runs[-1] / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"options": {"mesh": mesh}}))
    runs.append(make_run(tmp_path / "i", env="Y", seeds=range(8)))
    [first, second, third] = shared_seeds(entries(*runs))
    assert re.match("ppo.* and ppo.* on Y are trained alike", third)
    assert "env=2" not in third
    assert re.match("ppo.* and ppo.* on CartPole-v1 are trained alike and share seeds 1–7. These", first)
    assert re.match("ppo.* and ppo.* seeds 8–15 on CartPole-v1 are trained alike and share seed 8. These", second)
    with pytest.warns(UserWarning, match="share seeds 1–7"):
        shown = page_of([read_contents(run) for run in runs[:2]])
    assert "share seeds 1–7. These runs are identical" in Page(shown).text
    long = "gymnasium/a_package_of_ones_own.environments:MyEnvironment-v0,mode="
    ends = [make_run(tmp_path / x, env=f"{long}{x}", init_from=f"{long}{x}") for x in ("sparse", "dense")]
    assert len({run.env for run in map(read_contents, ends)}) == 2
    more = [make_run(tmp_path / f"begun{x}", init_from=f"{long}{x}") for x in ("sparse", "dense")]
    assert shared_seeds(entries(*ends, *more)) == []  # though they differ after 60 characters only
    copies = [make_run(tmp_path / f"copy{i}", seeds=[3]) for i in range(5)]
    assert shared_seeds(entries(*copies))[4:] == ["The same holds for 6 more pairs of runs."]


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("config.json", "", "it is empty"),
        ("config.json", "{", "JSONDecodeError"),
        ("config.json", "[" * 200_000, "RecursionError"),
        ("config.json", "[]", "no JSON object"),
        ("config.json", "\xff", "UnicodeDecodeError"),
        ("config.json", '{"settings": 3, "seeds": [1]}', "TypeError"),
        ("config.json", '{"settings": {"algo": "ppo", "env": 3}, "seeds": [0, 1, 2, 3]}', "env = 3 is not a name"),
        ("config.json", '{"settings": {"algo": "ppo", "env": "X"}, "seeds": [true]}', r"seeds = \[True\]"),
        ("config.json", '{"settings": {"algo": "ppo", "env": "X"}, "seeds": [1, 1]}', r"seeds = \[1, 1\]"),
        ("config.json", '{"settings": {"algo": "ppo", "env": "X"}, "seeds": []}', r"seeds = \[\]"),
        ("summary.json", "null", "no JSON object"),
        ("summary.json", '{"eval_return": {"per_seed": [1]}}', "one return for each of 4 seeds"),
        ("summary.json", '{"eval_return": {"per_seed": [1, 2, 3, 4]}, "sick_seeds": [3]}', "TypeError"),
        ("summary.json", '{"eval_return": {"per_seed": [1, 2, 3, 4]}, "failed_seeds": {}}', "failed_seeds"),
        ("metrics.csv", "a,b\n", "its first line is 'a, b'"),
        ("metrics.csv", "seed,update,env_steps,kl,kl\n", "its first line"),
        ("metrics.csv", "seed,update,env_steps,kl\n0,1,8\n", "line 2 has 3 cells and the first 4"),
        ("metrics.csv", "seed,update,env_steps,kl\n0,1,8,=cmd()\n", r"line 2: .*'=cmd\(\)'"),
        ("metrics.csv", "seed,update,env_steps,kl\n9,1,8,1\n", "line 2, of seed 9 and update 1, does not follow"),
        ("metrics.csv", "seed,update,env_steps,kl\n0,,8,1\n", "ValueError: invalid literal"),
        ("metrics.csv", f"seed,update,env_steps,{'k' * 200_000}\n", "field larger"),
        ("metrics.csv", 'seed,update,env_steps,"kl\n0,1,8,1\n', "unexpected end"),
    ],
)
def test_refuses_malformed_files(tmp_path, file, content, match):
    run = make_run(tmp_path / "run")
    (run / file).write_bytes(content.encode("latin-1"))
    refuses(run, out=tmp_path / "report.html", match=match)


def test_extreme_numbers_are_drawn_or_left_out(tmp_path):
    run = make_run(tmp_path / "run", scores=[1e308, "-inf", 3e30, -4e30])
    text = (run / "metrics.csv").read_text().splitlines()
    text[-1] = ",".join([*text[-1].split(",")[:3], *(["1e308", "-1e99", "nan", "-inf", "1e-320", "3e38"])])
    (run / "metrics.csv").write_text("\n".join(text) + "\n")
    config = json.loads((run / "config.json").read_text())
    config["settings"] |= {"huge": 10**3000, "bad": "\ud800", "none": None}
    (run / "config.json").write_text(json.dumps(config))
    page = report(tmp_path, run)
    assert "2 of 4" in page.text
    assert "a huge integer" in page.text


WIDTHS = (390, 768, 1280)
PROBE = """<!DOCTYPE html><meta charset="utf-8"><body>
%s
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    return {
      viewport: root.clientWidth, content: Math.max(root.scrollWidth, page.body.scrollWidth),
      images: [...page.images].map((image) => [image.complete, image.naturalWidth, image.clientWidth]),
      requests: frame.contentWindow.performance.getEntriesByType("resource").map((entry) => entry.name),
      overprinted: [...page.querySelectorAll("th, td, p, figcaption")]
        .filter((element) => element.scrollWidth > element.clientWidth + 1).map((element) => element.textContent),
      right: [...page.querySelectorAll("header, section")].map((section) => Math.max(...[...section.querySelectorAll(
        "img, table, p, figcaption, nav")].map((element) => element.getBoundingClientRect().right))),
      alerts: page.querySelectorAll("script").length, text: page.body.innerText.length,
    };
  });
  document.body.innerHTML = "<pre>" + JSON.stringify(seen) + "</pre>";
});
</script>"""


def test_in_a_browser(page, tmp_path):
    """Headless Chromium: every image decodes, nothing is wider than the screen, nothing is fetched or complained of."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs a headless browser: apt-get install chromium")
    (tmp_path / "report.html").write_text(page.source)
    frames = "\n".join(f'<iframe src="report.html" width="{width}" height="900"></iframe>' for width in WIDTHS)
    (tmp_path / "probe.html").write_text(PROBE % frames)
    flags = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions".split()
    flags += ["--allow-file-access-from-files", "--virtual-time-budget=20000", "--enable-logging=stderr", "--v=0"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1000"]
    command = [browser, *flags, "--dump-dom", (tmp_path / "probe.html").as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert ":CONSOLE" not in ran.stderr
    seen = json.loads(html.unescape(ran.stdout.partition("<pre>")[2].partition("</pre>")[0]))
    assert len(seen) == len(WIDTHS)
    for width, frame in zip(WIDTHS, seen, strict=True):
        assert width - 20 <= frame["viewport"] <= width
        assert frame["content"] <= frame["viewport"]
        assert len(frame["images"]) == len(page.images)
        assert all(complete and natural > 0 and 0 < shown < width for complete, natural, shown in frame["images"])
        assert [name for name in frame["requests"] if not name.startswith("data:")] == []
        assert frame["alerts"] == 0
        assert frame["text"] > 3000
        assert frame["overprinted"] == []
        assert min(frame["right"][:7]) > 0.7 * width  # no third of the screen stays empty
