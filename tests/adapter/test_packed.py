"""How coarse the passes of a model are; what bitsandbytes packs is in test_quantized."""

import pytest
import torch

from peft_bidora.adapter.packed import rounds_coarsely


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, False), (torch.float32, False), (torch.bfloat16, True), (torch.float16, True)],
)
def test_passes_are_as_coarse_as_the_weights(dtype: torch.dtype, expected: bool) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, dtype=dtype))
    assert rounds_coarsely(model) is expected
