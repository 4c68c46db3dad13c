"""The bar of rows on standard error."""

import sys

from peft_bidora.recipe.progress import progress_bar


def test_pipe_shows_no_bar(capsys) -> None:
    with progress_bar(3, "test") as progress:
        progress(3)
    assert capsys.readouterr() == ("", "")


def test_terminal_shows_the_rows_that_are_done(capsys, monkeypatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar(3, "test") as progress:
        progress(2)
        progress(1)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "test: 100%" in shown.err
    assert "3/3" in shown.err
