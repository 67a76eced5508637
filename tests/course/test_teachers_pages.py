"""The instructor's pages agree with the notebooks: minutes, what comes before what, what is needed."""

import re

from minivllm.course import catalog

PAGES = catalog.ROOT / "docs" / "instructor"
NOTEBOOKS = sorted((catalog.ROOT / "notebooks" / "src").glob("[0-9]*.py"))


def numbers_of(text):
    """Chapters named in a sentence: "07 and 09, 12 to 14" -> {7, 9, 12, 13, 14}."""
    spans = re.findall(r"(\d\d)(?: to (\d\d))?", text)
    return {number for first, last in spans for number in range(int(first), int(last or first) + 1)}


def page(name):
    """A page as one line, so that a line's end cannot hide a sentence."""
    return " ".join((PAGES / f"{name}.md").read_text().split())


def test_a_lesson_plan_has_the_minutes_of_its_notebook():
    """Would catch a class that is planned for 40 minutes of reading where the notebook says 45."""
    planned = re.findall(
        r"^## (\d\d) .*\n\n- \*\*Minutes\*\* (\d+) read, (\d+)", (PAGES / "lesson_plans.md").read_text(), re.M
    )
    said = []
    for path in NOTEBOOKS:
        minutes = re.search(r"\*\*Minutes:\*\* (\d+) to read and run, (\d+) for", path.read_text())
        said.append((path.name[:2], *minutes.groups()))
    assert len(said) == 17 and planned == said


def test_the_workshop_leaves_the_contest_the_hour_that_it_takes():
    """Would catch 45 minutes for a figure and a capstone of an hour."""
    syllabus = (PAGES / "syllabus.md").read_text()
    rows = re.findall(r"^\| (\d+):(\d\d) \| (.*?) \|", syllabus, re.M)
    start, end = (
        int(hour) * 60 + int(minute) for hour, minute, what in rows if "contest" in what or "best" in what
    )
    (write,) = re.findall(r"(\d+) write \(ex11a\)", (PAGES / "lesson_plans.md").read_text())
    assert end - start >= int(write) + 15


def test_the_sessions_after_the_sixth_name_what_has_to_come_before():
    """Would catch chapter 15 taken straight after 06, while its notebook builds on 07 and 09."""
    text = page("syllabus")
    free = numbers_of(re.search(r"Chapters ([\d to and]+) can be taken in any order after 06", text).group(1))
    after = {
        int(chapter): numbers_of(before)
        for chapter, before in re.findall(r"(\d\d) comes after (\d\d and \d\d)", text)
    }
    assert free | after.keys() == {*range(7, 11), *range(12, 17)} and not free & after.keys()
    needed = re.search(r"You need:\*\* chapters (.*?):", NOTEBOOKS[15].read_text()).group(1)
    assert numbers_of(needed) - set(range(7)) == after[15] == {7, 9}


def test_every_chapter_says_which_knowledge_it_expects():
    """Would catch prerequisites that stop at chapter 10."""
    section = page("index").partition("## What an exercise expects")[2]
    assert numbers_of(section.partition("Chapters are independent")[0].replace("Chapter 10", "10")) == set(
        range(1, 17)
    )


def test_the_page_counts_the_notebooks_that_fetch_the_weights():
    """Would catch a class that is told that only chapter 11 fetches 93 MB, and meets the download in notebook 00."""
    loads = re.compile(r"^(?!#).*(real_llm\(|\"smollm2-135m-instruct\")", re.M)
    fetching = [path.name[:2] for path in NOTEBOOKS if loads.search(path.read_text())]
    words = {11: "Eleven", 12: "Twelve", 13: "Thirteen", 14: "Fourteen"}
    assert (
        f"{words[len(fetching)]} notebooks, 00 among them, fetch SmolLM2" in page("index")
        and "00" in fetching
    )


def test_the_cpu_build_of_torch_is_installed_before_what_would_take_the_cuda_build():
    """Would catch gigabytes of CUDA packages on each machine of a class, with the hint below the commands; and
    another version in the hint than in requirements.txt, with which the second command installs torch anew."""
    (pinned,) = re.findall(r"^(torch==\S+)", (catalog.ROOT / "requirements.txt").read_text(), re.M)
    for path, later in (
        (catalog.ROOT / "README.md", "\nmake demo\n"),
        (PAGES / "index.md", 'install -e ".[test,lab]"'),
    ):
        text = path.read_text()
        assert f"{pinned} --index-url" in text, path
        assert text.index(f"{pinned} --index-url") < text.index(later), path
