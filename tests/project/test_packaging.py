"""What the wheel contains, and that it works where it is installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean environment with the wheel and none of its dependencies; no network is used."""
    folder = tmp_path_factory.mktemp("packaging")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    wheel = ("wheel", ROOT, "--no-deps", "--no-build-isolation", "--quiet", "-w", folder / "wheel")
    run(*pip, *wheel)
    (file,) = (folder / "wheel").iterdir()
    assert file.name.startswith("mobile_sam_plugin-") and file.name.endswith("-py3-none-any.whl")
    venv.create(folder / "clean", with_pip=False)
    python = folder / "clean" / "bin" / "python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", "--quiet", file)
    return folder / "clean"


def site_packages(environment: Path) -> Path:
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    return Path(paths["purelib"])


def test_wheel_holds_both_packages_the_weights_and_the_types(installed: Path) -> None:
    package = site_packages(installed) / "mobile_sam_plugin"
    for name in (
        "__init__.py",
        "app/photographs/coffee.png",
        "app/style.css",
        "cli/__init__.py",
        "integrations/__init__.py",
        "model/image_encoder.py",
        "py.typed",
        "startup/sitecustomize.py",
        "weights/README.md",
    ):
        assert (package / name).is_file(), name
    assert (package / "weights" / "mobile_sam.safetensors").stat().st_size > 10_000_000
    assert sorted(path.name for path in package.parent.iterdir() if path.is_dir()) == [
        "mobile_sam_plugin",
        next(package.parent.glob("mobile_sam_plugin-*.dist-info")).name,
    ]
    modules = {path.relative_to(ROOT) for path in (ROOT / "mobile_sam_plugin").rglob("*.py")}
    assert modules <= {path.relative_to(package.parent) for path in package.rglob("*.py")}


def test_installed_wheel_works(installed: Path) -> None:
    """Its dependencies are lent by path, so that the package itself can only be the wheel's."""
    code = """import mobile_sam_plugin, mobile_sam_plugin.integrations
from mobile_sam_plugin import build_sam_vit_t
print(mobile_sam_plugin.__file__, mobile_sam_plugin.integrations.__file__)
print(type(build_sam_vit_t("bundled")).__name__)"""
    lent = sysconfig.get_paths()["purelib"]
    out = run(installed / "bin" / "python", "-c", code, PYTHONPATH=lent, cwd=str(installed))
    folder = site_packages(installed) / "mobile_sam_plugin"
    assert out.split() == [
        str(folder / "__init__.py"),
        str(folder / "integrations" / "__init__.py"),
        "MobileSam",
    ]


def test_installed_command_works(installed: Path) -> None:
    lent = sysconfig.get_paths()["purelib"]
    out = run(installed / "bin" / "mobile-sam", "--help", PYTHONPATH=lent, cwd=str(installed))
    assert "segment" in out and "everything" in out


@pytest.mark.parametrize("folder", [ROOT, Path("/")])
def test_this_environment_imports_the_integrations(folder: Path) -> None:
    code = "import mobile_sam_plugin.integrations as i; print(i.__name__)"
    out = run(sys.executable, "-c", code, cwd=str(folder))
    assert out.strip() == "mobile_sam_plugin.integrations"
