"""What the command line shows of many runs."""

from types import SimpleNamespace
from typing import Any

import pytest

from peft_bidora.display_study import comparison_progress, print_comparison, print_lanes, print_trials, tell_trial


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


def comparison(**pair: Any) -> dict[str, Any]:
    lora = {"label": "[b]lora", "rate": 1.0, "mean": 0.8, "standard_deviation": 0.01, "values": [0.79, 0.81]}
    cost = {"seconds": 10.0, "peak_memory_bytes": 2**30}
    against = {"difference": 0.02, "low": -0.01, "high": 0.05, "p_corrected": 0.5, **pair}
    bidora = {**lora, "label": "bidora", "seconds": 20.0, "peak_memory_bytes": 2**31, "against_reference": against}
    return {
        "metric": "accuracy",
        "reference": "[b]lora",
        "folds": None,
        "notes": ["few seeds"],
        "methods": [lora | cost, bidora],
    }


def test_comparison_shows_the_lead_and_the_cost_over_the_reference(capsys, tmp_path):
    print_comparison(tmp_path, comparison())
    told = capsys.readouterr().out
    assert "[b]lora" in told
    assert "+0.0200 " in told
    assert "-0.0100 – +0.0500" in told
    assert "× 2.00" in told
    assert "1,024" in told
    assert "note: few seeds" in told


def test_comparison_without_a_p_value_shows_none(capsys, tmp_path):
    print_comparison(tmp_path, comparison(p_corrected=None))
    assert "None" not in capsys.readouterr().out


def test_progress_of_a_comparison_is_a_line_a_tenth_in_a_file(capsys):
    with comparison_progress(["lora"]) as watch:
        for step in range(1, 101):
            watch("lora", "retrain", step, 100, [0.9, 0.5] if step > 50 else [])
        watch("lora", "done", 1, 1, [])
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 12
    assert told[0] == "lora: retrain step 1 of 100"
    assert told[-2] == "lora: retrain step 100 of 100: selection 0.9000, 0.7000"
    assert told[-1] == "lora: done: selection 0.9000, 0.7000"


def test_trials_are_shown_best_first(capsys: pytest.CaptureFixture[str]) -> None:
    trials = [
        {"trial": number, "state": state, "value": value, "overrides": [f"adapter.rank={number}"]}
        for number, state, value in ((0, "complete", 0.5), (1, "pruned", None), (2, "complete", 0.9))
    ]
    print_trials({"metric": "accuracy", "best": {"value": 0.9}, "recipe": "best.yaml", "trials": trials})
    told = capsys.readouterr().out
    assert told.index("adapter.rank=2") < told.index("adapter.rank=0")
    assert "3 trials, 2 to their end; the best recipe: best.yaml" in told
    tell_trial(SimpleNamespace(number=3, state="failed", value=None, overrides=("a=1",), reason="not finite"))
    assert capsys.readouterr().err == "trial 3: failed  a=1  not finite\n"


def test_lanes_have_the_last_part_of_a_key_above_them_where_it_tells_keys_apart(capsys, tmp_path):
    values = {"retrain.learning_rate": "5e-3", "search.learning_rate": "1e-3", "adapter.rank": "4", "seed": "0"}
    metrics = {"test": {"accuracy": {"value": 0.5}}, "kept": {"step": 4, "of": 4}, "seconds": 1.0}
    lane = SimpleNamespace(setting=SimpleNamespace(name="x", values=values), metrics=metrics, stopped=None)
    print_lanes(tmp_path, [lane])
    head = "".join(capsys.readouterr().out.split())
    assert "rank" in head
    assert "adapter.rank" not in head
    assert "retrain.learn" in head
