"""Work for processes of tests, found by its name in a new interpreter."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from peft_bidora.errors import DataError


def report(tell: Any, path: Path, text: str) -> None:
    tell("train", 1, 2, [0.5])
    path.write_text(text, encoding="utf-8")
    sys.stdout.write("as the well one says\n")


def refuse(tell: Any) -> None:
    raise DataError("one is wrong", "two is wrong")


def stumble(tell: Any) -> None:
    raise ZeroDivisionError("of a library")


def die(tell: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(tell: Any, path: Path) -> None:
    path.write_text(str(os.getpid()), encoding="utf-8")
    time.sleep(300)
