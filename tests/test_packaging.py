"""The package lives beside Hugging Face's package `kernels`, however it is installed and whichever comes first."""

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Prints where both packages come from; transformers asks for `kernels` when a model class is imported.
PROBE = """
import sys
from pathlib import Path
import kernels, minivllm.kernels.heuristics, minivllm.kernels.common
import minivllm.viz, minivllm.weights.loader
from transformers import LlamaForCausalLM
assert kernels.STAND_IN and kernels.__version__ == "0.17.2"
print(Path(minivllm.kernels.heuristics.__file__).parent)
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A folder as pip would leave it after installing Hugging Face's `kernels`."""
    site = tmp_path_factory.mktemp("stand_in")
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text('__version__ = "0.17.2"\nSTAND_IN = True\n')
    info = site / "kernels-0.17.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.17.2\n")
    (info / "RECORD").write_text("kernels/__init__.py,,\n")
    return site


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of what an install reads, so that building leaves nothing behind in the repository."""
    copy = tmp_path_factory.mktemp("checkout") / "repository"
    copy.mkdir()
    for name in ("README.md", "LICENSE", "pyproject.toml"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("minivllm", "kernels"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def pip(*arguments):
    subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments), "--no-deps",
         "--no-build-isolation", "--no-index", "-q"],
        check=True,
    )  # fmt: skip


def probe(folders, cwd):
    """Run PROBE with `folders` in front of all other packages; returns the folder of our kernels.

    Without `site` (-S): its .pth files would bring in the minivllm that these tests run from.
    """
    setup = (
        "import site, sys\n"
        f"for folder in {[str(folder) for folder in folders]}: site.addsitedir(folder)\n"
        f"sys.path += {site_packages()}\n"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", setup + PROBE], cwd=cwd, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.strip())


def site_packages():
    """Where the other packages lie."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_checkout_lives_beside_hugging_faces_kernels(ours_first, stand_in, checkout, tmp_path):
    """Would catch `import kernels` finding our folder, or ours finding theirs."""
    folders = [checkout, stand_in] if ours_first else [stand_in, checkout]
    assert probe(folders, tmp_path) == checkout / "kernels"


def test_a_wheel_lives_beside_hugging_faces_kernels(stand_in, checkout, tmp_path):
    """Would catch a wheel without the kernels, or one that installs a package named kernels."""
    pip("wheel", checkout, "-w", tmp_path / "dist")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert {name.split("/")[0] for name in names} == {"minivllm", "minivllm-0.1.0.dist-info"}
    # A file that is added to a folder or beside it has to arrive, too.
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "minivllm").rglob("*")
        if path.suffix in (".py", ".css", ".js", ".html")
    } | {f"minivllm/kernels/{path.name}" for path in (ROOT / "kernels").glob("*.py")}
    assert sources <= set(names), f"missing in the wheel: {sources - set(names)}"
    for folders in ([tmp_path / "site", stand_in], [stand_in, tmp_path / "site"]):
        assert probe(folders, tmp_path) == tmp_path / "site" / "minivllm" / "kernels"


def test_an_editable_install_lives_beside_hugging_faces_kernels(stand_in, checkout, tmp_path):
    """Would catch an editable install whose second name for the folder leads nowhere."""
    # Without --ignore-installed, pip would uninstall the copy that these tests run from.
    pip("install", "-e", checkout, "--prefix", tmp_path / "prefix", "--ignore-installed")
    (site,) = (tmp_path / "prefix").rglob("site-packages")
    for folders in ([site, stand_in], [stand_in, site]):
        assert probe(folders, tmp_path) == checkout / "kernels"


def test_the_old_layout_would_be_noticed(stand_in, checkout, tmp_path):
    """Negative control: with an `__init__.py` in our folder, Hugging Face's package is not found behind it."""
    (checkout / "kernels" / "__init__.py").touch()
    try:
        with pytest.raises(AssertionError, match="STAND_IN"):
            probe([checkout, stand_in], tmp_path)
    finally:
        (checkout / "kernels" / "__init__.py").unlink()


def test_without_hugging_faces_package_transformers_still_works(checkout, tmp_path):
    """Would catch a folder without a version that transformers takes for an installed package."""
    code = "from transformers import LlamaForCausalLM; import minivllm.kernels.common; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, capture_output=True, text=True)
    assert done.stdout == "fine\n", done.stderr[-3000:]
