"""Find what the user named, a file, a folder or a data set of the hub, and read it into a table."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from peft_bidora.data.arrow import is_saved, read_hub, read_parquet, read_saved
from peft_bidora.data.conll import SUFFIXES, is_conll, read_conll
from peft_bidora.data.glue import glue_files, glue_of_file, read_glue, read_glue_hub
from peft_bidora.data.readers import read_csv, read_json, read_json_lines, read_tsv
from peft_bidora.data.table import Table
from peft_bidora.data.wording import listed, suggestion
from peft_bidora.errors import DataError

READERS: dict[str, Callable[[str, bytes], Table]] = {
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    **dict.fromkeys(SUFFIXES, read_conll),
}
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")


def read_table(source: str | Path, split: str = "train") -> Table:
    """Read a file, a folder or a hub data set.

    Args:
        source: a file with a suffix of `READERS`, or a .txt that is CoNLL; a folder with split files or from
            `datasets.save_to_disk`; or `owner/name` or `owner/name:config` on the hub. What exists here is never
            looked up on the hub.
            The folders, files and hub names of GLUE are read as `glue` says.
        split: which split of a folder or a hub data set; a single file or a single saved `Dataset` has but one.

    Raises:
        DataError: nothing is there, or what is there cannot be read or has no rows.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        table = _read_folder(str(source), path, split)
    elif path.exists():
        table = _read_file(str(source), path)
    elif _names_a_path(source):
        raise DataError(_missing(str(source), path))
    else:
        table = read_glue_hub(str(source), split) or read_hub(str(source), split)
    if not table.rows:
        raise no_rows(table.source, table.columns)
    return table


def find_split_files(folder: Path) -> dict[str, Path]:
    """Return the file of each split that the folder has, keyed "train", "validation" and "test".

    The official folders of GLUE have their own names of files. Elsewhere a file belongs to a split if its name's
    first word is one of `SPLIT_WORDS` and its suffix one of `READERS`, or .txt with the columns of CoNLL.

    Raises:
        DataError: two files claim one split, or no file claims any.
    """
    if official := glue_files(folder):
        return official
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        split = _split_of(path)
        if split and path.is_file():
            found.setdefault(split, []).append(path)
    faults = [
        f"{folder} has {len(paths)} files for the {split} split: {listed(path.name for path in paths)}. "
        "Name the one that is meant, or move the others away."
        for split, paths in found.items()
        if len(paths) > 1
    ]
    if faults:
        raise DataError(*faults)
    if not found:
        raise DataError(
            f"{folder} has no data that can be read: expected train, validation or test files "
            f"({_known_suffixes()}), or a folder of datasets.save_to_disk. Name a file."
        )
    return {split: found[split][0] for split in SPLIT_WORDS if split in found}


def _read_folder(source: str, folder: Path, split: str) -> Table:
    if is_saved(folder):
        return read_saved(source, folder, split)
    path = split_file(folder, split)
    return _read_file(str(path), path)


def split_file(folder: Path, split: str) -> Path:
    """Return the file of a split.

    Raises:
        DataError: the folder has none, or not one alone.
    """
    files = find_split_files(folder)
    if split not in files:
        raise DataError(f"{folder} has no {split} file; it has {listed(path.name for path in files.values())}.")
    return files[split]


def _read_file(source: str, path: Path) -> Table:
    reader = reader_of(source, path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise unreadable(source, error) from error
    return reader(source, data)


def unreadable(source: str, error: OSError) -> DataError:
    """Return the error of a file that the system does not give."""
    return DataError(f"{source} cannot be read ({error.strerror}). Check its permissions.")


def no_rows(source: str, columns: Sequence[str]) -> DataError:
    """Return the error of a source that has columns at most."""
    return DataError(f"{source} has the columns {listed(columns)} but no rows. Add at least one row.")


def reader_of(source: str, path: Path) -> Callable[[str, bytes], Table]:
    """Return the function that reads a file, from what the user named and its bytes.

    Raises:
        DataError: its format is unknown.
    """
    if task := glue_of_file(path):
        return partial(read_glue, task=task, name=path.name)
    reader = _reader_of(path)
    if reader is None:
        raise DataError(
            f"{source} has the unknown suffix {path.suffix!r}; known are {_known_suffixes()}. Convert it, or name it "
            ".conll if each line has a word and its tag."
        )
    return reader


def _reader_of(path: Path) -> Callable[[str, bytes], Table] | None:
    """Return how to read a file; a .txt or .tsv may be CoNLL, where that is beyond doubt."""
    suffix = path.suffix.lower()
    return read_conll if suffix in (".txt", ".tsv") and is_conll(path) else READERS.get(suffix)


def _split_of(path: Path) -> str | None:
    word = re.split(r"[^a-z]", path.stem.lower(), maxsplit=1)[0]
    split = next((split for split, words in SPLIT_WORDS.items() if word in words), None)
    return split if split is not None and _reader_of(path) is not None else None


def _names_a_path(source: str | Path) -> bool:
    """Return whether a name of nothing here was meant as a path rather than as a hub data set."""
    if isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        return True
    return source.startswith((".", "~")) or Path(source).suffix.lower() in (*READERS, ".txt")


def _missing(source: str, path: Path) -> str:
    if not path.parent.is_dir():
        return f"{source} does not exist, and neither does its folder {path.parent}. Correct the path."
    own = _split_of(path) if path.suffix in READERS else None
    near = [name for name in _names_in(path.parent) if own is None or _split_of(path.parent / name) in (None, own)]
    hint = suggestion(path.name, near)
    return f"{source} does not exist.{hint} Correct the path, or name a hub data set as owner/name."


def _names_in(folder: Path) -> Sequence[str]:
    return sorted(path.name for path in folder.iterdir())


def _known_suffixes() -> str:
    return ", ".join(READERS)
