"""Frozen weights that are divided over two processes: each holds its part between passes."""

from pathlib import Path
from typing import Any

import pytest
import rank_works
import torch
from launching import run_ranks

from peft_bidora.errors import RecipeError
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.sharding import shard_base


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(rank_works.shard_all, tmp_path_factory.mktemp("sharded"))


def test_each_rank_holds_its_part_of_every_frozen_weight_between_steps_and_after_evaluations(sharded) -> None:
    first, second = sharded
    assert len(first["held"]) == len(second["held"]) == 7  # three steps, three evaluations and the end
    for parts in zip(first["held"], second["held"], strict=True):
        for name, numbers in first["numbers"].items():
            one, two = (part[name] for part in parts)
            assert one + two == numbers
            assert one - two in (0, numbers // 3), name  # rows of a head of three classes: two and one
    assert 0.5 <= sum(first["held"][0].values()) / sum(first["numbers"].values()) < 0.52


def test_weights_of_a_block_are_whole_in_its_own_passes_alone(sharded) -> None:
    assert all(found["whole"] == {(False, True)} for found in sharded)


def test_each_layer_is_gathered_for_itself_and_what_is_beside_them_with_the_whole(sharded) -> None:
    layers = [f"base_model.model.model.{part}.layers.0" for part in ("encoder", "decoder")]
    assert sharded[0]["groups"] == ["", *layers]


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("differing", "ModelError", "bert.pooler.dense.bias differs between the processes"),
        ("packed", "ModelError", "weights that bitsandbytes packed cannot be sharded"),
        ("none frozen", "ModelError", "no weight is frozen"),
        ("exact", "ModelError", "hypergradient=exact differentiates twice, and a sharded model lets its weights go"),
    ],
)
def test_what_shards_cannot_do_is_refused_on_every_rank(what: str, error: str, words: str, sharded) -> None:
    for found in sharded:
        kind, (message, *_) = found["refused"][what]
        assert kind == error
        assert words in message


def test_one_process_keeps_the_whole_weights(make_adapted) -> None:
    model = make_adapted()
    before = dict(model.named_parameters())
    shard_base(model)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert type(model.get_base_model().bert.embeddings.word_embeddings.weight) is torch.nn.Parameter


def test_sharding_by_accelerate_is_refused(make_adapted, make_rows, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(RecipeError, match=r"ACCELERATE_USE_FSDP.*call peft_bidora\.shard_base\(model\)"):
        ExactTrainer(make_adapted(), train_dataset=make_rows(4))
