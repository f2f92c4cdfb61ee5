"""What the checkout promises: complete package list, generated pages, files of the package, commands of the README."""

import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed():
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    found = set()
    for package, folder in mapping.items():
        for init in (ROOT / folder).rglob("__init__.py"):
            found.add(".".join([package, *init.parent.relative_to(ROOT / folder).parts]))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("tritloom", "py.typed"),
        ("tritloom.report", "page.html.j2"),
        ("tritloom.sim", "core_library.cpp"),
        ("tritloom.models.zoo", "digits_cnn_twn.onnx"),
    ],
)
def test_data_files_are_installed(package, name):
    assert files(package).joinpath(name).is_file()


def test_generated_pages_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_commands_of_the_documents_exist(cli):
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    commands = {tuple(match) for page in pages for match in re.findall(r"^tritloom (\w+)((?: +[^#\n|]*)?)", page.read_text(), re.MULTILINE)}
    assert commands
    for verb, rest in sorted(commands):
        words = [verb, *rest.split()[:1]] if rest.split()[:1] == ["methods"] else [verb]
        known = cli(*words, "--help").out
        for option in re.findall(r"(?<!\S)--[a-z-]+", rest):
            assert option in known, f"{verb} has no option {option}"


def test_links_of_the_documents_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
