"""What is kept on a module is never that of other tensors."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from peft_bidora.adapter.kept import forget, kept


def total(module: nn.Linear, settings: object = None) -> float:
    weight = module.weight
    return kept(module, "total", [weight], settings, lambda: weight.sum().item())


def counted(module: nn.Linear) -> object:
    return kept(module, "object", [module.weight], None, object)


def test_what_is_kept_is_computed_once():
    module = nn.Linear(2, 2)
    assert counted(module) is counted(module)
    assert not [name for name in module.state_dict() if "kept" in name]


@torch.no_grad()
def test_tensor_at_the_address_of_one_that_is_gone_is_another():
    module, buffer = nn.Linear(2, 2), torch.ones(2, 2).numpy()

    def at_buffer() -> Tensor:
        return torch.from_numpy(buffer)

    module.weight.data = at_buffer()
    assert total(module) == 4
    module.weight.data = torch.zeros(2, 2)
    buffer[:] = 2
    module.weight.data = at_buffer()
    assert total(module) == 8


def test_settings_are_a_part_of_what_is_kept():
    module = nn.Linear(2, 2)
    found = kept(module, "settings", [module.weight], 1, lambda: 1)
    assert (found, kept(module, "settings", [module.weight], 2, lambda: 2)) == (1, 2)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copy_of_a_module_keeps_nothing_of_the_first(copied):
    module = nn.Linear(2, 2)
    first = counted(module)
    other = copied(module)
    assert counted(other) is not first
    assert counted(module) is first


@pytest.mark.parametrize("name", ["total", None])
def test_what_was_written_past_the_counters_is_seen_once_forgotten(name):
    module = nn.Linear(2, 2)
    before = total(module)
    forget(module, name)  # of a name that nothing is kept under any more
    assert total(module) == before
    module.weight.data.add_(1)
    assert total(module) == before
    forget(module, name)
    assert total(module) == pytest.approx(before + 4)
    forget(nn.Linear(2, 2), name)


@pytest.mark.parametrize("fused", [True, False])
def test_step_of_an_optimiser_is_seen(fused):  # a fused one raises no version
    module = nn.Linear(2, 2)
    module.weight.grad = torch.ones_like(module.weight)
    before = total(module)
    torch.optim.AdamW(module.parameters(), lr=0.1, fused=fused).step()
    assert total(module) == module.weight.sum().item() != before


def test_step_of_an_optimiser_leaves_what_is_kept_of_frozen_tensors():
    module, other = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2)
    other.weight.grad = torch.ones_like(other.weight)
    first = counted(module)
    torch.optim.AdamW(other.parameters()).step()
    assert counted(module) is first
