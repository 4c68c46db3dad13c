"""Write small files and build small examples on the spot."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import settings

from peft_bidora.data.examples import Examples

# A busy machine is no fault of the code, so an example may take its time.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    """Write a file below the temporary folder and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture(scope="session")
def build() -> Callable[..., Examples]:
    """Build examples with one text a row; the text of a row is its number unless it is given."""

    def build(
        labels: Sequence[str], texts: Sequence[str | tuple[str, ...]] | None = None, groups: Sequence[str] | None = None
    ) -> Examples:
        count = len(labels)
        given = [str(i) for i in range(count)] if texts is None else texts
        return Examples(
            texts=[(text,) if isinstance(text, str) else text for text in given],
            labels=list(labels),
            groups=None if groups is None else list(groups),
            rows=[{"number": i} for i in range(count)],
            source="train.jsonl",
            lines=[i + 1 for i in range(count)],
            unit="line",
        )

    return build
