"""One run in a folder at a time, and what killed ones leave."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.files import remove_partials
from mobile_sam_plugin.runs import LOCK_FILE, alone_in

HOLD = """import sys, pathlib
from mobile_sam_plugin.runs import alone_in
with alone_in(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    sys.stdin.read()"""


def test_a_second_run_of_this_process_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with alone_in(folder):
        (tmp_path / "link").symlink_to(folder)
        with pytest.raises(UserError, match="another run .of this process. is writing to"):
            alone_in(tmp_path / "link").__enter__()
        with alone_in(folder / "inner"):
            pass
    assert [path.name for path in folder.iterdir()] == ["inner"]
    with alone_in(folder):
        pass


@pytest.mark.process
def test_a_run_of_another_process_is_refused_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(UserError, match=rf"process {other.pid} on .*choose another folder"):
            alone_in(tmp_path).__enter__()
        other.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK_FILE).exists()  # which does not keep the next run out
    with alone_in(tmp_path):
        assert "process" in (tmp_path / LOCK_FILE).read_text()
    assert not [*tmp_path.iterdir()]


def test_a_run_that_fails_lets_the_next_one_in(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path):
        pass


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    kept = [tmp_path / "a.png", tmp_path / "masks" / "partial.png", tmp_path / ".hidden.png"]
    left = [tmp_path / ".a.0123.partial.png", tmp_path / "masks" / ".b.9-f.partial.mp4"]
    for path in (*kept, *left):
        path.touch()
    remove_partials(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)
