"""Tiny folders in the layout of GLUE's official download, written on the spot."""

from pathlib import Path

MNLI = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse"
PAIR = "index\tsentence1\tsentence2"
MSR = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String"
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2"
# A quote that is never closed, as the official files have them: they are not quoted.
QUOTE = 'He said "yes'


def write_glue(root: Path, name: str, rows: int = 40) -> Path:
    """Write the folder of a task, with both of its classes in turn (or all three, or numbers), and return it."""
    folder = root / name
    folder.mkdir(parents=True)
    for file, lines in _files(name, rows).items():
        (folder / file).write_bytes("".join(f"{line}\n" for line in lines).encode())
    return folder


def _files(name: str, rows: int) -> dict[str, list[str]]:
    def text(part: str, n: int) -> str:
        return f"{QUOTE} in {part} row {n}"

    def lines(part: str, line: str, count: int, classes: tuple[str, ...] = ("0", "1")) -> list[str]:
        return [
            line.format(n=n, a=text(part, n), b=f"{text(part, n)} again", y=classes[n % len(classes)])
            for n in range(count)
        ]

    def plain(header: str, line: str, classes: tuple[str, ...] = ("0", "1")) -> dict[str, list[str]]:
        """Write train, dev and a test file that lacks the label, which is the last column."""
        test_header, test_line = header.rsplit("\t", 1)[0], line.rsplit("\t", 1)[0]
        return {
            "train.tsv": [header, *lines("train", line, rows, classes)],
            "dev.tsv": [header, *lines("dev", line, 6, classes)],
            "test.tsv": [test_header, *lines("test", test_line, 5)],
        }

    entailment = ("entailment", "not_entailment")
    if name == "CoLA":
        return {
            "train.tsv": lines("train", "gj04\t{y}\t*\t{a}", rows),
            "dev.tsv": lines("dev", "gj04\t{y}\t\t{a}", 6),
            "test.tsv": ["index\tsentence", *lines("test", "{n}\t{a}", 5)],
        }
    if name == "SST-2":
        files = plain("sentence\tlabel", "{a}\t{y}")
        return {**files, "test.tsv": ["index\tsentence", *lines("test", "{n}\t{a}", 5)]}
    if name == "MRPC":
        line = "{y}\t{n}\t1{n}\t{a}\t{b}"
        train, dev = lines("train", line, rows), lines("dev", line, 6)
        return {
            "train.tsv": [MSR, *train],
            "dev.tsv": [MSR, *dev],
            "test.tsv": [MSR.replace("Quality", "index"), *lines("test", "{n}\t{n}\t1{n}\t{a}\t{b}", 5)],
            "dev_ids.tsv": ["1\t2"],
            "msr_paraphrase_train.txt": ["\ufeff" + MSR + "\r", *(f"{row}\r" for row in (*train, *dev))],
            "msr_paraphrase_test.txt": ["\ufeff" + MSR + "\r", *(f"{row}\r" for row in lines("test", line, 5))],
        }
    if name == "QQP":
        files = plain("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "{n}\t1{n}\t2{n}\t{a}\t{b}\t{y}")
        files["train.tsv"].insert(3, "99\t199\t299\ta question that is cut")
        return {**files, "test.tsv": ["id\tquestion1\tquestion2", *lines("test", "{n}\t{a}\t{b}", 5)]}
    if name == "STS-B":
        line = "{n}\tnews\tf\t2012\t1\tnone\tnone\t{a}\t{b}\t{y}"
        return plain(f"{STSB}\tscore", line, ("5.000", "3.800", "0.250"))
    if name == "MNLI":
        start, tail = MNLI.replace(" ", "\t") + "\tsentence1\tsentence2", ("entailment", "neutral", "contradiction")
        line = "{n}\t1\t1n\tfiction\t( a )\t( b )\t(S a)\t(S b)\t{a}\t{b}"
        train, dev = f"{start}\tlabel1\tgold_label", f"{start}\tlabel1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
        kinds = ("matched", "mismatched")
        return {
            "train.tsv": [train, *lines("train", f"{line}\t{{y}}\t{{y}}", rows, tail)],
            **{f"dev_{kind}.tsv": [dev, *lines(kind, line + "\t{y}" * 6, 6, tail)] for kind in kinds},
            **{f"test_{kind}.tsv": [start, *lines(f"test {kind}", line, 5)] for kind in kinds},
        }
    if name == "QNLI":
        return plain("index\tquestion\tsentence\tlabel", "{n}\t{a}\t{b}\t{y}", entailment)
    if name == "WNLI":
        return plain(f"{PAIR}\tlabel", "{n}\t{a}\t{b}\t{y}")
    return plain(f"{PAIR}\tlabel", "{n}\t{a}\t{b}\t{y}", entailment)
