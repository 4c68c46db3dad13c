"""The Trainer: levels, counts, exact resume, accumulation (contracts 5, 7 and 9)."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, default_data_collator
from transformers.trainer_callback import ExportableState

from peft_bidora.adapter.layer import ClosedFormDoraVariant, direction_norm, dora_layers, factors_of
from peft_bidora.bilevel.response import adam_response
from peft_bidora.errors import CheckpointError, NonFiniteError
from peft_bidora.training import bilevel_mixin
from peft_bidora.training import trainer as trainer_module
from peft_bidora.training.arguments import BiDoRAArguments
from peft_bidora.training.trainer import BiDoRATrainer

OPTIONS: dict[str, Any] = {
    "max_steps": 7,
    "retrain_max_steps": 6,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "upper_learning_rate": 3e-2,
    "lower_steps": 2,
    "logging_steps": 2,
    "save_strategy": "steps",
    "save_steps": 3,
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def make_trainer(adapted: Any, rows: Any, output: Path, **changes: Any) -> BiDoRATrainer:
    callbacks = changes.pop("callbacks", None)
    return BiDoRATrainer(
        model=adapted,
        args=BiDoRAArguments(output_dir=str(output), **{**OPTIONS, **changes}),
        train_dataset=rows(10, seed=1),
        upper_dataset=rows(7, seed=2),
        eval_dataset=rows(6, seed=3),
        data_collator=default_data_collator,
        callbacks=callbacks,
    )


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def trained_values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in values(model).items() if "lora_" in name or "modules_to_save" in name}


def assert_identical(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    differing = [name for name in left if not torch.equal(left[name], right[name])]
    assert not differing


class Killed(Exception):
    """Stands for a kill: nothing of the trainer runs after it."""

    def __init__(self) -> None:
        super().__init__("killed")


class KillAt(TrainerCallback):
    def __init__(self, phase: str, step: int) -> None:
        self.phase, self.step = phase, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if Path(args.output_dir).name == self.phase and state.global_step == self.step:
            raise Killed


def test_training_changes_the_trainable_parameters_and_no_frozen_bit(make_adapted, make_rows, tmp_path):
    adapted = make_adapted(dropout=0.1)
    before = values(adapted)
    trainer = make_trainer(adapted, make_rows, tmp_path)
    trainable = {**trainer.levels.direction, **trainer.levels.magnitude}.keys()
    trainer.train()
    after = values(adapted)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trainable)


def test_levels_are_disjoint_and_all_that_is_trainable(make_adapted, make_rows, tmp_path):
    adapted = make_adapted()
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    levels = make_trainer(adapted, make_rows, tmp_path).levels
    assert levels.direction.keys() | levels.magnitude.keys() == trainable
    assert not levels.direction.keys() & levels.magnitude.keys()
    assert all("lora_magnitude_vector" in name for name in levels.magnitude)


def test_zero_upper_learning_rate_leaves_magnitude_bit_identical(make_adapted, make_rows, tmp_path):
    adapted = make_adapted(dropout=0.1)
    trainer = make_trainer(adapted, make_rows, tmp_path, upper_learning_rate=0.0)
    before = values(adapted)
    trainer.train()
    after = values(adapted)
    assert_identical({n: before[n] for n in trainer.levels.magnitude}, {n: after[n] for n in trainer.levels.magnitude})


@pytest.mark.parametrize(("lower_steps", "upper_steps"), [(1, 7), (2, 3), (4, 1), (8, 0)])
def test_upper_step_follows_every_kth_lower_step(make_adapted, make_rows, tmp_path, lower_steps, upper_steps, caplog):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path, lower_steps=lower_steps)
    trainer.train()
    assert trainer._upper.steps == upper_steps
    assert ("no upper step is taken" in caplog.text) == (upper_steps == 0)


def test_magnitudes_stay_fixed_in_the_retrain_phase(make_adapted, make_rows, tmp_path):
    adapted = make_adapted()
    trainer = make_trainer(adapted, make_rows, tmp_path)
    trainer._search(None, tmp_path / "search", {})
    found = values(adapted)
    other = make_adapted()
    trained = make_trainer(other, make_rows, tmp_path / "whole")
    trained.train()
    assert_identical(
        {n: found[n] for n in trained.levels.magnitude},
        {n: p.detach() for n, p in trained.levels.magnitude.items()},
    )


@pytest.mark.parametrize("source", ["initial", "search"])
def test_retrain_starts_from_the_direction_that_was_asked_for(make_adapted, make_rows, tmp_path, source):
    adapted = make_adapted()
    initial = values(adapted)
    trainer = make_trainer(adapted, make_rows, tmp_path, retrain_from=source)
    trainer._search(None, tmp_path / "search", {})
    same = [torch.equal(initial[name], parameter) for name, parameter in trainer.levels.direction.items()]
    assert all(same) if source == "initial" else not any(same)


def test_no_level_reads_rows_of_another_split(make_adapted, make_rows, tmp_path, monkeypatch):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path)
    seen: dict[str, set[tuple[int, ...]]] = {"lower": set(), "upper": set(), "retrain": set()}
    level = "lower"
    compute_loss, upper_step = trainer.compute_loss, trainer._upper_losses

    def spy(model, inputs, **kwargs):
        where = "retrain" if trainer.phase == "retrain" else level
        seen[where].update(tuple(row) for row in inputs["input_ids"].tolist())
        return compute_loss(model, inputs, **kwargs)

    def upper(model, batches):
        seen["upper"].update(tuple(row) for batch in batches for row in batch["input_ids"].tolist())
        return [lambda loss=loss: _as_upper(loss) for loss in upper_step(model, batches)]

    def _as_upper(loss):
        nonlocal level
        level = "upper"
        try:
            return loss()
        finally:
            level = "lower"

    monkeypatch.setattr(trainer, "compute_loss", spy)
    monkeypatch.setattr(trainer, "_upper_losses", upper)
    trainer.train()
    lower, held_out, selection = (
        {tuple(row["input_ids"]) for row in make_rows(n, seed=s)} for n, s in ((10, 1), (7, 2), (6, 3))
    )
    assert seen["lower"] == lower
    assert seen["upper"] <= held_out
    assert seen["upper"]
    assert seen["retrain"] == lower | held_out  # 6 steps of 4 rows are more than an epoch of 17
    assert not (seen["lower"] | seen["upper"] | seen["retrain"]) & selection


def test_norm_is_in_the_graph_in_the_search_alone(make_adapted, make_rows, tmp_path, monkeypatch):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path)
    found: dict[str, set[bool]] = {"search": set(), "retrain": set()}
    compute_loss = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        found[trainer.phase] |= {layer.lora_variant[name].norm_in_graph for _, layer, name in dora_layers(model)}
        return compute_loss(model, inputs, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", spy)
    trainer.train()
    assert found == {"search": {True}, "retrain": {False}}


def test_outputs_are_kept_in_the_search_until_a_magnitude_is_small(make_adapted, make_rows, tmp_path, monkeypatch):
    model = make_adapted()
    with torch.no_grad():
        for _, layer, name in dora_layers(model):  # whose B is not zero: scales of 1
            norm = direction_norm(layer, factors_of(layer, name), in_graph=False)
            layer.lora_magnitude_vector[name].weight.copy_(norm)
    trainer = make_trainer(model, make_rows, tmp_path, lower_steps=2, upper_learning_rate=1e-4)
    found: list[tuple[str, int, bool]] = []
    compute_loss = trainer.compute_loss

    def spy(model, inputs, **kwargs):
        layers = [(layer, name) for _, layer, name in dora_layers(model)]
        if model.training and torch.is_grad_enabled():  # which a look at what follows the layers is not
            states = {layer.lora_variant[name].keep_output for layer, name in layers}
            found.extend((trainer.phase, trainer.state.global_step + 1, state) for state in states)
        return compute_loss(model, inputs, **kwargs)

    def shrink(*args, **kwargs):
        gradient = upper_step(*args, **kwargs)
        if trainer.state.global_step + 1 == 4:
            with torch.no_grad():
                next(iter(trainer.levels.magnitude.values()))[0] = 0.0
        return gradient

    upper_step = bilevel_mixin.upper_step
    monkeypatch.setattr(bilevel_mixin, "upper_step", shrink)
    monkeypatch.setattr(trainer, "compute_loss", spy)
    trainer.train()
    assert {phase for phase, _, _ in found} == {"search", "retrain"}
    assert all(state is (phase == "search" and step <= 4) for phase, step, state in found)


def test_upper_step_replays_the_dropout_masks_of_the_training_pass(make_adapted, make_rows, tmp_path, monkeypatch):
    trainer = make_trainer(make_adapted(dropout=0.3), make_rows, tmp_path)
    losses: list[float] = []
    compute_loss, step = trainer.compute_loss, bilevel_mixin.upper_step
    compared = []

    def spy(model, inputs, **kwargs):
        loss = compute_loss(model, inputs, **kwargs)
        losses.append(loss.item())
        return loss

    def replaying(estimator, problem, *args, **kwargs):
        trained = losses[-1]
        compared.extend(loss().item() == trained for loss in problem.lower_losses for _ in range(2))
        return step(estimator, problem, *args, **kwargs)

    monkeypatch.setattr(trainer, "compute_loss", spy)
    monkeypatch.setattr(bilevel_mixin, "upper_step", replaying)
    trainer.train()
    assert compared == [True] * 6  # three upper steps, twice each


def test_response_is_that_of_the_coming_lower_step(make_adapted, make_rows, tmp_path, monkeypatch):
    trainer = make_trainer(
        make_adapted(), make_rows, tmp_path, xi="adam", adam_epsilon=1e-3, warmup_steps=0, max_grad_norm=0.01
    )
    step, compared = bilevel_mixin.upper_step, []

    def spy(estimator, problem, *args, **kwargs):
        gradients = [each.grad for each in trainer.levels.direction.values()]
        answer = adam_response(trainer.optimizer, problem.direction, gradients, max_norm=0.01)
        found, expected = problem.response(gradients), answer(gradients)
        compared.append(all(torch.equal(one, other) for one, other in zip(found, expected, strict=True)))
        assert estimator.keywords["xi"] == 1.0  # the response has the learning rate in it
        return step(estimator, problem, *args, **kwargs)

    monkeypatch.setattr(bilevel_mixin, "upper_step", spy)
    trainer.train()
    assert compared == [True] * 3


def test_value_function_free_gradient_reaches_the_direction(make_adapted, make_rows, tmp_path, monkeypatch):
    gradients, upper = {}, {}
    original = bilevel_mixin.upper_step

    def spy(*args, **kwargs):
        upper[trainer.args.hypergradient] = original(*args, **kwargs)
        return upper[trainer.args.hypergradient]

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            if trainer.phase == "search":
                gradients[args.hypergradient] = [each.grad.clone() for each in trainer.levels.direction.values()]

    monkeypatch.setattr(bilevel_mixin, "upper_step", spy)
    for name in ("first-order", "pbgd-free"):
        options = {"hypergradient": name, "penalty": 4.0, "max_steps": 1, "lower_steps": 1, "orthogonality": 0.0}
        trainer = make_trainer(make_adapted().double(), make_rows, tmp_path / name, **options, callbacks=[Keep()])
        trainer.train()
    assert upper["first-order"].lower is None
    for plain, both, added in zip(*gradients.values(), upper["pbgd-free"].lower, strict=True):
        torch.testing.assert_close(both - plain, added, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hypergradient", ["finite-difference", "one-sided", "exact", "first-order", "pbgd-free"])
def test_magnitudes_have_no_gradient_that_clipping_of_the_lower_level_could_see(
    make_adapted, make_rows, tmp_path, hypergradient
):
    found = []

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            found.extend(parameter.grad for parameter in trainer.levels.magnitude.values())

    options = {"hypergradient": hypergradient, "callbacks": [Look()], "max_steps": 4, "retrain_max_steps": 1}
    trainer = make_trainer(make_adapted(), make_rows, tmp_path, **options)
    trainer.train()
    assert found == [None] * 4 * 5


def test_orthogonality_moves_the_direction_in_the_search(make_adapted, make_rows, tmp_path):
    found = []
    for weight in (0.0, 100.0):
        trainer = make_trainer(make_adapted(), make_rows, tmp_path / str(weight), orthogonality=weight)
        trainer._search(None, tmp_path / str(weight) / "search", {})
        found.append(values(trainer.model))
    changed = [name for name in found[0] if not torch.equal(found[0][name], found[1][name])]
    assert any("lora_magnitude" in name for name in changed)  # the direction is reset, the magnitudes followed it


def test_search_keeps_its_last_magnitudes_and_the_retrain_phase_its_best(make_adapted, make_rows, tmp_path):
    found = {}

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            found[Path(args.output_dir).name] = args.load_best_model_at_end

    options = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, "callbacks": [Look()]}
    make_trainer(make_adapted(), make_rows, tmp_path, **options).train()
    assert found == {"search": False, "retrain": True}


def test_loading_a_checkpoint_keeps_what_is_trained_and_how_it_computes(make_adapted, make_rows, tmp_path):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path)
    trainer.train()
    before = {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()}
    assert not any(parameter.requires_grad for parameter in trainer.levels.magnitude.values())
    trainer._load_from_checkpoint(str(tmp_path / "search" / "checkpoint-7"))
    assert {name: parameter.requires_grad for name, parameter in trainer.model.named_parameters()} == before
    assert {type(layer.lora_variant[name]) for _, layer, name in dora_layers(trainer.model)} == {ClosedFormDoraVariant}


def test_logs_hold_both_levels(make_adapted, make_rows, tmp_path):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path)
    trainer.train()
    search = [entry for entry in trainer.log_history if entry["phase"] == "search" and "loss" in entry]
    assert {
        "upper_loss",
        "learning_rate",
        "upper_learning_rate",
        "hypergradient_norm",
        "direct_implicit_cosine",
        "seconds_per_step",
    } <= search[-1].keys()
    assert any(entry["phase"] == "retrain" for entry in trainer.log_history)


RESUME = {"eval_strategy": "epoch", "save_steps": 1, "save_total_limit": 2}


@pytest.mark.parametrize("phase", ["search", "retrain"])
@pytest.mark.parametrize("kill", range(1, 7))
@pytest.mark.parametrize("hypergradient", ["finite-difference", "one-sided"])
def test_killed_and_resumed_run_is_bit_identical(make_adapted, make_rows, tmp_path, phase, kill, hypergradient):
    changes = {**RESUME, "hypergradient": hypergradient, "save_steps": 1 + kill % 3}
    whole = make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path / "whole", **changes).train()
    with pytest.raises(Killed, match="killed"):
        make_trainer(
            make_adapted(dropout=0.1), make_rows, tmp_path / "cut", **changes, callbacks=[KillAt(phase, kill)]
        ).train()
    resumed = make_adapted(dropout=0.1)
    make_trainer(resumed, make_rows, tmp_path / "cut", **changes).train(resume_from_checkpoint=True)
    assert_identical(values(whole), values(resumed))


def test_run_is_not_begun_beside_checkpoints_of_another(make_adapted, make_rows, tmp_path):
    make_trainer(make_adapted(), make_rows, tmp_path).train()
    shutil.rmtree(tmp_path / "search")
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run"):
        make_trainer(make_adapted(), make_rows, tmp_path).train()


def test_search_is_not_resumed_beside_a_retrain_phase_of_another(make_adapted, make_rows, tmp_path):
    make_trainer(make_adapted(), make_rows, tmp_path, save_steps=2).train()
    search = tmp_path / "search" / "checkpoint-2"
    with pytest.raises(CheckpointError, match="a retrain phase that came after another search"):
        make_trainer(make_adapted(), make_rows, tmp_path, save_steps=2).train(resume_from_checkpoint=search)
    shutil.rmtree(tmp_path / "retrain")
    make_trainer(make_adapted(), make_rows, tmp_path, save_steps=2).train(resume_from_checkpoint=search)


def test_layers_keep_no_outputs_where_the_model_writes_into_them(make_adapted, make_rows, tmp_path):
    model = make_adapted()
    for _, module, _ in dora_layers(model):
        module.register_forward_hook(lambda _module, _inputs, output: output.mul_(1.0))
    make_trainer(model, make_rows, tmp_path).train()


def test_pass_is_reused_although_the_loss_does_not_reach_every_magnitude(make_adapted, make_rows, tmp_path):
    model = make_adapted()
    _, aside, _ = list(dora_layers(model))[-1]
    aside.register_forward_hook(lambda _module, _inputs, output: output.detach())
    trainer, passes = make_trainer(model, make_rows, tmp_path, hypergradient="one-sided"), []
    count, trainer.compute_loss = trainer.compute_loss, lambda *a, **k: passes.append(trainer.phase) or count(*a, **k)
    trainer.train()
    steps, upper_steps = trainer.args.max_steps, trainer.args.max_steps // trainer.args.lower_steps
    # One of them sees whether the layers may keep their outputs.
    assert passes.count("search") == 1 + steps + 2 * upper_steps


@pytest.mark.parametrize("content", [None, b"cut"])
def test_search_is_not_resumed_without_the_direction_that_it_started_from(make_adapted, make_rows, tmp_path, content):
    make_trainer(make_adapted(), make_rows, tmp_path).train()
    shutil.rmtree(tmp_path / "retrain")
    path = tmp_path / "search" / "initial_direction.safetensors"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"initial_direction.safetensors: expected the direction"):
        make_trainer(make_adapted(), make_rows, tmp_path).train(resume_from_checkpoint=True)


def test_ended_run_is_taken_over_without_a_step_more(make_adapted, make_rows, tmp_path):
    options = {"lr_scheduler_type": "constant"}  # a linear one would hide a step too many: its rate is 0
    whole = make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path, **options).train()
    resumed = make_adapted(dropout=0.1, seed=1)
    trainer = make_trainer(resumed, make_rows, tmp_path, **options)
    trainer.train(resume_from_checkpoint=True)
    assert_identical(trained_values(whole), trained_values(resumed))
    assert trainer.state.global_step == 6


def test_logs_of_the_search_outlast_a_resume_in_the_retrain_phase(make_adapted, make_rows, tmp_path):
    whole = make_trainer(make_adapted(), make_rows, tmp_path)
    whole.train()
    resumed = make_trainer(make_adapted(), make_rows, tmp_path)
    for _ in range(2):  # the second training begins a history of its own
        resumed.train(resume_from_checkpoint=tmp_path / "retrain" / "checkpoint-3")
    steps = [(entry["phase"], entry["step"]) for entry in resumed.log_history if "loss" in entry]
    assert steps == [(entry["phase"], entry["step"]) for entry in whole.log_history if "loss" in entry]
    assert {phase for phase, _ in steps} == {"search", "retrain"}


class Patience(TrainerCallback, ExportableState):
    """Stops the search at its fourth step, which it counts itself, as early stopping counts evaluations."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.count += 1
        control.should_training_stop |= Path(args.output_dir).name == "search" and self.count == 4

    def state(self) -> dict[str, Any]:
        return {"args": {"count": self.count}, "attributes": {}}


