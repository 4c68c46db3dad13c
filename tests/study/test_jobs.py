"""Processes that train: what they tell, how they fail, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import job_works as works

from peft_bidora.errors import DataError
from peft_bidora.study.jobs import Job, run_jobs


def test_failed_job_leaves_the_others_alone_and_is_told_with_its_faults(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    jobs = [
        Job("wrong", works.refuse, (), log, tmp_path / "x"),
        Job("killed", works.die, (), log, tmp_path / "x"),
        Job("stumbles", works.stumble, (), log, tmp_path / "x"),
        Job("well", works.report, (tmp_path / "well.txt", "done"), log, tmp_path / "x"),
    ]
    told: list[tuple[Any, ...]] = []
    failed = run_jobs(jobs, 2, lambda *event: told.append(event))

    assert (tmp_path / "well.txt").read_text() == "done"
    assert failed.keys() == {"wrong", "killed", "stumbles"}
    assert isinstance(failed["wrong"], DataError)
    assert failed["wrong"].faults == ("wrong: one is wrong", "wrong: two is wrong")
    assert f"killed: its process was ended by the signal 9; what it said is in {log}" in str(failed["killed"])
    assert "as the well one says" in log.read_text()
    assert "stumbles: ZeroDivisionError: of a library" in str(failed["stumbles"])
    assert ("well", "train", 1, 2, [0.5]) in told
    assert ("well", "done", 1, 1, []) in told
    assert ("wrong", "failed", 1, 1, []) in told


def test_process_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    pid_file, here = tmp_path / "pid", Path(works.__file__)
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    job = f"Job('waits', works.wait, (Path({str(pid_file)!r}),), Path({str(tmp_path / 'log')!r}), Path())"
    code = (
        "import job_works as works; from pathlib import Path; from peft_bidora.study.jobs import Job, run_jobs\n"
        f"run_jobs([{job}], 1, lambda *_: None)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    try:
        for _ in range(600):
            if pid_file.is_file() and pid_file.read_text():
                break
            time.sleep(0.1)
        child = int(pid_file.read_text())
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split(")")[1][:3]:
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the process outlived its parent")
