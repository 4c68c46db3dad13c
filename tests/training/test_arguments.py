"""Every option is checked before the search, also those that the retrain phase alone reads."""

import math

import pytest

from peft_bidora.errors import RecipeError
from peft_bidora.training.arguments import BiDoRAArguments


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("retrain_max_steps", 0),
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
def test_option_out_of_range_is_refused_by_its_name(name, value, tmp_path):
    with pytest.raises(RecipeError, match=f"^{name}={value!r}: expected .*Correct it"):
        BiDoRAArguments(str(tmp_path), use_cpu=True, report_to=[], **{name: value})


def test_options_at_the_edge_of_their_range_are_accepted(tmp_path):
    edge = {"max_steps": -1, "num_train_epochs": 0.5, "learning_rate": 0, "max_grad_norm": 0, "weight_decay": 0}
    edge |= {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1, "lr_scheduler_type": "cosine"}
    options = {f"retrain_{name}": value for name, value in edge.items()}
    arguments = BiDoRAArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
    assert {name: getattr(arguments, name) for name in options} == options
