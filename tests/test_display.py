"""What the tables of the command line show."""

import json
from types import SimpleNamespace

import pytest

from peft_bidora.display import print_errors, print_evaluation, print_json, print_lanes


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


def test_lanes_of_several_tasks_are_shown_side_by_side(capsys, tmp_path):
    def outcome(seed, metric, value):
        metrics = {"test": {metric: {"value": value}}, "kept": {"step": 4, "of": 4}, "seconds": 1.0}
        values = {"seed": str(seed), "task": metric}
        return SimpleNamespace(
            setting=SimpleNamespace(name=f"seed={seed},{metric}", values=values), metrics=metrics, stopped=None
        )

    lanes = [outcome(seed, metric, 0.25 * seed) for seed in (1, 3) for metric in ("accuracy", "mse")]
    stopped = SimpleNamespace(setting=SimpleNamespace(name="seed=5", values={}), metrics=None, stopped="step 3: no [b]")
    print_lanes(tmp_path, [*lanes, stopped])
    told = capsys.readouterr().out
    assert told.count("0.5000 ± 0.3536") == 2
    assert "seed=5 was stopped: step 3: no [b]" in told
