"""Read GLUE as it is handed out: the folders of the official download, and the data sets of the hub.

The official files are tab-separated without any quoting. Whatever they call their columns and classes, the rows get
the names of the hub: `label`, and for a class `entailment` rather than 0.
"""

import io
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from peft_bidora.data.arrow import read_hub
from peft_bidora.data.glue_tasks import BY_CONFIG, GlueTask
from peft_bidora.data.lines import text_lines
from peft_bidora.data.rows import NumberedRow, RowStream
from peft_bidora.data.table import Row, Table, unique_columns
from peft_bidora.data.wording import counted, listed
from peft_bidora.errors import DataError

logger = logging.getLogger(__name__)

GLUE_HUB = "nyu-mll/glue"
GLUE_NAME = re.compile(r"(?:glue/|nyu-mll/glue:)([\w-]+?)(?:_(matched|mismatched))?")
HIDDEN = -1  # what the hub writes for a label that is not public
FILES = {
    "train": ("train.tsv", "msr_paraphrase_train.txt"),
    "validation": ("dev.tsv", "dev_matched.tsv", "dev_mismatched.tsv"),
    "test": ("msr_paraphrase_test.txt", "test.tsv", "test_matched.tsv", "test_mismatched.tsv"),
}
HEADER_BYTES = 2**16


def glue_of_hub(source: str) -> tuple[GlueTask, str] | None:
    """Return the task that a hub name is of, and what its validation and test splits end with; None if of none."""
    match = GLUE_NAME.fullmatch(source)
    task = BY_CONFIG.get(_plain(match[1])) if match else None
    if match is None or task is None or (match[2] and not task.flavours):
        return None
    return task, f"_{match[2] or 'matched'}" if task.flavours else ""


def glue_of_file(path: Path) -> GlueTask | None:
    """Return the task that an official file is of, by the names of folder and file and by its columns."""
    path = path.absolute()
    task = BY_CONFIG.get(_plain(path.parent.name))
    if task is None or not any(path.name in names for names in FILES.values()) or not path.is_file():
        return None
    try:
        with path.open("rb") as stream:
            cells = _cells(stream.readline(HEADER_BYTES).decode("utf-8-sig", errors="replace"))
    except OSError:
        return None  # whoever reads it will say why it cannot be
    if _has_header(task, path.name):
        columns = {task.renamed.get(name, name) for name in cells}
        wanted = {*task.text} if path.name.startswith("test") else {*task.text, "label"}
        return task if wanted <= columns else None
    return task if len(cells) == len(task.header) and cells[1] in ("0", "1") else None


def find_glue(source: str) -> GlueTask | None:
    """Return the task that a folder, a file or a hub name is of; None where it is of none."""
    path = Path(source).expanduser()
    if path.is_dir():
        return next((glue_of_file(file) for file in glue_files(path).values()), None)
    if path.exists():
        return glue_of_file(path)
    found = glue_of_hub(source)
    return found[0] if found else None


def glue_files(folder: Path) -> dict[str, Path]:
    """Return the file of each split of an official folder, keyed as by `find_split_files`; none of another folder."""
    found = {}
    for split, names in FILES.items():
        official = [folder / name for name in names if glue_of_file(folder / name)]
        if official:
            found[split] = official[0]
    return found


def read_glue_hub(source: str, split: str) -> Table | None:
    """Load a split of a task from the hub by `glue/rte` or `nyu-mll/glue:rte`; None where the name is of no task.

    Numbers of classes become names, and a label that is hidden None.

    Raises:
        DataError: whatever the hub's client raised, or a label that is no class of the task.
    """
    found = glue_of_hub(source)
    if found is None:
        return None
    task, flavour = found
    table = read_hub(f"{GLUE_HUB}:{task.config}", split if split == "train" else split + flavour)
    rows = []
    for number, row in zip(table.lines, table.rows, strict=True):
        label = row.get("label")
        named = None if label == HIDDEN else _class_name(task, label)
        if named is None and label != HIDDEN:
            raise DataError(_strange_label(task, source, table.unit, number, label))
        rows.append({**row, "label": named})
    return replace(table, source=source, rows=rows)


def labelled_test(source: str) -> tuple[str, str, str | None]:
    """Return the source and the split whose rows are to be scored, and a note where they are not the test rows.

    Args:
        source: as `read_table` takes it; one that is not of GLUE comes back with its test split.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        files = glue_files(path)
        hidden = "test" not in files or files["test"].name.startswith("test")
        if hidden and "validation" in files and (task := glue_of_file(files["validation"])):
            return str(files["validation"]), "validation", _hidden_note(task, files["validation"])
    elif not path.exists() and (found := glue_of_hub(source)) and not found[0].public_test:
        return source, "validation", _hidden_note(found[0], f"the validation split of {source}")
    return source, "test", None


def read_glue(source: str, data: bytes, task: GlueTask, name: str) -> Table:
    """Read an official file from its bytes by the rules of `glue_rows`."""
    return glue_rows(source, io.BytesIO(data), task, name).table(sha256(data).hexdigest())


def glue_rows(source: str, stream: BinaryIO, task: GlueTask, name: str) -> RowStream:
    """Stream the rows of an official file; each cell stays a string, and a class gets its name.

    Args:
        source: what the user named.
        stream: of the file's bytes.
        task: of GLUE.
        name: of the file.

    Raises:
        DataError: (on the way) the file is not UTF-8 text.
    """
    records = ((line, _cells(text)) for line, text in enumerate(text_lines(source, stream), start=1))
    header = next(records)[1] if _has_header(task, name) else task.header
    columns = unique_columns(source, [task.renamed.get(column, column) for column in header])
    return RowStream(source, _rows(source, task, columns, records), columns)


def _rows(
    source: str, task: GlueTask, columns: tuple[str, ...], records: Iterator[tuple[int, list[str]]]
) -> Iterator[NumberedRow]:
    torn = 0
    for line, cells in records:
        if cells == [""]:
            continue
        if len(cells) != len(columns):
            if task.torn and len(cells) < len(columns):
                torn += 1
                continue
            expected = f"{counted(len(cells), 'cell')}, but {task.folder} has {len(columns)} ({listed(columns)})"
            yield line, f"{source}, line {line}: {expected}. Fetch the file again."
            continue
        row: Row = dict(zip(columns, cells, strict=True))
        if "label" in row:
            label = row["label"]
            row["label"] = _class_name(task, label)
            if row["label"] is None:
                yield line, _strange_label(task, source, "line", line, label)
                continue
        yield line, row
    if torn:
        logger.warning("%s: %s cut off and left out", source, "1 row is" if torn == 1 else f"{torn} rows are")


def _class_name(task: GlueTask, label: object) -> object:
    """Return the name of a class from its number or its name, None for neither; a number of a regression as it is."""
    if not task.classes:
        return label
    numbers = {str(number): name for number, name in enumerate(task.classes)}
    return numbers.get(str(label), label if label in task.classes else None)


def _strange_label(task: GlueTask, source: str, unit: str, number: int, label: object) -> str:
    return (
        f"{source}, {unit} {number}: the label {label!r} is no class of {task.folder}, which has "
        f"{listed(task.classes)}. Fetch the file again."
    )


def _hidden_note(task: GlueTask, instead: object) -> str:
    return f"The test labels of {task.folder} are not public: {instead} serves as the test rows."


def _has_header(task: GlueTask, name: str) -> bool:
    return not task.header or name.startswith("test")


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _plain(name: str) -> str:
    """Return a name of a task without its case and hyphens: `SST-2` and `sst2` are one."""
    return name.lower().replace("-", "")
