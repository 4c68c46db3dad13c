"""Generated texts of a batch: equal to those of its rows alone, ended, cut off the prompt, drawn by seed."""

from typing import Any

import pytest
import torch

from peft_bidora.tasks.completions import IGNORED, pad_right
from peft_bidora.tasks.generating import Generated, generate, reference_nats

PROMPTS = ["say fox", "now the red fox runs and the cat sits say", "say cat now"]
ANSWERS = ["fox", "cat runs", "red"]
SETTINGS: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}
ARCHITECTURES = ["gpt2", "t5", "bart"]


def batch(tokenizer: Any, causal: bool, rows: list[int], labels: bool = True) -> dict[str, torch.Tensor]:
    made = []
    for row in rows:
        prompt, answer = (tokenizer(texts[row])["input_ids"] for texts in (PROMPTS, ANSWERS))
        answer.append(tokenizer.eos_token_id)
        ids = prompt + answer if causal and labels else prompt
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
        if labels:
            made[-1]["labels"] = [IGNORED] * len(prompt) + answer if causal else answer
    return pad_right(tokenizer)(made)


@pytest.fixture(params=ARCHITECTURES)
def written(request, make_tokenizer, make_language_model):
    """What a model writes for some of the rows."""
    model, tokenizer, causal = make_language_model(request.param).eval(), make_tokenizer(), request.param == "gpt2"

    def write(rows: list[int], labels: bool = True, seed: int = 0, **settings: Any) -> list[Generated]:
        inputs = batch(tokenizer, causal, rows, labels)
        return generate(model, inputs, tokenizer, causal=causal, settings={**SETTINGS, **settings}, seed=seed)

    write.model, write.tokenizer, write.causal = model, tokenizer, causal  # type: ignore[attr-defined]
    return write


def test_batch_writes_what_its_rows_write_alone(written) -> None:
    together = written([0, 1, 2])
    for row, generated in enumerate(together):
        (alone,) = written([row])
        assert generated.text == alone.text
        assert generated.ended == alone.ended
        assert generated.nats == pytest.approx(alone.nats, rel=1e-5)  # float32 sums of another shape
        assert generated.tokens == alone.tokens
    assert len({generated.text for generated in together}) > 1


def test_references_change_nothing_that_is_written(written) -> None:
    assert [each.text for each in written([0, 1, 2])] == [each.text for each in written([0, 1, 2], labels=False)]


def test_rows_without_references_have_no_probability(written) -> None:
    assert {(each.nats, each.tokens) for each in written([0, 1], labels=False)} == {(None, 0)}


def test_nats_are_the_loss_of_the_model_times_the_tokens(written) -> None:
    for row in range(3):
        inputs = batch(written.tokenizer, written.causal, [row])
        with torch.no_grad():
            loss = written.model(**inputs).loss.item()
        ((nats, tokens),) = reference_nats(written.model, inputs, causal=written.causal)
        assert tokens == len(written.tokenizer(ANSWERS[row])["input_ids"]) + 1
        assert nats / tokens == pytest.approx(loss, rel=1e-5)  # float32


def test_text_without_its_end_is_cut_by_max_new_tokens(written) -> None:
    suppressed = written([0, 1, 2], suppress_tokens=[0])
    assert not any(each.ended for each in suppressed)
    forced = written([0, 1, 2], forced_eos_token_id=0)
    assert all(each.ended for each in forced)


def test_text_is_what_follows_the_prompt(written) -> None:
    for row, each in enumerate(written([0, 1, 2], repetition_penalty=1.3)):
        ids = torch.tensor([written.tokenizer(PROMPTS[row])["input_ids"]])
        whole = written.model.generate(ids, **SETTINGS, repetition_penalty=1.3)[0].tolist()
        new = whole[ids.shape[1] :] if written.causal else whole[1:]
        assert each.text == written.tokenizer.decode([token for token in new if token > 2]).strip()


def test_sampling_is_decided_by_the_seed_and_leaves_the_generators_alone(written) -> None:
    state = torch.get_rng_state()
    drawn = [
        [each.text for each in written([0, 1, 2], seed=seed, do_sample=True, temperature=9.0)] for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_draw_apart(written) -> None:
    uniform = {"do_sample": True, "temperature": 1e6, "top_k": 0}  # the prompt decides nothing but the draws
    assert written([0], **uniform)[0].text != written([2], **uniform)[0].text


def test_tokens_that_end_the_texts_of_the_model_end_them_too(written) -> None:
    (plain,) = written([0], suppress_tokens=[0])
    assert plain.text
    assert not plain.ended
    written.model.generation_config.eos_token_id = list(range(3, 300))
    (ended,) = written([0], suppress_tokens=[0])
    assert ended.ended
