"""Every campaign of tools/check for a second, with a fixed seed: nothing may be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests import programs

CHECK = Path(__file__).parents[2] / "tools" / "check"
CAMPAIGNS = sorted(
    path.stem for path in CHECK.glob("*.py") if "\n    campaign.main(" in path.read_text("utf-8")
)


def run(name: str, *options: str) -> CompletedProcess[str]:
    return programs.run(CHECK / f"{name}.py", *options, seconds=380)


@pytest.mark.timeout(400)
def test_a_second_of_each_campaign_find_nothing_wrong() -> None:
    done = run("all", *CAMPAIGNS, "--seconds", "1", "--seed", "0")
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    results = re.findall(r"^(\w+): .* tried, .*, 0 wrong \(", done.stdout, re.MULTILINE)
    assert results == CAMPAIGNS, said


@pytest.mark.parametrize(
    "only",
    [
        "topology: *, 4 ranks, 1 workers, 3 threads",
        "resume: *, step 3",
        "identity: [MBD]*",
    ],
)
def test_fields_mean_the_same_everywhere(only: str) -> None:
    done = run("meaning", "--only", only)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^meaning: (\d+) tried, \1 right, 0 refused", done.stdout, re.MULTILINE)
    assert found is not None, done.stdout
    assert int(found[1]) >= 4


def test_campaigns_go_on_after_one_that_fails() -> None:
    done = run("all", "headers", "tars", "--only", "such a case")
    assert done.returncode == 1
    assert done.stderr.count("no case is called 'such a case'") == 2
    assert done.stdout.endswith("wrong: headers tars\n")


def test_the_page_and_make_know_every_campaign() -> None:
    page = (CHECK.parents[1] / "docs" / "pages" / "campaigns.md").read_text("utf-8")
    makefile = (CHECK.parents[1] / "Makefile").read_text("utf-8")
    listed = next(line for line in makefile.splitlines() if line.startswith("CAMPAIGNS :="))
    names = listed.split()[2:]
    assert {*names} == {*CAMPAIGNS}
    assert [name for name in names if f"| `{name}` |" in page] == names


def test_a_campaign_that_finds_a_wrong_fails_and_says_how_to_repeat_it(tmp_path: Path) -> None:
    script = tmp_path / "wrongs.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(CHECK)!r})\n"
        "import campaign, children, time\n"
        "children._PATIENCE = 1.0\n"
        "def right(trial): trial.right()\n"
        "def refuse(trial): trial.refused('a reason')\n"
        "def err(trial): children.in_child(lambda: 1 / 0).check()\n"
        "def die(trial): children.in_child(lambda: __import__('os').abort()).check()\n"
        "def sleep_long(): time.sleep(600)\n"
        "def hang(trial): children.in_child(sleep_long).check()\n"
        "def other(trial): raise campaign.Wrong('other bytes', 17)\n"
        "def skip(trial): raise campaign.SkipCase('no such tool')\n"
        "runs = [right, refuse, err, die, hang, other, skip]\n"
        "campaign.main('', lambda _: [campaign.Case(run.__name__, run) for run in runs])\n",
        "utf-8",
    )
    done = programs.run(script)
    assert done.returncode == 1, done.stderr
    assert "wrongs: 6 tried, 1 right, 1 refused, 4 wrong" in done.stdout
    for said in (
        "raises ZeroDivisionError",
        "killed by SIGABRT",
        "other bytes: 17",
        "no such tool",
    ):
        assert said in done.stdout
    assert "wrongs.py --seed 0 --only 'other'" in done.stdout
    stacks = Path(re.findall(r"hang: where its processes stood is in (\S+)", done.stdout)[0])
    assert "sleep_long" in stacks.read_text("utf-8")
    stacks.unlink()
