"""Look at the built site: pictures of its pages at four widths, light and dark, and a list of what is cut off.

    make docs
    python -m tests.look_at_site docs/_build/html pictures

It needs Chromium, and is not part of `make test`, since the packages which build the site are not. A page is cut
where it is wider than its window, where its right-hand contents leave the window, or where a line of code or
output neither fits its box nor scrolls in it. The page of solutions must be missing, as a page and in the search index.
"""

import sys
import tempfile
from itertools import product
from pathlib import Path

from tests.server.browser import chromium

PAGES = (
    "index",
    "performance",
    "gpu",
    "notebooks/04_block_table",
    "notebooks/06_continuous_batching",
    "api/policy",
)
WIDTHS = (400, 1280, 1440, 1920)
MORE_WIDTHS = (1400, 1600, 1680, 1760, 1800, 2560)  # measured, not pictured
CUT = """(() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const found = wide > 0 ? [`the page is ${wide} px wider than the window`] : [];
  const contents = document.querySelector(".toc-scroll");
  if (contents && getComputedStyle(contents.closest(".toc-drawer")).position !== "fixed") {
    const over = Math.round(contents.getBoundingClientRect().right - innerWidth);
    if (over > 0) found.push(`the contents are ${over} px beyond the window`);
  }
  for (const box of document.querySelectorAll("pre"))
    if (box.scrollWidth > box.clientWidth + 1 && getComputedStyle(box).overflowX !== "auto")
      found.push(`a box is ${box.scrollWidth - box.clientWidth} px too narrow: ${box.textContent.slice(0, 40)}`);
  return found.slice(0, 5);
})()"""


def resize(tab, width, height=1000):
    """Give the window this size."""
    tab.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
    )


def look(site, pictures):
    """Write the pictures; -> what is wrong, a line each."""
    wrong = [f"{path} is part of the site" for path in site.rglob("solutions*.html")]
    if "instructor/solutions" in (site / "searchindex.js").read_text(encoding="utf-8"):
        wrong.append("the search index knows the page of solutions")
    pictures.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as profile, chromium(profile) as open_tab:
        for page in PAGES:
            tab = open_tab((site / f"{page}.html").resolve().as_uri())
            tab.wait('document.readyState === "complete" && document.querySelector("article") !== null')
            for width in sorted(WIDTHS + MORE_WIDTHS):
                resize(tab, width)
                wrong += [f"{page} at {width}: {text}" for text in tab.run(CUT)]
            for width, theme in product(WIDTHS, ("light", "dark")):
                tab.run(f'document.body.dataset.theme = "{theme}"')
                tab.screenshot(pictures / f"{page.replace('/', '_')}_{width}_{theme}.png", width, 1000)
    return wrong


if __name__ == "__main__":
    problems = look(Path(sys.argv[1]), Path(sys.argv[2]))
    print(*problems or ["nothing is cut off"], sep="\n")
    sys.exit(bool(problems))
