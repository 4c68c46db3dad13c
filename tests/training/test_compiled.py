"""The search under torch.compile."""

import pytest
import torch
from transformers import default_data_collator

from peft_bidora.errors import RecipeError
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.trainer import BiDoRATrainer

COMPILED = {"torch_compile": True, "torch_compile_backend": "aot_eager"}


def trained(model, rows, output, **options) -> dict[str, torch.Tensor]:
    args = BiDoRAArguments(
        output_dir=str(output), max_steps=4, lower_steps=2, per_device_train_batch_size=4, save_strategy="no",
        learning_rate=1e-2, use_cpu=True, disable_tqdm=True, report_to=[], dataloader_pin_memory=False, **options,
    )  # fmt: skip
    torch.compiler.reset()  # what was compiled for another test counts against the limit
    data = {"train_dataset": rows(8, seed=1), "upper_dataset": rows(8, seed=2)}
    trainer = BiDoRATrainer(model, args, data_collator=default_data_collator, **data)
    before = {name: value.detach().clone() for name, value in trainer.levels.magnitude.items()}
    trainer.train()
    assert all(not torch.equal(before[name], value) for name, value in trainer.levels.magnitude.items())
    return {name: value.detach() for name, value in trainer.model.named_parameters()}


# torch's own: it makes an instance of every autograd function that it compiles.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize(
    "hypergradient",
    [
        "one-sided",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("finite-difference", "first-order", "pbgd-free")),
    ],
)
def test_compiled_search_finds_the_same(hypergradient, make_adapted, make_rows, tmp_path):
    plain = trained(make_adapted(), make_rows, tmp_path / "plain", hypergradient=hypergradient)
    compiled = trained(make_adapted(), make_rows, tmp_path / "compiled", hypergradient=hypergradient, **COMPILED)
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-3, atol=1e-5)  # float32, sums in another order


def test_exact_hypergradient_of_a_compiled_graph_is_refused(make_adapted, make_rows, tmp_path):
    with pytest.raises(RecipeError, match=r"exact differentiates twice, which a graph that torch\.compile made"):
        trained(make_adapted(), make_rows, tmp_path, hypergradient="exact", **COMPILED)
