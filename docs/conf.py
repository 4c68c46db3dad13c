"""Build the documentation: `make docs`, which turns warnings into errors."""

import io
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).parent

project = "peft-bidora"
author = "the peft-bidora developers"
release = metadata.version("peft-bidora")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "peft-bidora"
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
# A page of the repository that is no page of the site is linked as the file it is.
suppress_warnings = ["myst.xref_missing"]


def write_commands(_: object) -> None:
    """Write commands.md from the command line itself."""
    from typer.main import get_command

    from peft_bidora.cli import app

    group = get_command(app)
    parts = ["# Commands", "", "Made from `peft-bidora COMMAND --help`.", ""]
    for name, command in group.commands.items():  # type: ignore[attr-defined]  # it is a group
        context = command.make_context(f"peft-bidora {name}", [], resilient_parsing=True)
        parts += [f"## {name}", "", str(command.help or ""), "", "```text", _usage(command, context), "```", ""]
        kinds = {kind: [p for p in command.params if p.param_type_name == kind] for kind in ("argument", "option")}
        rows = [(p.metavar or p.name, _help(p)) for p in kinds["argument"]]
        rows += [(", ".join((*p.opts, *p.secondary_opts)), _help(p)) for p in kinds["option"]]
        parts += [
            "| argument or option | what |",
            "| --- | --- |",
            *(f"| `{left}` | {right} |" for left, right in rows),
            "",
        ]
    (HERE / "commands.md").write_text("\n".join(parts), encoding="utf-8")


def _usage(command: object, context: object) -> str:
    with redirect_stdout(io.StringIO()):
        return str(command.get_usage(context)).removeprefix("Usage: ")  # type: ignore[attr-defined]


def _help(parameter: object) -> str:
    text = str(getattr(parameter, "help", "") or "")
    default = getattr(parameter, "default", None)
    return text if default in (None, False, ()) or callable(default) else f"{text} Default: `{default}`."


def setup(app: object) -> None:
    app.connect("builder-inited", write_commands)  # type: ignore[attr-defined]
