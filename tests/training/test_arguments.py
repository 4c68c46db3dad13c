"""Every option is checked before the search, also those that the retrain phase alone reads."""

import math
from typing import Any

import pytest

from peft_bidora.errors import RecipeError
from peft_bidora.training.arguments import BiDoRAArguments, estimator_for


def arguments(**options: Any) -> BiDoRAArguments:
    return BiDoRAArguments("unused", report_to=[], use_cpu=True, **options)


@pytest.mark.parametrize(
    ("named", "bfloat16", "expected"),
    [
        ("auto", False, "one-sided"),
        ("auto", True, "finite-difference"),
        ("one-sided", True, "one-sided"),
        ("exact", False, "exact"),
    ],
)
def test_estimator_follows_the_precision_unless_it_is_named(named: str, bfloat16: bool, expected: str) -> None:
    assert estimator_for(named, bfloat16=bfloat16) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("upper_learning_rate", -1.0),
        ("upper_learning_rate", math.inf),
        ("upper_weight_decay", -1.0),
        ("upper_weight_decay", math.nan),
        ("upper_batch_size", 0),
        ("upper_batch_size", 2.5),
        ("lower_steps", 0),
        ("lower_steps", 2.5),
        ("hypergradient", "central"),
        ("retrain_from", "scratch"),
        ("orthogonality", -1e-5),
        ("orthogonality", math.inf),
        ("settled", 0.0),
        ("settled", 1.5),
        ("finite_difference_radius", 0.0),
        ("finite_difference_radius", math.nan),
        ("penalty", 0.0),
        ("penalty", math.inf),
        ("xi", "lower"),
        ("xi", math.nan),
        ("xi", True),
        ("retrain_max_steps", 0),
        ("retrain_max_steps", 2.5),
        ("retrain_max_steps", -5),
        ("retrain_num_train_epochs", -1.0),
        ("retrain_per_device_train_batch_size", 0),
        ("retrain_gradient_accumulation_steps", 0),
        ("retrain_learning_rate", -1e-3),
        ("retrain_learning_rate", math.nan),
        ("retrain_max_grad_norm", math.inf),
        ("retrain_weight_decay", -0.1),
        ("retrain_warmup_steps", -1),
        ("retrain_lr_scheduler_type", "cosin"),
        ("upper_lr_scheduler_type", "cosin"),
        ("upper_lr_scheduler_type", "reduce_lr_on_plateau"),
    ],
)
def test_option_out_of_range_is_named_with_its_value_and_all_others(name: str, value: object) -> None:
    options = {"fp16": False, name: value, **({} if name == "lower_steps" else {"lower_steps": -1})}
    with pytest.raises(RecipeError) as caught:
        arguments(**options)
    assert len(caught.value.faults) == (1 if name == "lower_steps" else 2)
    assert any(fault.startswith(f"{name}={value!r}: expected ") for fault in caught.value.faults)


def test_response_of_adam_is_not_given_for_another_optimiser() -> None:
    assert arguments(xi="adam").xi == "adam"
    with pytest.raises(RecipeError, match=r"optim=.*sgd.*: expected adamw_torch"):
        arguments(xi="adam", optim="sgd")


def test_options_at_the_edge_of_their_range_are_accepted() -> None:
    edge: dict[str, Any] = {
        "max_steps": -1,
        "num_train_epochs": 0.5,
        "learning_rate": 0,
        "max_grad_norm": 0,
        "weight_decay": 0,
    }
    edge |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "lr_scheduler_type": "cosine"}
    options = {f"retrain_{name}": value for name, value in edge.items()}
    made = arguments(**options)
    assert {name: getattr(made, name) for name in options} == options
