"""Read a protein sequence: a letter a residue, in the one-letter code of IUPAC and IUBMB."""

from peft_bidora.data.faults import Fault
from peft_bidora.data.fields import read_text

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
# X any; B aspartate or asparagine; Z glutamate or glutamine; J leucine or isoleucine; U selenocysteine; O pyrrolysine
RESIDUES = frozenset(STANDARD + "XBZJUO")
NUCLEOTIDES = frozenset("ACGTUN")  # all of them letters of residues too


def read_residues(value: object, column: str) -> str | Fault:
    """Return a protein sequence as it stands in the file.

    White space between residues is kept: the tokenizers of ESM pass over it, and those that read words, such as
    ProtBERT's, need it. Lower case is refused: those tokenizers know upper case alone, and in some files it marks
    positions, which must not be lost unseen.
    """
    text = read_text(value, column)
    if isinstance(text, Fault):
        return text
    strange = {letter for letter in text if letter not in RESIDUES and not letter.isspace()}
    if not strange:
        return text
    if all(letter.upper() in RESIDUES for letter in strange):
        return Fault(
            f"residues in lower case in {column!r}",
            "a tokenizer of proteins knows upper case alone. Write them in upper case.",
            tuple(strange),
        )
    return Fault(
        f"characters that are no residue in {column!r}",
        f"a protein sequence has the letters {STANDARD}, or X, B, Z, J, U and O. Remove gaps, stops and headers; if"
        " this is no protein, set data.sequences=text.",
        tuple(strange),
    )
