"""Frozen weights that are divided over two processes: each holds its part between passes."""

from pathlib import Path
from typing import Any

import pytest
import shard_works
import torch
from families import FAMILIES
from launching import run_ranks

from peft_bidora.errors import RecipeError
from peft_bidora.training.exact_trainer import ExactTrainer
from peft_bidora.training.sharding import shard_base


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(shard_works.shard_all, tmp_path_factory.mktemp("sharded"))


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


def test_norms_of_the_base_rows_are_computed_once_for_all_passes_of_a_step(sharded) -> None:
    assert all(found["norms"] == [1, 1, 1] for found in sharded)


def test_sharded_model_computes_under_autocast_as_the_arguments_say(sharded) -> None:
    assert all(found["computed_in"] == {torch.bfloat16} for found in sharded)


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


@pytest.fixture(scope="module")
def differentiated(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(shard_works.differentiate_all, tmp_path_factory.mktemp("differentiated"))


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_model_of_each_family_computes_what_the_whole_one_does(family: str, differentiated) -> None:
    for found in differentiated:
        for whole, sharded in zip(*found[family], strict=True):
            torch.testing.assert_close(sharded, whole, rtol=1e-12, atol=1e-12)  # float64 sums in another order


def test_sharded_weights_in_bfloat16_give_the_bits_of_whole_ones(tmp_path: Path) -> None:
    for found in run_ranks(shard_works.differentiate_coarse, tmp_path):
        for family, (whole, sharded) in found.items():
            assert all(torch.equal(one, other) for one, other in zip(whole, sharded, strict=True)), family


def test_orthogonality_of_sharded_weights_is_that_of_whole_ones_and_no_weight_is_sent(tmp_path: Path) -> None:
    for found in run_ranks(shard_works.regularize_all, tmp_path):
        gathered = found.pop("gathered")
        for name, (whole, sharded) in found.items():
            assert len(whole) > 9
            for one, other in zip(whole, sharded, strict=True):
                torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-14)  # float64 sums in another order
            assert gathered[name]
            if not name.startswith("gpt2"):  # whose weights are divided by columns
                assert all(4 in shape for shape in gathered[name]), name  # products of rank 4


def test_rows_and_products_of_unequal_parts_are_those_of_the_whole(tmp_path: Path) -> None:
    for found in run_ranks(shard_works.pick_rows, tmp_path):
        for expected, got in found:
            torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-14)


def test_ranks_write_texts_of_unlike_lengths(tmp_path: Path) -> None:
    for rank, found in enumerate(run_ranks(shard_works.generate_all, tmp_path)):
        for whole, sharded in found.values():
            assert whole.shape[1] > 2 + 6 * rank
            assert torch.equal(sharded, whole)


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
