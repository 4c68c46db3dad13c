"""Methods and rates as they are typed."""

import pytest

from peft_bidora.errors import RecipeError
from peft_bidora.study.labels import factors, labels


def test_commas_within_brackets_part_no_labels() -> None:
    assert labels("lora, bidora adapter.target_modules=[query,value],dora") == [
        "lora",
        "bidora adapter.target_modules=[query,value]",
        "dora",
    ]


def test_rates_that_are_no_numbers_are_refused() -> None:
    assert factors("0.5,1") == [0.5, 1.0]
    with pytest.raises(RecipeError, match=r"--rates '1,x': expected factors with commas between"):
        factors("1,x")
