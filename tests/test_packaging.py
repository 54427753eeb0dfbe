"""What is handed out: the files of source distribution and wheel, and what they say of themselves."""

import email
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from purejaxppo import __version__

ROOT = Path(__file__).parent.parent
hatchling = pytest.importorskip("hatchling.build")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of both, and the wheel's metadata."""
    out = tmp_path_factory.mktemp("dist")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        sdist, wheel = (build(str(out)) for build in (hatchling.build_sdist, hatchling.build_wheel))
    with tarfile.open(out / sdist) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(out / wheel) as archive:
        packed = set(archive.namelist())
        (name,) = (name for name in packed if name.endswith("/METADATA"))
        about = email.message_from_bytes(archive.read(name))
    return source, packed, about


def tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not in a repository")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {name for name in listed.splitlines() if (ROOT / name).exists()}


def test_the_source_distribution_has_what_the_repository_has(built):
    """But for what only the repository's host reads."""
    kept = {name for name in tracked() if not name.startswith((".ci/", ".github/", ".git"))}
    assert kept <= built[0]
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "pyproject.toml"} <= kept
    assert not [name for name in built[0] if "__pycache__" in name]


def test_the_wheel_has_the_package_and_nothing_else(built):
    package = {name for name in tracked() if name.startswith("purejaxppo/")}
    files = {name for name in built[1] if ".dist-info/" not in name}
    assert package <= files
    assert {name.partition("/")[0] for name in files} == {"purejaxppo"}
    assert {"purejaxppo/py.typed", "purejaxppo/report/template.html"} <= files


def test_the_metadata_names_where_it_is_developed_and_what_was_tested(built):
    """The classifiers' Pythons are those that the workflow runs."""
    about = built[2]
    links = dict(line.split(", ") for line in about.get_all("Project-URL"))
    assert {"Repository", "Documentation", "Changelog"} == set(links)
    assert links.pop("Documentation") == "https://purejaxppo.github.io/purejaxppo/"
    assert all(link.startswith("https://github.com/") for link in links.values())
    classifiers = about.get_all("Classifier")
    pythons = {line.rpartition(" ")[2] for line in classifiers if re.search(r":: 3\.\d+$", line)}
    workflow = ROOT / ".github/workflows/ci.yml"
    if workflow.exists():  # not in a source distribution
        assert pythons == set(re.findall(r'"(3\.\d+)"', workflow.read_text()))
    assert about["Requires-Python"] == f">={min(pythons, key=lambda text: int(text[2:]))}"
    assert "Operating System :: POSIX :: Linux" in classifiers


def test_what_only_tests_and_extras_need_is_no_dependency(built):
    base = {re.split(r"[^\w.-]", line)[0] for line in built[2].get_all("Requires-Dist") if "extra ==" not in line}
    assert {"jax", "flax", "optax", "gymnax", "orbax-checkpoint"} <= base
    assert not base & {"chex", "rliable", "pandas", "scipy", "onnxruntime", "jax2onnx", "wandb", "pytest"}


def test_the_image_is_made_of_what_is_there():
    """Every path that the Dockerfile copies exists and is let through, and its extras are extras."""
    steps = (ROOT / "Dockerfile").read_text()
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {path for line in re.findall(r"^COPY (.+)$", steps, re.MULTILINE) for path in line.split()[:-1]}
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*re.findall(r"EXTRAS=(\w+)", steps)} <= {*extras}


@pytest.mark.slow
def test_the_images_commands_run_as_a_script(tmp_path):
    """What `docker build` and `docker run` do, in a virtual environment in place of the image."""
    steps = (ROOT / "Dockerfile").read_text()
    image, home = tmp_path / "image", tmp_path / "home"
    version = re.search(r"^FROM python:([0-9.]+)", steps, re.MULTILINE)[1]
    pythons = [f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), sys.executable]
    assert any(
        subprocess.run([x, "-m", "venv", image], check=False).returncode == 0 for x in pythons if shutil.which(x)
    )
    home.mkdir()
    environment = os.environ | {"PATH": f"{image / 'bin'}:{os.environ['PATH']}"}
    environment |= dict(re.findall(r"(\w+)=(\S+)", re.search(r"^ENV (.+)$", steps, re.MULTILINE)[1]))
    environment |= dict(re.findall(r"^ARG (\w+)=(\S+)$", steps, re.MULTILINE))
    environment.pop("PYTHONPATH", None)
    for kind, words in re.findall(r"^(COPY|RUN) (.+)$", steps.replace("\\\n", " "), re.MULTILINE):
        if kind == "COPY":
            *paths, where = words.replace("/src", f"{tmp_path}/src").split()
            Path(where).mkdir(parents=True, exist_ok=True)
            for path in (ROOT / name for name in paths):
                shutil.copytree(path, where, dirs_exist_ok=True) if path.is_dir() else shutil.copy2(path, where)
        elif not words.startswith("useradd "):  # which only the image's root may
            script = words.replace("/src", f"{tmp_path}/src")
            subprocess.run(["sh", "-ec", script], env=environment, cwd=tmp_path, check=True, timeout=1200)
    assert not (tmp_path / "src").exists()
    command = json.loads(re.search(r"^ENTRYPOINT (.+)$", steps, re.MULTILINE)[1])
    run = [*command, *"run --algo trpo --total-steps 4096 --num-seeds 2 --quiet --out".split(), home / "first"]
    for words in (run, [*command, *json.loads(re.search(r"^CMD (.+)$", steps, re.MULTILINE)[1])]):
        subprocess.run(words, env=environment, cwd=home, check=True, timeout=600, stdout=subprocess.DEVNULL)
    assert json.loads((home / "first/summary.json").read_text())["env_steps"] >= 4096
    subprocess.run([*command, "render", home / "first"], env=environment, cwd=home, check=True, timeout=600)


def test_tags_are_held_to_the_version_and_the_changelog():
    """What the release workflow compares a tag with is what the package says of itself."""
    workflow = ROOT / ".github/workflows/release.yml"
    if not workflow.exists():
        pytest.skip("not in a source distribution")
    command = re.search(r"sed -n '(.+?)' (\S+)\)", workflow.read_text())
    words = ["sed", "-n", command[1], command[2]]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == __version__
    assert re.search(r"^## \[", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
