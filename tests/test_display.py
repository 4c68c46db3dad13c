"""What the tables of the command line show."""

import json

import pytest

from peft_bidora.display import print_errors, print_evaluation, print_json


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[/b]", "[spam]", ":smile:", "[red]x"]
    print_evaluation("", {}, {"by_class": [{"label": name, "f1": 0.5} for name in names]})
    shown = capsys.readouterr().out
    assert all(f" {name} " in shown for name in names)


def test_score_that_is_not_finite_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation("", {"perplexity": {"value": None, "low": 1.0, "high": None}}, {})
    assert "not finite │ 1.0000 – not finite" in " ".join(capsys.readouterr().out.split())


def test_json_is_of_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"é": float("inf")})
    shown = capsys.readouterr().out
    assert shown.isascii()
    assert json.loads(shown) == {"é": None}


def test_errors_of_a_lora_adapter_are_shown(capsys):
    print_errors({"layer": 0.25})
    told = capsys.readouterr().out
    assert "0.2500" in told
    assert "relative error: what the rank leaves out" in told