def test_resume_goes_on_with_what_a_callback_has_counted(make_adapted, make_rows, tmp_path):
    def run(folder: str, resume: bool, *callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        adapted = make_adapted(dropout=0.1)
        trainer = make_trainer(adapted, make_rows, tmp_path / folder, callbacks=[Patience(), *callbacks], save_steps=1)
        trainer.train(resume_from_checkpoint=resume)
        return values(adapted)

    with pytest.raises(Killed, match="killed"):
        run("cut", False, KillAt("search", 3))
    assert_identical(run("whole", False), run("cut", True))


def entries(trainer: BiDoRATrainer) -> list[tuple[Any, ...]]:
    """What was logged where; the runs differ in their times."""
    return [(entry["phase"], entry["step"], *sorted(entry)) for entry in trainer.log_history]


@pytest.mark.parametrize("kill", ["begin", "step"])
def test_log_of_the_search_is_whole_after_a_resume(make_adapted, make_rows, tmp_path, kill):
    class Kill(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if kill == "begin" and Path(args.output_dir).name == "retrain":
                raise Killed

    # The evaluation at the end of the last epoch comes after the last checkpoint of the search.
    options = {"max_steps": 6, "save_steps": 1, "eval_strategy": "epoch", "logging_steps": 1}
    whole = make_trainer(make_adapted(), make_rows, tmp_path / "whole", **options)
    whole.train()
    with pytest.raises(Killed, match="killed"):
        make_trainer(
            make_adapted(), make_rows, tmp_path / "cut", **options, callbacks=[Kill(), KillAt("retrain", 3)]
        ).train()
    resumed = make_trainer(make_adapted(), make_rows, tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert entries(resumed) == entries(whole)


def test_search_that_is_killed_while_it_says_that_it_ended_is_resumed(make_adapted, make_rows, tmp_path, monkeypatch):
    write_text = Path.write_text

    def killed(path: Path, text: str, **options: Any) -> int:
        if path.name.startswith("ended."):
            write_text(path, "", **options)
            raise Killed
        return write_text(path, text, **options)

    def run(folder: str, resume: bool = False) -> dict[str, torch.Tensor]:
        adapted = make_adapted(dropout=0.1)
        make_trainer(adapted, make_rows, tmp_path / folder).train(resume_from_checkpoint=resume)
        return values(adapted)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(Killed, match="killed"):
            run("cut")
    assert_identical(run("whole"), run("cut", resume=True))


class StopSearchAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop |= Path(args.output_dir).name == "search" and state.global_step == self.step


@pytest.mark.parametrize("kill", [1, 4])
def test_search_that_was_stopped_early_stays_ended(make_adapted, make_rows, tmp_path, kill):
    def run(folder: str, resume: bool, *callbacks: TrainerCallback) -> dict[str, torch.Tensor]:
        adapted = make_adapted(dropout=0.1)
        trainer = make_trainer(
            adapted, make_rows, tmp_path / folder, callbacks=[StopSearchAt(4), *callbacks], lr_scheduler_type="constant"
        )
        trainer.train(resume_from_checkpoint=resume)
        return values(adapted)

    whole = run("whole", False)
    with pytest.raises(Killed, match="killed"):
        run("cut", False, KillAt("retrain", kill))
    assert (tmp_path / "cut" / "search" / "checkpoint-4").is_dir()
    assert_identical(whole, run("cut", True))


def test_search_that_was_killed_while_it_saved_its_last_checkpoint_saves_it_again(make_adapted, make_rows, tmp_path):
    def trainer() -> BiDoRATrainer:
        return make_trainer(make_adapted(), make_rows, tmp_path, callbacks=[StopSearchAt(4)])

    trainer().train()
    last = tmp_path / "search" / "checkpoint-4"
    for path in (tmp_path / "retrain", last.parent / "ended.json", last / "trainer_state.json"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    trainer().train(resume_from_checkpoint=True)
    assert (last / "trainer_state.json").is_file()


def test_corrupt_checkpoint_is_named_and_the_one_before_it_used(make_adapted, make_rows, tmp_path, caplog):
    whole = make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path / "run").train()
    last = tmp_path / "run" / "retrain" / "checkpoint-6"
    path = last / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    resumed = make_adapted(dropout=0.1)
    make_trainer(resumed, make_rows, tmp_path / "run").train(resume_from_checkpoint=True)
    assert str(path) in caplog.text
    assert "checkpoint-3" in caplog.text
    assert_identical(values(whole), values(resumed))


def test_incomplete_checkpoint_is_passed_over(make_adapted, make_rows, tmp_path, caplog):
    whole = make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path / "run").train()
    shutil.rmtree(tmp_path / "run" / "retrain")
    (tmp_path / "run" / "search" / "checkpoint-7" / "trainer_state.json").unlink()
    resumed = make_adapted(dropout=0.1)
    make_trainer(resumed, make_rows, tmp_path / "run").train(resume_from_checkpoint=True)
    assert "checkpoint-7 is incomplete" in caplog.text
    assert_identical(values(whole), values(resumed))


@pytest.mark.parametrize("hypergradient", ["finite-difference", "one-sided", "exact", "first-order", "pbgd-free"])
def test_accumulated_quarter_batches_equal_the_whole_batch(make_adapted, make_rows, tmp_path, hypergradient):
    models = []
    for size, accumulation in ((8, 1), (2, 4)):
        adapted = make_adapted().double()
        trainer = make_trainer(
            adapted,
            make_rows,
            tmp_path / str(size),
            hypergradient=hypergradient,
            lower_steps=1,
            max_steps=3,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            retrain_max_steps=2,
            optim="sgd",
            adam_epsilon=1e-3,
        )
        trainer.train_dataset, trainer.upper_dataset = make_rows(8, seed=1), make_rows(8, seed=2)
        trainer.train()
        models.append(values(adapted))
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-7, atol=1e-9)  # float64 sums in another order


def test_loss_that_is_not_finite_ends_the_training(make_adapted, make_rows, tmp_path):
    adapted = make_adapted()
    trainer = make_trainer(adapted, make_rows, tmp_path, learning_rate=1e30, max_grad_norm=0.0, lower_steps=100)
    with pytest.raises(NonFiniteError, match=r"step \d+ in .*search: the training loss is nan"):
        trainer.train()


@pytest.mark.parametrize(("settled", "steps"), [(1.0, 10), (1e-9, 25), (None, 25)])
def test_search_ends_once_the_magnitudes_have_settled(make_adapted, make_rows, tmp_path, settled, steps):
    trainer = make_trainer(make_adapted(), make_rows, tmp_path, max_steps=25, lower_steps=1, settled=settled)
    trainer.train()
    searched = [entry for entry in trainer.log_history if entry["phase"] == "search"]
    assert max(entry["step"] for entry in searched) == steps
    assert max(entry["step"] for entry in trainer.log_history if entry["phase"] == "retrain") == 6
    told = [entry["magnitude_straightness"] for entry in searched if "magnitude_straightness" in entry]
    assert told
    assert all(0 < each < 1 for each in told)


@pytest.mark.parametrize(("phase", "step"), [("search", 4), ("search", 8), ("retrain", 2)])
def test_search_that_settles_is_resumed_bit_for_bit(make_adapted, make_rows, tmp_path, phase, step):
    changes = {"max_steps": 25, "lower_steps": 1, "settled": 1.0}
    whole, resumed = make_adapted(dropout=0.1), make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path / "whole", **changes).train()
    with pytest.raises(Killed, match="killed"):
        make_trainer(
            make_adapted(dropout=0.1), make_rows, tmp_path / "killed", callbacks=[KillAt(phase, step)], **changes
        ).train()
    make_trainer(resumed, make_rows, tmp_path / "killed", **changes).train(resume_from_checkpoint=True)
    assert_identical(trained_values(whole), trained_values(resumed))


