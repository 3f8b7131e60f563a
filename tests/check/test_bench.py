from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from shardio import native

BENCH = Path(__file__).parents[2] / "tools" / "bench"

CPU_TIMES = """
import threading
from child import cpu_seconds

def end_at_once():
    while running:
        threading.Thread(target=int).start()

running = True
threads = [threading.Thread(target=end_at_once) for _ in range(2)]
for thread in threads:
    thread.start()
times = [cpu_seconds() for _ in range(300)]
running = False
assert times == sorted(times), times
"""


def test_the_cpu_time_of_a_process_counts_while_its_threads_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CPU_TIMES], cwd=BENCH, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_comparison_says_which_core_is_on_and_runs_without_it(tmp_path: Path) -> None:
    peer, page = "shardio without the native core", tmp_path / "page.md"
    command = [sys.executable, "compare.py", "--quick", "--workloads", "c", "--peers", peer]
    command += ["--markdown", str(page)]
    done = subprocess.run(command, cwd=BENCH, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"- shardio's native core: {native.status()}\n" in done.stdout
    assert f"| {peer} | " in done.stdout, done.stdout
    assert "\n<!-- chart -->\n| peer | img/s |" in page.read_text("utf-8")  # which the site draws
