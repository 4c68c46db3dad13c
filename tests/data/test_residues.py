"""Protein sequences: the letters of residues, and nothing else."""

import pytest

from peft_bidora.data.faults import Fault
from peft_bidora.data.residues import read_residues


@pytest.mark.parametrize("sequence", ["ACDEFGHIKLMNPQRSTVWY", "MXBZJUO", "M K V", "MKV\nLLA\n", "M"])
def test_a_sequence_is_read_as_it_stands(sequence: str) -> None:
    assert read_residues(sequence, "sequence") == sequence


@pytest.mark.parametrize(
    ("value", "what", "found"),
    [
        ("MKVaK", "residues in lower case in 'sequence'", "a"),
        ("mk-v", "characters that are no residue in 'sequence'", "-kmv"),
        ("MKV*", "characters that are no residue in 'sequence'", "*"),
        (">sp|P1\nMKV", "characters that are no residue in 'sequence'", "1>ps|"),
        ("MÄK", "characters that are no residue in 'sequence'", "Ä"),
        ("", "an empty text in 'sequence'", ""),
        (3, "a number in 'sequence'", ""),
    ],
)
def test_other_letters_are_named(value: object, what: str, found: str) -> None:
    fault = read_residues(value, "sequence")
    assert isinstance(fault, Fault)
    assert (fault.what, "".join(sorted(fault.found))) == (what, found)