def test_each_search_step_draws_rows_of_large_layers_anew(make_adapted, make_rows, tmp_path, monkeypatch):
    asked = []

    class Recorder:
        def __init__(self, model: Any) -> None:
            pass

        def add_gradient(self, weight: float, step: int) -> None:
            asked.append((weight, step))

    monkeypatch.setattr(bilevel_mixin, "OrthogonalityRegularizer", Recorder)
    make_trainer(make_adapted(), make_rows, tmp_path, orthogonality=0.5).train()
    assert asked == [(0.5, step) for step in range(7)]


def test_kill_between_the_last_checkpoint_of_a_settled_search_and_its_end_is_resumed_exactly(
    make_adapted, make_rows, tmp_path, monkeypatch
):
    changes = {"max_steps": 25, "lower_steps": 1, "settled": 1.0, "save_steps": 5}  # it settles at step 10
    whole, resumed = make_adapted(dropout=0.1), make_adapted(dropout=0.1)
    make_trainer(whole, make_rows, tmp_path / "whole", **changes).train()

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(trainer_module, "_write_ended", killed)
        with pytest.raises(Killed, match="killed"):
            make_trainer(make_adapted(dropout=0.1), make_rows, tmp_path / "killed", **changes).train()
    trainer = make_trainer(resumed, make_rows, tmp_path / "killed", **changes)
    trainer.train(resume_from_checkpoint=True)
    assert max(entry["step"] for entry in trainer.log_history if entry["phase"] == "search") == 10
    assert_identical(trained_values(whole), trained_values(resumed))


