"""What notebooks, README, site, CONTRIBUTING and benchmarks say is there: prose, imports, commands, files, flags."""

import ast
import importlib
import json
import re
from pathlib import Path

import pytest

from purejaxppo.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOURCES = [path for where in ("purejaxppo", "benchmarks") for path in sorted((ROOT / where).rglob("*.py"))]
SITE = sorted((ROOT / "docs").rglob("*.md"))
PROSE = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/NOTES.md", "benchmarks/SCALING.md")]


def cells(path: Path, kind: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def text(path: Path) -> str:
    """What a reader reads: a notebook's cells without what they printed."""
    return "\n\n".join(cells(path, "markdown") + cells(path, "code")) if path.suffix == ".ipynb" else path.read_text()


def imports(source: str) -> set[tuple[str, str]]:
    """(module, name) of everything that is imported from the package; the name is empty for `import module`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "", alias.name) for alias in node.names}
    return {(module, name) for module, name in found if module.partition(".")[0] == "purejaxppo"}


def unresolved(source: str) -> list[str]:
    missing = []
    for module, name in sorted(imports(source)):
        try:
            there = not name or hasattr(importlib.import_module(module), name)
            importlib.import_module(module if there else f"{module}.{name}")
        except ModuleNotFoundError:
            missing.append(f"{module} {name}")
    return missing


def commands(prose: str) -> set[str]:
    """What follows `purejaxppo` or `python -m purejaxppo` where a command is written: `X`, or `.X` for a module."""
    written = re.findall(r"(?:-m |[`!]|^ *(?:\$ )?)purejaxppo( [a-z][\w-]*|\.\w+)", prose, re.MULTILINE)
    modules = set(re.findall(r"-m purejaxppo(\.[\w.]+)", prose))
    return modules | {word.strip() for word in written if word.startswith(" ")}


def test_each_is_executed_by_one_of_the_scripts() -> None:
    scripts = [ROOT / ".ci" / name for name in ("run", "thorough")]
    if not scripts[0].exists():
        pytest.skip("a source distribution has no .ci")
    named = [
        name
        for path in scripts
        for line in re.findall(r"^\.ci/notebooks (.+)", path.read_text(), re.MULTILINE)
        for name in line.split()
    ]
    assert sorted(named) == [path.stem for path in NOTEBOOKS]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_markdown_cells_are_prose(path: Path) -> None:
    """No cell of headings alone: a tool that comments cells out made every paragraph one, and formulas were lost."""
    for cell in cells(path, "markdown"):
        lines = [line for line in cell.splitlines() if line.strip()]
        headings = [line for line in lines if line.startswith("#")]
        assert len(lines) == 1 or headings != lines, cell
        assert all(len(line) < 100 and not line.endswith((".", ":")) for line in headings), headings


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_open_on_colab_and_hold_no_noise(path: Path) -> None:
    """A link to Colab, a first cell that installs, nothing read from beside them, exercises, no time stamps."""
    notebook = json.loads(path.read_text())
    assert f"colab.research.google.com/github/purejaxppo/purejaxppo/blob/main/notebooks/{path.name}" in text(path)
    assert "%pip install" in cells(path, "code")[0]
    assert cells(path, "markdown")[-1].count("<details><summary>Solution</summary>") >= 2
    assert not [cell for cell in notebook["cells"] if "execution" in cell["metadata"]]
    assert "mplstyle" not in text(path)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_as_executed(path: Path) -> None:
    """In order, without errors, with what came out."""
    code = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.parametrize("path", [*NOTEBOOKS, ROOT / "README.md", ROOT / "benchmarks"], ids=lambda path: path.stem)
def test_imports_of_the_package_resolve(path: Path) -> None:
    if path.suffix == ".ipynb":
        sources = [re.sub(r"^( *)[%!].*", r"\1pass", cell, flags=re.MULTILINE) for cell in cells(path, "code")]
    elif path.suffix == ".md":
        sources = re.findall(r"^```python\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    else:
        sources = [file.read_text() for file in sorted(path.rglob("*.py"))]
    assert sum(len(imports(source)) for source in sources) > 1
    assert [missing for source in sources for missing in unresolved(source)] == []


def test_commands_that_are_named_exist() -> None:
    named = {path: commands(text(path)) for path in [*PROSE, *SITE, *NOTEBOOKS, *SOURCES]}
    assert {"run", "sweep", "evaluate", "render", "report", "export"} <= named[ROOT / "README.md"]
    wrong = {str(path): words - {".run", *COMMANDS} for path, words in named.items()}
    assert {path: words for path, words in wrong.items() if words} == {}


def test_files_that_are_named_exist() -> None:
    """Paths below the root or the package, in prose, docstrings and comments; links of the Markdown files."""
    missing = []
    for path in [*PROSE, *SITE, *NOTEBOOKS, *SOURCES]:
        written = text(path)
        named = re.findall(r"(?<![\w/.-])([a-z_]+/[\w/]+\.(?:py|md|ipynb|png))\b", written)
        linked = re.findall(r"\]\(([^):#]+)\)", written) if path in PROSE else []
        if path in SITE:  # whose links MkDocs checks, and which names files of other projects, too
            named = [name for name in named if name.partition("/")[0] in ("purejaxppo", "benchmarks", "tests")]
        roots = (ROOT, ROOT / "purejaxppo", path.parent)
        missing += [f"{path.name}: {name}" for name in named if not any((root / name).exists() for root in roots)]
        missing += [f"{path.name}: {name}" for name in linked if not (path.parent / name).exists()]
    assert missing == []


def test_functions_that_are_named_exist() -> None:
    """`module.name` of a module of ours, and `name` in `file.py`, in the Markdown files."""
    modules = {path.stem: path for path in SOURCES if "purejaxppo" in path.relative_to(ROOT).parts}
    named = set()
    for path in PROSE:
        dotted = re.findall(r"`(\w+)\.(?!py|json|csv)(\w+)", path.read_text())
        named |= {
            (modules[stem], name)
            for stem, name in dotted
            if stem in modules and stem not in ("config", "env", "policy")
        }
        beside = re.findall(r"`(\w+)(?:\.\w+)?` in `(purejaxppo/[\w/]+\.py)", path.read_text())
        named |= {(ROOT / file, name) for name, file in beside}
    assert len(named) > 10
    dotted_names = {(".".join(path.relative_to(ROOT).with_suffix("").parts), name) for path, name in named}
    assert [pair for pair in sorted(dotted_names) if not hasattr(importlib.import_module(pair[0]), pair[1])] == []


def test_flags_that_are_named_exist() -> None:
    """Each `--flag` beside a command of ours is a field or a literal somewhere in the package."""
    source = "\n".join(path.read_text() for path in SOURCES if "purejaxppo/" in path.as_posix())
    missing = []
    for path in [ROOT / "README.md", *SITE, *NOTEBOOKS]:
        others = r"\b(pip|pytest|python benchmarks|XLA_FLAGS|docker|uv|benchmarks/gpu.py|SBATCH|sbatch|srun|scontrol)"
        lines = [line for line in text(path).splitlines() if not re.search(others, line)]
        for flag in sorted(set(re.findall(r"(?<![\w-])--([a-z][a-z-]+[a-z])", "\n".join(lines)))):
            field = flag.removeprefix("no-").replace("-", "_")
            if not re.search(rf"\b{field}\b|--{flag}\b", source) and flag != "help":
                missing.append(f"{path.name}: --{flag}")
    assert missing == []
