"""The recipe of the image, carried out without a container engine: the wheel made from what .dockerignore lets in holds all it needs.

Belongs here: building the wheel as deploy/Dockerfile does, and looking into it. Must not know: how the program works.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
PACKAGES = ["ingest", "dedupe", "buffer", "rater", "parshall"]
DATA = [".lua", ".sql", ".toml"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("context")
    for line in (PROJECT / ".dockerignore").read_text().splitlines():
        if line.startswith("!"):
            source = PROJECT / line[1:].rstrip("/")
            if source.is_dir():
                shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    command += ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "made", "."]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    (path,) = (folder / "made").iterdir()
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_file_of_the_packages(wheel: zipfile.ZipFile) -> None:
    wanted = {
        str(path.relative_to(PROJECT))
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*")
        if path.suffix in [".py", *DATA] or path.name == "py.typed"
    }
    assert wanted - set(wheel.namelist()) == set()


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0] for name in wheel.namelist()} - set(PACKAGES) == {"parshall-0.1.0.dist-info"}


def test_the_wheel_brings_the_command(wheel: zipfile.ZipFile) -> None:
    assert wheel.read("parshall-0.1.0.dist-info/entry_points.txt").decode().split("\n")[1] == "parshall = parshall.__main__:main"
    assert "parshall-0.1.0.dist-info/licenses/LICENSE" in wheel.namelist()
