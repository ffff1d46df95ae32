"""A user's studies stand in results/ and figures/ of the checkout, beside the committed ones; tests read neither."""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from committed import CHECKOUT, listed, take_out

from results.table import load, merge, write


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_committed_is_read_whatever_a_study_has_written_beside_it(committed, tmp_path):
    users = take_out(tmp_path / "checkout")
    for command in (["init", "--quiet"], ["add", "--force", "."]):
        subprocess.run(["git", "-C", users, *command], check=True)
    path = users / "results" / "desk" / "table.csv"
    before = load(path)
    elsewhere = before.assign(train_precision="bf16", device="another machine")
    elsewhere["fingerprint"] = elsewhere["fingerprint"].str[::-1]
    elsewhere[["rfid", "gfid"]] *= 1.02
    write(merge(before, elsewhere), path)
    assert len(load(path)) == 2 * len(before)
    (users / "figures" / "desk" / "frontier.png").write_bytes(b"drawn of both")
    (users / "figures" / "desk" / "scaling.csv").unlink()  # refused: rows of two precisions
    write(before, users / "results" / "desk-mine" / "table.csv")
    assert listed(users) == listed()
    assert files(take_out(tmp_path / "taken", users)) == files(committed)


def test_without_a_checkout_there_is_nothing_committed(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / "unpacked" / "results").mkdir(parents=True)
    (tmp_path / "unpacked" / "results" / "table.csv").touch()
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)  # of another project, that it was unpacked in
    assert listed(tmp_path / "unpacked") == []


@pytest.mark.parametrize(
    ("place", "noticed"),
    [
        ("results/of-a-user/table.csv", True),
        ("figures/paper/frontier.png", True),
        ("results/paper/table1_recipe.csv", False),
        ("results/table.py", False),
        ("models/of-a-user/table.csv", False),
    ],
)
def test_a_test_that_opens_a_study_of_the_working_tree_fails(place, noticed, studies_opened, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    for path in (CHECKOUT / place, place):
        with suppress(FileNotFoundError):
            Path(path).read_bytes()
        assert studies_opened == [place] * noticed
        studies_opened.clear()


def test_no_test_hands_a_study_of_the_working_tree_to_another_process():
    """Which Python's audit hook of this one does not see."""
    sources = {path: path.read_text() for path in (CHECKOUT / "tests").rglob("*.py")}
    assert Path(__file__) in sources
    pattern = re.compile(r"CHECKOUT\s*/\s*f?[\"'](results|figures)\b")
    assert pattern.search('CHECKOUT / "results" / "desk"')
    assert [path.name for path, text in sources.items() if pattern.search(text)] == [Path(__file__).name]
