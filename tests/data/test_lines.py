import io

import pytest

from peft_bidora.data.lines import decode, text_lines
from peft_bidora.errors import DataError


def lines(data: bytes, newline: str = "\n") -> list[str]:
    return list(text_lines("a.txt", io.BytesIO(data), newline))  # type: ignore[arg-type]


def test_lines_keep_their_ends_and_break_at_newlines_alone() -> None:
    assert lines("a\u2028b\r\nc\rd\n\ne".encode()) == ["a\u2028b\r\n", "c\rd\n", "\n", "e"]


def test_carriage_returns_break_lines_where_that_is_wanted() -> None:
    assert lines(b"a\r\nb\rc\nd", newline="") == ["a\r\n", "b\r", "c\n", "d"]


def test_byte_order_mark_is_dropped_at_the_start_alone() -> None:
    mark = "\ufeff"
    assert lines(f"{mark}a\n{mark}b\n".encode()) == ["a\n", f"{mark}b\n"]
    assert lines(f"{mark}a\r{mark}b".encode(), newline="") == ["a\r", f"{mark}b"]


def test_blank_lines_before_the_first_word_are_lines() -> None:
    assert lines(b"\n  \na\n") == ["\n", "  \n", "a\n"]


@pytest.mark.parametrize("data", [b"", b"\n", b" \t\r\n\x0b\x0c\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \n"])
def test_nothing_but_blanks_is_empty(data: bytes) -> None:
    with pytest.raises(DataError, match=r"a\.txt is empty; expected column names and at least one row"):
        lines(data)


@pytest.mark.parametrize("newline", ["\n", ""])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a mark"])
@pytest.mark.parametrize("filling", ["x", "ä", "漢", "𝄞"])
def test_strange_byte_is_named_with_its_line_and_offset(newline: str, start: bytes, filling: str) -> None:
    # Longer than what is decoded at a time, so that the place is right across its borders.
    good = start + (filling * 700 + "\n").encode() * 30
    with pytest.raises(DataError, match=rf"a\.txt, line 31: byte 0xe9 at offset {len(good) + 3} is not UTF-8"):
        lines(good + b"caf\xe9\n", newline)


@pytest.mark.parametrize("data", [b"a\xed\xa0\x80", b"a\xc3", b"a\xff", b"a\xc3\nb", b"a\xf4\x90\x80\x80"])
def test_place_of_a_strange_byte_is_that_of_the_strict_decoder(data: bytes) -> None:
    with pytest.raises(UnicodeDecodeError) as expected:
        data.decode()
    at = expected.value.start
    with pytest.raises(DataError, match=f"line 1: byte 0x{data[at]:02x} at offset {at} is not UTF-8"):
        lines(data)


def test_nul_byte_is_named_with_its_line() -> None:
    with pytest.raises(DataError, match=r"a\.txt, line 2: a NUL byte"):
        lines(b"a\nb\0\n")


def test_lines_before_a_fault_have_been_given() -> None:
    given = text_lines("a.txt", io.BytesIO(b"a\nb\n\xff\n"))
    assert [next(given), next(given)] == ["a\n", "b\n"]
    with pytest.raises(DataError, match="line 3"):
        next(given)


def test_stream_stays_open() -> None:
    stream = io.BytesIO(b"a\nb\n")
    next(text_lines("a.txt", stream))
    assert not stream.closed


def test_end_that_the_system_sets_is_an_error_of_ours() -> None:
    class Broken(io.RawIOBase):
        given = b"a\n" * 10

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            if not self.given:
                raise OSError(5, "Input/output error")
            count = len(self.given)
            buffer[:count], self.given = self.given, b""
            return count

    with pytest.raises(DataError, match=r"a\.txt, line 11: the system gives no more \(Input/output error\)"):
        list(text_lines("a.txt", io.BufferedReader(Broken())))


def test_decode_joins_the_lines() -> None:
    assert decode("a.txt", b"\xef\xbb\xbf\na\r\nb") == "\na\r\nb"
