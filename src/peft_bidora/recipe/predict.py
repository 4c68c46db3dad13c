"""Predict the rows of a source by a finished run, chunk by chunk, into a file or a stream."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from peft_bidora.data.columns import Columns, Layout
from peft_bidora.data.examples import Examples, read_examples
from peft_bidora.data.stream import Chunks, open_chunks
from peft_bidora.data.table import Table
from peft_bidora.data.wording import listed_columns, suggestion
from peft_bidora.data.writers import WRITERS, RowWriter
from peft_bidora.errors import DataError, RecipeError
from peft_bidora.recipe.finished import FinishedRun, load_trained, predict_with, read_run
from peft_bidora.recipe.options import task_options

BATCH_ROWS = 64
CHUNK_ROWS = 1024  # enough that sorting them by length saves padding, few enough that nobody waits for them
Progress = Callable[[int, int | None], Any]


def predict_file(
    run_folder: Path,
    source: str,
    output: Path | BinaryIO,
    *,
    batch_size: int = BATCH_ROWS,
    overwrite: bool = False,
    progress: Progress = lambda done, expected: None,
) -> int:
    """Write the rows of a source with the predictions of a run; return their number.

    All columns are kept, and labels need not be there. Memory does not grow with the number of rows.

    Args:
        run_folder: what `run` wrote.
        source: as in `open_chunks`: a file, a folder, a hub data set, or `-` for JSON Lines on standard input.
        output: a file to make, which appears once it is whole and is `NAME.partial` until then; or an open stream,
            which gets JSON Lines.
        batch_size: rows a pass.
        overwrite: replace the file that is there.
        progress: is told, after each pass, the rows that are predicted and those expected in all; None for unknown.

    Raises:
        BiDoRAError: the folder is no finished run, the output is taken or of no known format, or a row is at fault;
            then the rows of the chunks before it have been written, and the message says how many and where.
    """
    if isinstance(output, Path):
        check_output_file(output, overwrite=overwrite)
    run = read_run(run_folder)
    # A whole number of batches, so that none is torn.
    with open_chunks(source, batch_size * -(-CHUNK_ROWS // batch_size)) as chunks:
        predicted = _predicted(run, chunks, batch_size, progress)
        first = next(predicted)  # what is wrong with all rows is said before a file is made
        done, where = 0, _partial(output) if isinstance(output, Path) else "standard output"
        try:
            with _writer(output, chunks.schema) as writer:
                for table, added in chain([first], predicted):
                    writer.write(table.columns, table.rows, added)
                    done += len(table.rows)
        except BrokenPipeError:  # whoever reads the rows has enough of them
            raise
        except (DataError, OSError) as error:
            written = [f"Of the rows before, {done} were written to {where}."] if done else []
            faults = error.faults if isinstance(error, DataError) else [f"{where} cannot be written: {error}."]
            raise DataError(*faults, *written) from error
    return done


def check_output_file(path: Path, *, overwrite: bool) -> None:
    """Raise unless predictions may be written to a file.

    Raises:
        RecipeError: its suffix is unknown, its folder is missing, or something is there.
    """
    if path.suffix.lower() not in WRITERS:
        raise RecipeError(
            f"{path} has the unknown suffix {path.suffix!r}; predictions are written as {', '.join(WRITERS)}."
            " Name such a file, or - for JSON Lines on standard output."
        )
    if path.is_dir():
        raise RecipeError(f"{path} is a folder; expected a file to make. Name a file in it.")
    if not path.parent.is_dir():
        raise RecipeError(f"The folder of {path} does not exist. Make it, or correct the path.")
    if path.exists() and not overwrite:
        raise RecipeError(f"{path} exists already. Replace it by --overwrite, or name another file.")


def _predicted(
    run: FinishedRun, chunks: Chunks, batch_size: int, progress: Progress
) -> Iterator[tuple[Table, list[dict[str, object]]]]:
    """Yield the rows of each chunk and the columns that are added to them."""
    layout = run.kind.layout(task_options(run.recipe), run.tokenizer)
    model = None
    read = done = 0
    for table in chunks.tables:
        examples = _unlabelled(run, table, layout)
        model = load_trained(run) if model is None else model
        read += len(examples)
        fraction = chunks.fraction()
        expected = round(read / fraction) if fraction else None

        def told(rows: int, expected: int | None = expected) -> None:
            nonlocal done
            done += rows
            progress(done, expected)

        predictions = predict_with(run, model, examples, told, batch_size)
        yield table, run.task.prediction_columns(predictions)


def _unlabelled(run: FinishedRun, table: Table, layout: Layout) -> Examples:
    """Return the rows as examples; a label, if there is one, is not looked at."""
    arranged = run.kind.arrange(table)
    missing = [column for column in run.columns.text if column not in arranged.columns]
    if missing:
        raise DataError(
            *(
                f"{table.source} has no column {column!r}, from which the run reads its text; it has "
                f"{listed_columns(table.columns)}.{suggestion(column, table.columns)} Rename the one that is meant."
                for column in missing
            )
        )
    return read_examples(arranged, Columns(run.columns.text, None), layout, require_labels=False)


@contextmanager
def _writer(output: Path | BinaryIO, schema: Any) -> Iterator[RowWriter]:
    """Give a writer; a file gets its own name once all has gone well."""
    if not isinstance(output, Path):
        yield WRITERS[".jsonl"](output, None)
        return
    partial = _partial(output)
    with partial.open("wb") as file:
        writer = WRITERS[output.suffix.lower()](file, schema)
        try:
            yield writer
        finally:
            writer.close()
    os.replace(partial, output)


def _partial(output: Path) -> Path:
    return output.with_name(output.name + ".partial")
