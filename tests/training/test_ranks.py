"""What ranks agree on, and what is refused where there are several."""

from pathlib import Path
from typing import Any

import pytest
import rank_works
from launching import run_ranks
from transformers import Trainer, default_data_collator

from peft_bidora.errors import RecipeError
from peft_bidora.training import ranks
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.bilevel_mixin import BilevelMixin
from peft_bidora.training.exact_trainer import ExactTrainer


@pytest.fixture(scope="module")
def agreed(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(rank_works.agree, tmp_path_factory.mktemp("agreed"))


def test_all_ranks_have_what_the_first_found_or_raised(agreed: list[dict[str, Any]]) -> None:
    for found in agreed:
        assert found["found"] == ("value", "of rank 0")
        assert found["raised"] == ("DataError", ("one is wrong\ntwo is wrong",))
    assert agreed[0]["not sent"] == ("Unsendable", ("of rank 0",))
    assert agreed[1]["not sent"] == ("RuntimeError", ("Unsendable: of rank 0",))


def test_error_of_one_rank_is_raised_on_all(agreed: list[dict[str, Any]]) -> None:
    for found in agreed:
        assert found["well"] == ("value", f"of rank {found['rank']}")
        assert found["of the second"] == ("DataError", ("of rank 1",))
        assert found["own"] == ("DataError", (f"of rank {found['rank']}",))


def test_each_rank_draws_its_own_numbers_and_the_first_those_of_a_process_alone(agreed: list[dict[str, Any]]) -> None:
    first, second = (found["drawn"] for found in agreed)
    assert first == rank_works.draw_after(lambda: None)
    assert first != second


def test_values_of_all_ranks_are_merged(agreed: list[dict[str, Any]]) -> None:
    assert all(found["merged"] == ["of rank 0", "of rank 1", "of rank 0", "of rank 1", "of rank 0"] for found in agreed)


def test_one_process_agrees_with_itself() -> None:
    assert (ranks.count(), ranks.rank()) == (1, 0)
    assert ranks.on_first(lambda: 3) == ranks.together(lambda: 3) == 3
    assert ranks.merged([1, None]) == [1, None]
    with pytest.raises(ZeroDivisionError):
        ranks.together(lambda: 1 // 0)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 2)
    monkeypatch.setattr(BiDoRAArguments, "world_size", 2)


def arguments(**options: Any) -> BiDoRAArguments:
    return BiDoRAArguments("unused", report_to=[], use_cpu=True, **options)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("option", ["torch_compile", "auto_find_batch_size", "fp16", "fsdp"])
def test_what_several_processes_do_not_do_is_refused(option: str) -> None:
    with pytest.raises(RecipeError, match=f"^{option} is not supported"):
        arguments(**{option: "full_shard" if option == "fsdp" else True})


@pytest.mark.usefixtures("two")
def test_mean_of_means_is_refused(make_adapted, make_rows, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="average_tokens_across_devices=False: expected True on 2 processes"):
        ExactTrainer(make_adapted(), arguments(average_tokens_across_devices=False), train_dataset=make_rows(4))


@pytest.mark.usefixtures("two")
def test_order_that_ranks_would_draw_differently_is_refused(make_adapted, make_rows) -> None:
    args = arguments(train_sampling_strategy="group_by_length")
    trainer = ExactTrainer(make_adapted(), args, train_dataset=make_rows(4))
    with pytest.raises(RecipeError, match="'group_by_length': expected one of random, sequential on 2 processes"):
        trainer.get_train_dataloader()


@pytest.mark.usefixtures("two")
def test_mixin_asks_for_a_trainer_that_divides_rows(make_adapted, make_rows) -> None:
    class Mine(BilevelMixin, Trainer):
        pass

    data = {"train_dataset": make_rows(4), "upper_dataset": make_rows(4, 1), "data_collator": default_data_collator}
    with pytest.raises(TypeError, match="Mine: on 2 processes expected a subclass of ExactTrainer"):
        Mine(make_adapted(), arguments(), **data)