def test_phase_that_a_callback_ended_is_not_trained_further_on_resume(make_adapted, make_rows, tmp_path):
    class StopAt3(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if Path(args.output_dir).name == "retrain" and state.global_step == 3:
                control.should_training_stop = control.should_save = True

    whole, resumed = make_adapted(), make_adapted()
    make_trainer(whole, make_rows, tmp_path, callbacks=[StopAt3()]).train()
    trainer = make_trainer(resumed, make_rows, tmp_path, callbacks=[StopAt3()])
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 3
    assert_identical(trained_values(whole), trained_values(resumed))


def test_upper_state_of_another_version_is_told(make_adapted, make_rows, tmp_path):
    with pytest.raises(Killed, match="killed"):
        make_trainer(make_adapted(), make_rows, tmp_path, callbacks=[KillAt("search", 4)]).train()
    path = tmp_path / "search/checkpoint-3/upper_level.pt"
    state = torch.load(path, weights_only=True)
    torch.save({name: value for name, value in state.items() if name != "straightness"}, path)
    with pytest.raises(CheckpointError, match="has no 'straightness': another version"):
        make_trainer(make_adapted(), make_rows, tmp_path).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(("dtype", "expected"), [(torch.float32, False), (torch.bfloat16, True)])
def test_estimator_is_that_of_what_the_model_computes_in(
    make_adapted, make_rows, tmp_path, monkeypatch, dtype, expected
):
    asked = []
    original = bilevel_mixin.estimator_of

    def spy(*args: Any, bfloat16: bool) -> Any:
        asked.append(bfloat16)
        return original(*args, bfloat16=bfloat16)

    monkeypatch.setattr(bilevel_mixin, "estimator_of", spy)
    make_trainer(make_adapted().to(dtype), make_rows, tmp_path, max_steps=2).train()
    assert asked == [expected]
