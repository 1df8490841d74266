"""The contents of the wheel and the source distribution, and their installation."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
FOLDERS = ("mobile_sam_plugin", "integrations", "examples")
FILES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
LENT = str(Path(torch.__file__).parents[1])  # where the dependencies are installed


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=environment.pop("cwd", ROOT),
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, source: Path, folder: Path) -> Path:
    """Builds a "wheel", an "editable" wheel or an "sdist", as pip does but for its isolation."""
    code = f"import setuptools.build_meta as b, sys; b.build_{kind}(sys.argv[1])"
    folder.mkdir()
    run(sys.executable, "-c", code, folder, cwd=str(source))
    (built,) = folder.iterdir()
    return built


def create_environment(folder: Path, wheel: Path) -> Path:
    """An environment with this package alone, to which the dependencies are lent by their path."""
    venv.create(folder, with_pip=False)
    install = ("install", "--no-deps", "--no-index", "--no-compile", wheel)
    run(*PIP, "--python", folder / "bin" / "python", *install)
    (site_packages(folder) / "lent.pth").write_text(LENT)
    return folder


def site_packages(environment: Path) -> Path:
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    return Path(paths["purelib"])


def imported_files(environment: Path) -> list[Path]:
    """Where the package, its integrations and its photographs come from."""
    code = """import mobile_sam_plugin, mobile_sam_plugin.integrations.texts
from mobile_sam_plugin.photographs import list_photographs
print(mobile_sam_plugin.__file__, mobile_sam_plugin.integrations.texts.__file__, sep="\\n")
print(*list_photographs(), sep="\\n")"""
    out = run(environment / "bin" / "python", "-c", code, cwd=str(environment))
    return [Path(line) for line in out.splitlines()]


def copy_tree(folder: Path) -> Path:
    """A copy of what is installed, so that nothing of an earlier build is in the way."""
    for name in FOLDERS:
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout by git without links: their places are taken by files that hold the target."""
    folder = copy_tree(tmp_path_factory.mktemp("checkout"))
    links = [path for path in folder.rglob("*") if path.is_symlink()]
    assert [link.relative_to(folder).as_posix() for link in links] == [
        "mobile_sam_plugin/integrations"
    ]
    for link in links:
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return build("wheel", copy_tree(folder), folder / "dist")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return create_environment(tmp_path_factory.mktemp("installed"), wheel)


def test_wheel_holds_both_packages_the_weights_and_the_types(wheel: Path) -> None:
    assert wheel.name.startswith("mobile_sam_plugin-") and wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        assert len(archive.infolist()) == len(sizes)
        digests = Counter(entry.CRC for entry in archive.infolist() if entry.file_size)
    assert max(digests.values()) == 1  # no file twice, be it under another name
    modules = [
        path.relative_to(ROOT).as_posix() for path in (ROOT / "mobile_sam_plugin").rglob("*.py")
    ]
    adapters = [f"mobile_sam_plugin/integrations/{p.name}" for p in ROOT.glob("integrations/*.py")]
    images = [f"mobile_sam_plugin/example_images/{p.name}" for p in ROOT.glob("examples/images/*")]
    data = (
        "annotation/view.html",
        "app/style.css",
        "py.typed",
        "startup/sitecustomize.py",
        "weights/README.md",
        "weights/mobile_sam.safetensors",
    )
    assert adapters and images
    expected = {*modules, *adapters, *images, *(f"mobile_sam_plugin/{name}" for name in data)}
    about = {name for name in sizes if ".dist-info/" in name}
    assert expected <= sizes.keys() - about
    assert {name.partition("/")[0] for name in sizes.keys() - about} == {"mobile_sam_plugin"}
    assert sizes["mobile_sam_plugin/weights/mobile_sam.safetensors"] > 10_000_000


def test_checkout_without_links_and_its_source_distribution_make_the_same_wheel(
    wheel: Path, checkout: Path, tmp_path: Path
) -> None:
    with tarfile.open(build("sdist", checkout, tmp_path / "sdist")) as opened:
        assert all(member.isfile() or member.isdir() for member in opened)
        opened.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    again = build("wheel", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        names = {name for name in first.namelist() if ".dist-info/" not in name}
        assert names == {name for name in second.namelist() if ".dist-info/" not in name}
        for name in names:
            assert first.read(name) == second.read(name), name


def test_installed_wheel_works(installed: Path) -> None:
    package = site_packages(installed) / "mobile_sam_plugin"
    module, adapter, *photographs = imported_files(installed)
    assert module == package / "__init__.py"
    assert adapter == package / "integrations" / "texts.py"
    assert {path.parent for path in photographs} == {package / "example_images"}
    code = """from mobile_sam_plugin import build_sam_vit_t
print(type(build_sam_vit_t("bundled")).__name__)"""
    out = run(installed / "bin" / "python", "-c", code, cwd=str(installed))
    assert out.strip() == "MobileSam"


def test_editable_install_of_a_checkout_without_links_works(checkout: Path, tmp_path: Path) -> None:
    wheel = build("editable", checkout, tmp_path / "dist")
    environment = create_environment(tmp_path / "environment", wheel)
    module, adapter, *photographs = imported_files(environment)
    assert module == checkout / "mobile_sam_plugin" / "__init__.py"
    assert adapter == checkout / "integrations" / "texts.py"
    assert {path.parent for path in photographs} == {checkout / "examples" / "images"}


def test_installed_command_works(installed: Path) -> None:
    out = run(installed / "bin" / "mobile-sam", "--help", cwd=str(installed))
    assert "segment" in out and "everything" in out


@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_this_environment_imports_the_integrations(folder: Path) -> None:
    code = "import mobile_sam_plugin.integrations as i; print(i.__name__)"
    out = run(sys.executable, "-c", code, cwd=str(folder))
    assert out.strip() == "mobile_sam_plugin.integrations"


def test_tools_read_the_integrations_once() -> None:
    """They lie at the top of the repository, and a link to them in the package."""
    assert os.readlink(ROOT / "mobile_sam_plugin" / "integrations") == os.path.join(
        "..", "integrations"
    )
    shown = run(sys.executable, "-m", "ruff", "check", "--show-files", ".").splitlines()
    assert len([path for path in shown if path.endswith("integrations/texts.py")]) == 1
