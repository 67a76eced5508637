"""Measurements that are older than their code are found, and README quotes no number that no file holds."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from minivllm.bench import COMMANDS, stale

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def git(root, *words):
    settings = ["-c", "user.name=t", "-c", "user.email=t@t"]
    done = subprocess.run(
        ["git", "-C", str(root), *settings, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with one measured module, and a file measured at its first commit."""

    git(tmp_path, "init", "-q")
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "a.py").write_text("1\n")
    (tmp_path / "other.py").write_text("1\n")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "first")

    def measure(suffix=""):
        where = {"commit": git(tmp_path, "rev-parse", "HEAD") + suffix, "command_line": ["bench", "kernels"]}
        path = tmp_path / "file.json"
        path.write_text(json.dumps({"benchmark": "kernels", "provenance": where}))
        return path

    return tmp_path, measure


def test_a_file_is_stale_when_its_code_has_changed_and_only_then(repository):
    """Would catch dates in place of commits, and any change of anything making everything stale."""
    root, measure = repository
    path = measure()
    assert not stale.freshness(path, root).is_stale
    (root / "other.py").write_text("2\n")
    assert not stale.freshness(path, root).is_stale
    (root / "kernels" / "a.py").write_text("2\n")
    found = stale.freshness(path, root)
    assert found.changed == ("kernels/a.py",) and "stale: kernels/a.py" in str(found)
    assert found.command == "python -m minivllm bench kernels"


def test_words_about_the_code_make_nothing_stale(repository):
    """Would catch a day of measuring for a comment, and a change of code that hides beside a docstring."""
    root, measure = repository
    path, code = measure(), root / "kernels" / "a.py"
    code.write_text('"""What it is."""\n\n# why\n(\n    1\n)\n"""And what that was."""\n')
    assert not stale.freshness(path, root).is_stale
    for changed in ('"""What it is."""\n2\n', '"""What it is."""\nx = """1"""\n', "1 1\n"):
        code.write_text(changed)
        assert stale.freshness(path, root).changed == ("kernels/a.py",)
    code.unlink()
    assert stale.freshness(path, root).is_stale


def test_a_commit_that_no_run_has_felt_makes_nothing_stale_and_the_next_one_does(repository):
    """Would catch a list that excuses a file for good, or what was never committed."""
    root, measure = repository
    path, code = measure(), root / "kernels" / "a.py"

    def commit(number):
        code.write_text(f"{number}\n")
        git(root, "commit", "-qam", "more")
        return git(root, "rev-parse", "HEAD")

    listed = root / stale.UNFELT
    listed.parent.mkdir(parents=True)
    listed.write_text(f"# why\n{commit(2)} 1.00x in turns\n")
    assert not stale.freshness(path, root).is_stale
    code.write_text("3\n")
    assert stale.freshness(path, root).is_stale
    commit(4)
    assert stale.freshness(path, root).changed == ("kernels/a.py",)


def test_what_cannot_be_compared_counts_as_stale(repository):
    """Would catch trust in a commit that is gone, and in code that was never committed."""
    root, measure = repository
    assert stale.freshness(measure("+changes"), root).is_stale
    path = measure()
    path.write_text(path.read_text().replace(json.loads(path.read_text())["provenance"]["commit"], "0" * 40))
    found = stale.freshness(path, root)
    assert found.is_stale and "not in this repository" in str(found)


def test_a_benchmark_without_a_list_is_refused(repository):
    """Would catch a new benchmark whose files are called fresh for ever."""
    root, measure = repository
    path = measure()
    path.write_text(path.read_text().replace("kernels", "unheard-of", 1))
    with pytest.raises(ValueError, match="unheard-of"):
        stale.freshness(path, root)


def test_every_benchmark_has_a_list():
    """Would catch a new benchmark whose first file nothing could judge."""
    sources = "".join(path.read_text() for path in (ROOT / "minivllm").rglob("*.py"))
    names = set(re.findall(r'new_result\(\s*"([\w-]+)"', sources))
    assert len(names) > 15 and names == set(stale.DEPENDS)


def test_every_file_names_code_that_exists():
    """Would catch a module that moved: its changes would no longer be seen."""
    for paths in stale.DEPENDS.values():
        for path in paths:
            assert list(ROOT.glob(path)), path
    for path in stale.DATA.glob("*.json"):
        assert json.loads(path.read_text())["benchmark"] in stale.DEPENDS
    assert "stale" in COMMANDS


# -- README ---------------------------------------------------------------------------------------------------


def measured_numbers(node, found):
    """All numbers in a JSON document, also those within its strings."""
    if isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            measured_numbers(child, found)
    elif isinstance(node, int | float) and not isinstance(node, bool):
        found.add(float(node))
    return found


def held(quoted, numbers):
    """Whether a number as quoted ("97.9", "20.5%") is one of `numbers`, or a hundredth of it, rounded."""
    digits = len(quoted.partition(".")[2])
    value = float(quoted)
    return any(round(number * scale, digits) == value for number in numbers for scale in (1, 100, 1000))


def quoted_measurements(text):
    """Numbers with a decimal point that README gives as measured: all of "How fast", the memory shares above."""
    speed = text.partition("## How fast")[2].partition("\n## ")[0]
    shares = text.partition("With the paper's mean lengths")[2].partition("`python")[0]
    speed = re.sub(
        r"vLLM \d+\.\d+|GenAI \d+\.\d+|@? ?\d\.\d+ ?GHz|above 0\.7", "", speed
    )  # versions, clocks, limits
    return re.findall(r"\d+\.\d+", speed + shares)


# Quoted as the paper's own.
WITHOUT_A_FILE = {"96.3", "20.4"}


def test_readme_quotes_only_numbers_of_a_file():
    """Would catch a number typed by hand, and one that stayed when its file was measured again."""
    numbers = set()
    for path in (ROOT / "docs" / "data").glob("*.json"):
        measured_numbers(json.loads(path.read_text()), numbers)
    # Ratios are formed round by round from the files; the page which is written from them has their medians.
    page = (ROOT / "docs" / "performance.md").read_text()
    numbers.update(float(ratio) for ratio in re.findall(r"\*\*(\d+\.\d+)x\*\* \(", page))
    numbers.update(float(end) for ends in re.findall(r"x\*\* \(([\d.]+) to ([\d.]+)\)", page) for end in ends)
    quoted = quoted_measurements(README)
    assert len(quoted) >= 6
    missing = [number for number in quoted if number not in WITHOUT_A_FILE and not held(number, numbers)]
    assert not missing, f"in no file of docs/data: {missing}"


def test_a_number_that_nothing_measured_is_noticed():
    """Negative control: the same search does not find a number that was made up."""
    assert held("97.9", {97.93}) and held("20.5", {0.2049}) and held("1.08", {1.0769})
    assert not held("98.0", {97.93}) and not held("97.9", {97.8})
    assert quoted_measurements("x\n## How fast\n12.5 on vLLM 0.32 at 2.5 GHz\n## Next\n9.9") == ["12.5"]


def test_the_command_for_a_file_writes_that_file():
    """Would catch `make bench-all` printing, for a copy under another name, a command which replaces the
    up-to-date file whose name it was measured under.
    """
    words = ["bench", "vllm", "--repeats", "5", "--output-json", "cpu_vllm.json"]
    shown = stale.command_for(Path("docs/data/cpu_vllm_zen3.json"), words)
    assert shown == "python -m minivllm bench vllm --repeats 5 --output-json docs/data/cpu_vllm_zen3.json"
    assert stale.command_for(Path("a.json"), ["bench", "memory"]) == "python -m minivllm bench memory"
