"""The mixin in front of a Trainer that is not ours."""

from transformers import Trainer, default_data_collator

from peft_bidora.adapter.layer import dora_layers
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.bilevel_mixin import BilevelMixin


class PlainTrainer(BilevelMixin, Trainer):
    """Records at each step whether the row norms are differentiated through."""

    def training_step(self, *args, **kwargs):
        self.seen = [*getattr(self, "seen", []), norms_in_graph(self.model)]
        return super().training_step(*args, **kwargs)


def norms_in_graph(model) -> bool:
    states = {module.lora_variant[adapter].norm_in_graph for _, module, adapter in dora_layers(model)}
    assert len(states) == 1
    return states.pop()


def test_norm_is_in_the_graph_during_the_search_alone(make_adapted, make_rows, tmp_path) -> None:
    args = BiDoRAArguments(
        str(tmp_path), max_steps=2, lower_steps=1, per_device_train_batch_size=4, save_strategy="no", report_to=[],
        disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = PlainTrainer(
        make_adapted(), args, default_data_collator, make_rows(8, seed=1), upper_dataset=make_rows(8, seed=2)
    )
    trainer.train()
    assert trainer.seen == [True, True]
    assert not norms_in_graph(trainer.model)
