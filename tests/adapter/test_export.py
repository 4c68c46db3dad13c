"""The saved adapter is PEFT's, needs nothing of this package, and merges to the same logits (contract 10)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES, attach, make_batch, make_model
from peft import PeftModel
from safetensors import safe_open

from peft_bidora.adapter.attach import AdapterOptions, attach_adapter
from peft_bidora.adapter.export import convert_to_lora, load_adapter, merge_adapter, save_adapter
from peft_bidora.adapter.layer import ClosedFormDoraVariant, dora_layers
from peft_bidora.adapter.parameters import split_levels
from peft_bidora.errors import AdapterError

READER = """
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from peft import PeftModel

assert find_spec("peft_bidora") is None
for folder in Path(sys.argv[1]).iterdir():
    config = transformers.AutoConfig.from_pretrained(folder / "base")
    base = getattr(transformers, config.architectures[0]).from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(base, folder / "adapter").eval()
    with torch.no_grad():
        torch.save(model(**torch.load(folder / "batch.pt")).logits, folder / "logits.pt")
"""


def ids() -> torch.Tensor:
    return torch.randint(1, 40, (5, 6), generator=torch.Generator().manual_seed(0))


def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(ids()).logits


def move(model):
    """Change every part of an adapter."""
    levels = split_levels(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in levels.magnitude.values():
            parameter.mul_(1 + torch.rand_like(parameter))
        for parameter in levels.direction.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture
def trained(make_adapted):
    return move(make_adapted())


def base_of(model, make_adapted):
    """The same base model, fresh."""
    other = make_adapted()
    return other.unload()


def link_installed_packages(folder):
    """Fill a folder with links to every installed package but this one; an editable install is not among them."""
    folder.mkdir()
    for path in map(Path, sys.path):
        if path.name in ("site-packages", "dist-packages"):
            for entry in path.iterdir():
                if "bidora" not in entry.name and not (folder / entry.name).exists():
                    (folder / entry.name).symlink_to(entry)


@torch.no_grad()
def test_saved_adapters_predict_the_same_where_this_package_is_not_installed(tmp_path):
    expected = {}
    for family in FAMILIES:
        folder = tmp_path / "saved" / family
        base = make_model(family)
        base.save_pretrained(folder / "base")
        adapted = move(attach(base, "all-linear"))
        save_adapter(adapted, folder / "adapter")
        torch.save(make_batch(family), folder / "batch.pt")
        expected[family] = adapted(**make_batch(family)).logits
    link_installed_packages(tmp_path / "packages")
    # -S: nothing is importable but the standard library and the links.
    done = subprocess.run(
        [sys.executable, "-S", "-c", READER, str(tmp_path / "saved")],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages")}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for family, logits in expected.items():
        # Contract 10: float32, closed form against built weight.
        found = torch.load(tmp_path / "saved" / family / "logits.pt")
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5, msg=lambda text, f=family: f"{f}: {text}")


def test_folder_is_pefts_own(trained, tmp_path):
    save_adapter(trained, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["use_dora"] is True
    assert config["task_type"] == "SEQ_CLS"
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        keys = list(file.keys())
    assert sum(key.endswith(".lora_magnitude_vector") for key in keys) == 4
    assert any("classifier" in key for key in keys)
    # A and B of four layers, m of four, weight and bias of the head: no base weight.
    assert len(keys) == 14


@torch.no_grad()
@pytest.mark.parametrize("is_trainable", [True, False])
def test_loaded_adapter_computes_in_closed_form_what_was_saved(trained, make_adapted, tmp_path, is_trainable):
    save_adapter(trained, tmp_path)
    loaded = load_adapter(tmp_path, base_of(trained, make_adapted), is_trainable=is_trainable).eval()
    # The same arithmetic on the same bits.
    assert torch.equal(logits(loaded), logits(trained))
    assert all(type(module.lora_variant[name]) is ClosedFormDoraVariant for _, module, name in dora_layers(loaded))
    assert any(parameter.requires_grad for parameter in loaded.parameters()) is is_trainable


def test_folder_without_an_adapter_is_an_error(trained, tmp_path):
    with pytest.raises(AdapterError, match=r"holds no adapter: expected adapter_config\.json there"):
        load_adapter(tmp_path, trained)


@torch.no_grad()
def test_merged_model_predicts_the_same_and_has_no_adapter(make_adapted):
    trained = move(make_adapted(dropout=0.5))
    expected = logits(trained)
    merged = merge_adapter(trained.train(), logits, tolerance=1e-4)
    assert not isinstance(merged, PeftModel)
    assert not [name for name, _ in merged.named_parameters() if "lora" in name or "modules_to_save" in name]
    # Float32: the weight is built and rounded once.
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)


def test_merging_beyond_the_tolerance_is_refused(trained):
    with pytest.raises(AdapterError, match=r"merging changed the logits by up to \d\S*, more than the tolerance of -1"):
        merge_adapter(trained, logits, tolerance=-1.0)


@pytest.mark.parametrize("value", [0.5, -0.5, float("nan")], ids=["more", "less", "not a number"])
def test_merging_that_yields_other_weights_is_refused(trained, monkeypatch, value):
    merge = trained.merge_and_unload

    def tampered(safe_merge):
        assert safe_merge
        merged = merge(safe_merge=safe_merge)
        with torch.no_grad():
            merged.classifier.bias[0].add_(value)
        return merged

    monkeypatch.setattr(trained, "merge_and_unload", tampered)
    with pytest.raises(AdapterError, match=r"merging changed the logits by up to (0\.5|nan), more than .* 0\.0001"):
        merge_adapter(trained, logits, tolerance=1e-4)


def lora_of(trained, make_adapted, rank):
    base = base_of(trained, make_adapted)
    return attach_adapter(
        base, AdapterOptions(rank, 3 * rank), use_dora=False, task_type="SEQ_CLS", head=["classifier"]
    )


@torch.no_grad()
def test_lora_of_full_rank_predicts_what_dora_does(trained, make_adapted):
    lora = lora_of(trained, make_adapted, 16).eval()
    errors = convert_to_lora(trained, lora)
    assert len(errors) == 4
    # Float32: a decomposition of 16 terms.
    assert max(errors.values()) < 1e-6
    torch.testing.assert_close(logits(lora), logits(trained), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_lora_of_low_rank_says_what_it_misses(trained, make_adapted):
    errors = [max(convert_to_lora(trained, lora_of(trained, make_adapted, rank)).values()) for rank in (2, 8)]
    assert errors[0] > errors[1] > 1e-3


@torch.no_grad()
def test_magnitudes_are_part_of_the_lora_change(trained, make_adapted):
    levels = split_levels(trained)
    for name, parameter in levels.direction.items():
        if "lora_B" in name:
            parameter.zero_()  # nothing but magnitudes and head has changed
    lora = lora_of(trained, make_adapted, 16).eval()
    convert_to_lora(trained, lora)
    torch.testing.assert_close(logits(lora), logits(trained), rtol=1e-4, atol=1e-4)


def test_lora_rank_beyond_the_weight_is_refused(trained, make_adapted):
    with pytest.raises(AdapterError, match=r"rank=17: .* has the shape \(16, 16\)"):
        convert_to_lora(trained, lora_of(trained, make_adapted, 17))


def test_adapter_without_magnitudes_is_no_source_of_a_lora(trained, make_adapted):
    lora = lora_of(trained, make_adapted, 2)
    with pytest.raises(AdapterError, match="expected a DoRA adapter"):
        convert_to_lora(lora, lora)
