"""One self-contained HTML file of a run or a comparison: no script, nothing from elsewhere, every string escaped."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from peft_bidora.errors import RecipeError
from peft_bidora.recipe.folder import is_run, write_text
from peft_bidora.report.comparison_page import comparison_page
from peft_bidora.report.run_page import run_page
from peft_bidora.study.plan_file import PLAN

FILE = "report.html"


def write_report(folder: Path, output: Path | None = None) -> Path:
    """Write the report of a finished run or comparison; return its path.

    Args:
        folder: of either.
        output: the file to write; in the folder unless given.

    Raises:
        BiDoRAError: the folder holds neither, or one that is not finished or damaged; the file cannot be written.
    """
    if is_run(folder):
        page, name = run_page(folder), FILE
    elif (folder / PLAN).is_file():
        page, name = comparison_page(folder), "comparison.html"
    else:
        raise RecipeError(f"{folder} holds no run and no comparison. Name the output folder of train or of compare.")
    path = output or folder / name
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise RecipeError(f"{path}: expected a file in a folder that there is. Name another by -o.")
    write_text(path, render(page))
    return path


def render(page: dict[str, Any]) -> str:
    """Return the HTML of a page.

    Args:
        page: title, lead, summary, figures, tables and details, as the templates read them.
    """
    environment = Environment(
        loader=PackageLoader("peft_bidora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(page)
