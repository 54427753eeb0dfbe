"""What README and site show works: Python is executed, commands are parsed and run, public names are documented.

A block that is not executed says why in a comment above it: `<!-- not executed: why -->`. A block with a `title` is
written to a file of that name, for the blocks after it. Everything trains for two updates only.
"""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import purejaxppo
from purejaxppo import UsageError, make_train
from purejaxppo.__main__ import COMMANDS, front
from purejaxppo.algorithms import ALGORITHMS
from purejaxppo.cli.flags import parse_flags, with_file
from purejaxppo.cli.settings import NoOptions, parse_resume, parse_settings
from purejaxppo.cli.sweep import SweepOptions
from purejaxppo.cli.tune import WITHOUT, TuneOptions
from purejaxppo.config import Config
from purejaxppo.rundir.files import read_toml
from purejaxppo.tuning.space import default_space, parse_space
from purejaxppo.tuning.study_options import check_unused

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CHEAP = {"docs/guides/settings.md", "docs/guides/compare.md"}  # others train
FENCE = re.compile(
    r'(?:<!-- not executed: (?P<why>[^>]+) -->\s*)?^(?P<indent> *)```(?P<kind>\w+)(?: title="(?P<title>[^"]+)")?\n'
    r"(?P<code>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
MORE = {"run": NoOptions(), "sweep": SweepOptions(), "tune": TuneOptions()}  # flags beside those of settings
OTHERS = (
    r"(git clone|cd |mkdir |pytest|docker build|python benchmarks/|export [A-Z_]+=|uv sync|bash \.ci/|mkdocs |ruff )"
)


class Block(NamedTuple):
    kind: str  # python, bash, toml, yaml or text
    title: str
    code: str
    why: str  # it is not executed; "" if it is


def blocks(page: Path) -> list[Block]:
    found = []
    for match in FENCE.finditer(page.read_text()):
        code = re.sub(f"^{match['indent']}", "", match["code"], flags=re.MULTILINE)
        found.append(Block(match["kind"], match["title"] or "", code, match["why"] or ""))
    return found


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def commands(code: str) -> list[list[str]]:
    """The words of each call of our command in a shell block; other lines are held to what is known of them."""
    found = []
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in code.splitlines():
        for written in re.split(r" && ", re.sub(r"(^|\s)#.*", "", line).strip()):
            called = re.sub(r"^docker run (--rm |--gpus all |-[uve] \S+ )*purejaxppo(:cuda)? ", "purejaxppo ", written)
            part = re.sub(r"^uv run ", "", called)
            if re.match(r"(purejaxppo|python -m purejaxppo(\.run)?)( |$)", part):
                words = shlex.split(re.sub(r" > \S+$", "", part).replace("runs/*", "runs/first runs/second"))
                found.append(["run", *words[3:]] if words[0] == "python" else words[1:])
            elif part.startswith("pip install"):
                named = re.findall(r"\.\[([\w,]+)\]", part)
                assert {extra for group in named for extra in group.split(",")} <= {*extras}, part
            else:
                assert not part or re.match(OTHERS, part), f"{part!r} is neither ours nor known"
    return found


def parse(words: list[str]) -> None:
    """Hold a command against its parser, and its settings against the environment, if that is installed."""
    name, *argv = words
    if name == "--print-completion" or "--help" in argv:
        return
    assert name in COMMANDS
    if name not in MORE:
        parse_flags(importlib.import_module(f"purejaxppo.cli.{name}").main.options, argv, name, "")
    elif "--resume" in argv:
        parse_resume(argv, name, WITHOUT if name.endswith("tune") else ())
    else:
        argv = with_file(argv, tables=("grid", "sample") if name == "sweep" else ())
        config, options, _, own = parse_settings(argv, name, "", MORE[name])
        try:
            config.check()
        except UsageError as error:
            if "not installed" not in str(error):
                raise
            return
        if name == "sweep":
            own.settings(config, 0)
        if name == "tune":
            space = parse_space(config, read_toml(Path(own.space)) if own.space else default_space(config))
            check_unused(own, config, space)
            own.ladder(config, space, own.final_steps(config, space, len(options.seeds)))


EXCERPT = re.compile(
    r"\*\*Our code\*\* \(`([^`]+)`\)\s+<!-- not executed: an excerpt -->\s+```python\n(.*?)```", re.DOTALL
)


def test_excerpts_are_what_stands_in_the_code() -> None:
    """But for annotations and line breaks."""
    pages = [page.read_text() for page in (ROOT / "docs" / "algorithms").glob("*.md")]
    excerpts = [found for text in pages for found in EXCERPT.findall(text)]
    assert len(excerpts) == sum("**Our code**" in text for text in pages) >= len(ALGORITHMS)
    for file, excerpt in excerpts:
        code = "".join((ROOT / file).read_text().split())
        for line in excerpt.splitlines():
            wanted = re.sub(r"(def \w+\().*", r"\1", line)  # whose arguments have annotations in the code
            assert "".join(wanted.split()) in code, (file, line)


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """An empty directory to work in, from which modules are imported; whatever is trained has two updates at most."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    planned = Config.num_updates.fget
    monkeypatch.setattr(Config, "num_updates", property(lambda self: min(2, planned(self))))
    for algorithm in ALGORITHMS.values():
        monkeypatch.setattr(algorithm, "published", {**algorithm.published, "num_steps": 16}, raising=False)
    own = {*purejaxppo.ALGORITHMS}
    yield tmp_path
    sys.modules.pop("my_module", None)
    for name in {*purejaxppo.ALGORITHMS} - own:
        del purejaxppo.ALGORITHMS[name]


def write_settings(page: Path) -> None:
    """The TOML files of a page; commands that read them may stand before them."""
    for block in blocks(page):
        if block.kind == "toml" and block.title:
            write_file(block)


def write_file(block: Block) -> None:
    if block.title:
        Path(block.title).write_text(block.code)
        sys.modules.pop(Path(block.title).stem, None)


def ensure_runs(words: list[str]) -> None:
    """Train what a command reads, where no block before it did."""
    inputs = [word for word, before in zip(words, ["", *words], strict=False) if before not in ("--out", "--json")]
    for directory in [word for word in inputs if word.startswith("runs/") and not Path(word).exists()]:
        env = "Pendulum-v1" if "pendulum" in directory else "CartPole-v1"
        assert front(["run", "--algo", "trpo", "--env", env, "--num-seeds", "2", "--quiet", "--out", directory]) == 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_are_of_known_kinds_and_python_is_valid(page: Path) -> None:
    text = page.read_text()
    assert text.count("```") == 2 * len(blocks(page)), "a block that this test does not see"
    for block in blocks(page):
        assert block.kind in ("python", "bash", "toml", "text", "yaml"), block.kind
        if block.kind == "python":
            ast.parse(block.code)


@pytest.mark.parametrize("page", [page for page in PAGES if "```bash" in page.read_text()], ids=name_of)
def test_commands_are_understood(page: Path, somewhere: Path) -> None:
    """Unknown flags, settings that cannot be, extras that do not exist."""
    write_settings(page)
    for block in blocks(page):
        write_file(block)
        if block.kind == "yaml":  # a container's arguments
            parse(re.findall(r"^ +- (run|--\S+)$", block.code, re.MULTILINE))
        if block.kind == "bash" and not block.why:
            for words in commands(block.code):
                for directory in re.findall(r"--config (runs/\w+)", " ".join(words)):
                    record_of(Path(directory))
                if "my_module:Corridor" in words and not Path("my_module.py").exists():
                    write_file(next(b for b in blocks(ROOT / "docs/guides/environment.md") if b.title))
                parse(words)


def record_of(directory: Path) -> None:
    """A directory with the config.json of a run."""
    from purejaxppo.experiment.experiment import start_record
    from purejaxppo.experiment.options import HostOptions
    from purejaxppo.rundir.record import write_record

    directory.mkdir(parents=True, exist_ok=True)
    config = Config(env="Pendulum-v1")
    write_record(start_record(config, [0], directory, [None], HostOptions()))


RUNNABLE = [page for page in PAGES if any(b.kind == "python" and not b.why for b in blocks(page))]
MARKED = [
    pytest.param(page, id=name_of(page), marks=[] if name_of(page) in CHEAP else [pytest.mark.slow])
    for page in RUNNABLE
    if page.name != "moving.md"  # see below
]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", MARKED)
def test_python_is_executed(page: Path, somewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All blocks of a page in order, in one namespace; before them, the runs that they read are trained."""
    names: dict[str, Any] = {"__name__": "__main__"}
    write_settings(page)
    for block in blocks(page):
        write_file(block)
        if block.kind == "bash" and not block.why and name_of(page) not in CHEAP:
            for words in commands(block.code):
                if (
                    words[0] in ("run", "sweep", "export", "evaluate", "render", "report", "diagnose")
                    and "--help" not in words
                ):
                    ensure_runs(words)
                    with_settings_of_the_test = [*words, "--quiet"] if words[0] in ("run", "sweep") else words
                    code = front(with_settings_of_the_test)
                    assert code == 0 or "not installed" in capsys.readouterr().err, words
        if block.kind == "python" and not block.why:
            sys.modules["__main__"].__dict__.update({k: v for k, v in names.items() if isinstance(v, type)})
            exec(compile(block.code, f"{page.name}: {block.code[:40]!r}", "exec"), names)  # noqa: S102


def translated() -> list[Any]:
    """Title and code of each configuration that the guide translates."""
    text = (ROOT / "docs/guides/moving.md").read_text()
    found = re.findall(r"^### (.+?)\n.*?^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [pytest.param(code, id=title) for title, code in found]


def config_of(code: str) -> Config:
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102
    return names["config"]


def test_ten_configurations_are_translated() -> None:
    assert len(translated()) >= 10


@pytest.mark.parametrize("code", translated())
def test_translated_configurations_are_valid(code: str) -> None:
    config_of(code).check()


@pytest.mark.slow
@pytest.mark.parametrize("code", translated())
def test_translated_configurations_train(code: str, somewhere: Path) -> None:
    import jax

    _, metrics = jax.jit(make_train(config_of(code)))(jax.random.key(0))
    assert metrics["alive"].shape == (2,)
    assert metrics["alive"].all()


def test_public_names_have_docstrings() -> None:
    """Every public name, and every public method and property of the classes among them."""
    missing = []
    for name in purejaxppo.__all__:
        thing = getattr(purejaxppo, name)
        if not callable(thing):
            continue
        documented = inspect.getdoc(thing) or ""
        if not documented or documented.startswith(f"{name}("):  # what a NamedTuple or dataclass gets by itself
            missing.append(name)
        if isinstance(thing, type):
            for member, value in vars(thing).items():
                own = isinstance(value, property) or inspect.isfunction(value)
                inherited = member in ("init", "update", "replace", "shape", "reset", "step")
                if own and not member.startswith("_") and not inherited and not inspect.getdoc(value):
                    missing.append(f"{name}.{member}")
    assert missing == []


def test_functions_name_their_errors_and_arguments() -> None:
    """A public function that raises `UsageError` says when."""
    for name in (
        "make_train",
        "init",
        "evaluate",
        "load",
        "render",
        "export_policy",
        "over_runs",
        "preset",
        "sweep",
        "tune",
        "run_experiment",
        "diagnose",
    ):
        assert "Raises:" in inspect.getdoc(getattr(purejaxppo, name)), name


@pytest.mark.parametrize("owner", [Config, *ALGORITHMS.values()], ids=lambda owner: owner.__name__)
def test_every_setting_says_what_it_does_and_what_it_may_be(owner: type) -> None:
    for field in dataclasses.fields(owner):
        told = field.metadata
        assert len(told.get("help", "")) > 5, field.name
        free = field.name in (
            "env",
            "algo",
            "policy_network",
            "critic_network",
            "policy_obs",
            "critic_obs",
            "anneal",
            "stages",
        )
        boolean = field.type in (bool, "bool")
        assert free or boolean or told.get("interval") or told.get("choices"), field.name


def test_the_readme_is_a_page_whose_links_work_elsewhere() -> None:
    """On a package index there are no relative links, and no pictures but absolute ones."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 160
    linked = re.findall(r"\]\(([^)]+)\)|src=\"([^\"]+)\"", text)
    assert all((link or picture).startswith("https://") for link, picture in linked)
    site = "https://purejaxppo.github.io/purejaxppo/"
    for link in {link for link, _ in linked if link.startswith(site)}:
        page, _, anchor = link.removeprefix(site).partition("#")
        found = [ROOT / "docs" / page.rstrip("/") / "index.md", ROOT / "docs" / f"{page.rstrip('/')}.md"]
        there = [path for path in found if path.exists()]
        assert there, link
        titles = re.findall(r"^#+ (.+)$", there[0].read_text(), re.MULTILINE)
        slugs = {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}
        assert not anchor or anchor in slugs, link
    raw = "https://raw.githubusercontent.com/purejaxppo/purejaxppo/main/"
    assert all((ROOT / url.removeprefix(raw)).exists() for _, url in linked if url.startswith(raw))


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Every internal link and anchor resolves; needs the extra `docs`."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert built.returncode == 0, built.stderr
    assert "WARNING" not in built.stderr
