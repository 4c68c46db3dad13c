"""Protein sequences in the place of texts: when they are expected, and what a tokenizer makes of them."""

from dataclasses import replace
from typing import Any

from peft_bidora.data.columns import Layout
from peft_bidora.data.examples import Examples
from peft_bidora.data.residues import NUCLEOTIDES, STANDARD, read_residues
from peft_bidora.data.wording import listed, rows_have
from peft_bidora.tasks.task import TaskOptions

SEQUENCE_NAMES = ("sequence", "sequences", "protein", "protein_sequence", "peptide", "seq")
PAIR_NAMES = (("sequence1", "sequence2"), ("protein1", "protein2"), ("sequence_a", "sequence_b"))
LOOKED_AT = 100  # rows
SHOWN_RESIDUES, SHOWN_PIECES = 20, 6
# Shorter words in capitals may be anything.
MEAN_RESIDUES = 8


def is_protein(options: TaskOptions, tokenizer: Any) -> bool:
    """Return whether the texts are protein sequences: as the user says, else where the tokenizer is one of ESM."""
    if options.sequences is not None:
        return options.sequences == "protein"
    return type(tokenizer).__name__.startswith("Esm")


def sequence_layout(layout: Layout, options: TaskOptions, tokenizer: Any) -> Layout:
    """Return the layout, its texts read as protein sequences where they are expected to be."""
    if not is_protein(options, tokenizer):
        return layout
    return replace(
        layout, text=read_residues, text_names=SEQUENCE_NAMES, pair_names=PAIR_NAMES, wanted="a sequence of residues"
    )


def sequence_notes(options: TaskOptions, tokenizer: Any, train: Examples) -> list[str]:
    """Return what a tokenizer loses of protein sequences: the single residues, or those that it does not know."""
    expected = is_protein(options, tokenizer)
    if tokenizer is None or not (expected or (options.sequences is None and _looks_like_protein(train))):
        return []
    seen = [_standard(text) for texts in train.texts[:LOOKED_AT] for text in texts]
    residues = sum(len(_letters(text)) for text in seen)
    pieces = sum(len(tokenizer.tokenize(text)) for text in seen)
    if residues == pieces:
        return _unknown_notes(tokenizer, train)
    first = seen[0][:SHOWN_RESIDUES]
    shown = tokenizer.tokenize(first)
    more = ", …" if len(shown) > SHOWN_PIECES else ""
    remedy = "" if expected else " If they are no proteins, set data.sequences=text."
    return [
        f"{train.source} holds protein sequences, and the model's tokenizer is one of text: it reads the {residues:,}"
        f" residues of the first {len(seen)} as {pieces:,} pieces, such as {first!r} as"
        f" {', '.join(shown[:SHOWN_PIECES])}{more}. The single residues and their places are lost in them. A model of"
        f" proteins, such as ESM-2, reads a residue a token.{remedy}"
    ]


def _unknown_notes(tokenizer: Any, train: Examples) -> list[str]:
    letters = sorted({letter for texts in train.texts for text in texts for letter in _letters(text)})
    unknown = [letter for letter in letters if _is_unknown(tokenizer, letter)]
    if not unknown:
        return []
    rows = sum(any(letter in text for text in texts for letter in unknown) for texts in train.texts)
    return [
        f"{train.source}: {rows_have(rows)} residues that the model's tokenizer does not know: {listed(unknown)}; each"
        " run of them is read as one unknown residue."
    ]


def _is_unknown(tokenizer: Any, letter: str) -> bool:
    return tokenizer.unk_token_id in tokenizer.convert_tokens_to_ids(tokenizer.tokenize(letter))


def _standard(text: str) -> str:
    """Leave out the rare residues: a tokenizer of proteins may lack them, and makes one piece of a run of those."""
    return "".join(letter for letter in text if letter in STANDARD or letter.isspace())


def _letters(text: str) -> str:
    return "".join(text.split())


def _looks_like_protein(train: Examples) -> bool:
    texts = [text for row in train.texts for text in row]
    letters = set().union(*texts)
    long_enough = sum(map(len, texts)) >= MEAN_RESIDUES * len(texts)
    return long_enough and letters <= set(STANDARD + "X") and not letters <= NUCLEOTIDES
