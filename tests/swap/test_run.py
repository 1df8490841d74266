"""``mobile-sam run`` against python itself: a program cannot tell which of them runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import segment_anything

from mobile_sam_plugin.cli import main

pytestmark = pytest.mark.process

RUN = (sys.executable, "-m", "mobile_sam_plugin", "run")
ROOT = Path(__file__).parents[2]

PROGRAMS = {
    "what it sees": """
        "The docstring."
        import sys
        x: int = 1
        print(sys.argv, sys.path, __name__, __file__, __doc__)
        print(__package__, __spec__ and __spec__.name)
        print(sys.modules["__main__"].__dict__ is globals(), type(__loader__).__name__)
        print(__builtins__, __annotations__, sorted(set(globals()) - {"__cached__"}))
        """,
    "arguments of its own": """
        import argparse
        parser = argparse.ArgumentParser()
        parser.add_argument("--checkpoint")
        parser.add_argument("--replace")
        print(parser.parse_args())
        """,
    "neighbour": """
        import neighbour
        print(neighbour.__file__, neighbour.ANSWER)
        """,
    "no future": "print([1][0:1], type(1 // 1), __annotations__)\nx: undefined = 1",
    "exit code": "raise SystemExit(3)",
    "exit text": "import sys; sys.exit('so be it')",
    "exit none": "import sys; sys.exit()",
    "exit false": "import sys; sys.exit(False)",
    "exit at once": "import os; os._exit(7)",
    "error": """
        def fail():
            raise ValueError("no\\nway")
        fail()
        """,
    "chained error": """
        try:
            {}["key"]
        except KeyError as error:
            raise FileNotFoundError("missing") from error
        """,
    "end of input": "input(); input()",
    "broken pipe": "raise BrokenPipeError(32, 'broken')",
    "interrupt": "raise KeyboardInterrupt",
    "interrupt by signal": "import os, signal; os.kill(os.getpid(), signal.SIGINT)",
    "syntax error": "print('never')\nif:",
    "own hook": """
        import sys, traceback
        sys.excepthook = lambda kind, value, tb: print(kind, value, traceback.extract_tb(tb))
        1 / 0
        """,
    "input": "import sys; print(sys.stdin.read().upper())",
    "pickle": """
        import pickle
        class Point:
            pass
        print(type(pickle.loads(pickle.dumps(Point()))) is Point, Point.__module__)
        """,
    "after the end": """
        import atexit, pickle, sys, threading, time
        class Point:
            pass
        def late():
            print(sys.argv[1:], type(pickle.loads(pickle.dumps(Point()))) is Point)
        atexit.register(late)
        threading.Thread(target=lambda: (time.sleep(0.2), late())).start()
        """,
    "processes": """
        import multiprocessing, os, sys
        def square(x):
            return x * x, __name__, os.path.basename(sys.argv[0])
        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(square, [2, 3]))
        """,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "neighbour.py").write_text("ANSWER = 42")
    (tmp_path / "neighbour.py").write_text("ANSWER = 41")
    return tmp_path


def outcome(*command: str, cwd: Path, **variables: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    process = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        input="one\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process.returncode, process.stdout, process.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_runs_a_script_as_python_does(folder: Path, program: str) -> None:
    (folder / "sub" / "script.py").write_text(dedent(PROGRAMS[program]))
    arguments = ["sub/script.py", "--checkpoint", "c", "--replace", "vit_h"]
    expected = outcome(sys.executable, *arguments, cwd=folder)
    assert outcome(*RUN, *arguments, cwd=folder) == expected


@pytest.mark.parametrize(
    ("module", "program"),
    [
        *(("sub", program) for program in ("what it sees", "exit code")),
        *(("sub.module", program) for program in ("what it sees", "error", "pickle", "processes")),
        *(("module", program) for program in ("what it sees", "interrupt", "after the end")),
    ],
)
def test_runs_a_module_as_python_does(folder: Path, module: str, program: str) -> None:
    (folder / "sub" / "__init__.py").write_text("import sys; print(sys.argv)")
    for path in ("sub/__main__.py", "sub/module.py", "module.py"):
        (folder / path).write_text(dedent(PROGRAMS[program]))
    arguments = ["-m", module, "--checkpoint", "-m", "--", ""]
    expected = outcome(sys.executable, *arguments, cwd=folder)
    assert outcome(*RUN, *arguments, cwd=folder) == expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["script.py", "--help"],
        ["script.py", "--", "-x", "", "a b", "é", "\udcff"],
        ["./sub/../script.py"],
        ["linked.py"],
        ["-m", "no.such.module"],
        ["-m", "no_such_module"],
        ["-m", "sub"],
    ],
    ids=repr,
)
def test_finds_a_program_as_python_does(folder: Path, arguments: list[str]) -> None:
    source = "import sys; print(ascii(sys.argv), sys.path)"
    (folder / "script.py").write_text(source)
    (folder / "sub" / "target.py").write_text(source)
    (folder / "linked.py").symlink_to(folder / "sub" / "target.py")
    expected = outcome(sys.executable, *arguments, cwd=folder)
    assert outcome(*RUN, *arguments, cwd=folder) == expected


def test_registers_and_replaces(folder: Path) -> None:
    (folder / "script.py").write_text(
        dedent("""
            import os, sys
            os.chdir("sub")
            import segment_anything
            from segment_anything import build_sam_vit_b, sam_model_registry

            models = [
                sam_model_registry["vit_t"](),
                sam_model_registry["vit_h"](checkpoint="sam_vit_h_4b8939.pth"),
                build_sam_vit_b(),
            ]
            frozen = [model.mask_decoder.iou_token.weight.sum().item() for model in models]
            print(sys.argv, [type(model).__name__ for model in models], len(set(frozen)))
            print(sam_model_registry["vit_l"].__name__)
        """)
    )
    weights = Path(
        os.path.relpath(ROOT / "mobile_sam_plugin/weights/mobile_sam.safetensors", folder)
    )
    options = ["--replace", "vit_h", "vit_b", "--checkpoint", str(weights)]
    code, stdout, stderr = outcome(*RUN, *options, "script.py", "--replace", "vit_h", cwd=folder)
    assert (code, stdout) == (
        0,
        "['script.py', '--replace', 'vit_h'] ['MobileSam', 'MobileSam', 'MobileSam'] 1\n"
        "build_sam_vit_l\n",
    ), stderr
    assert "in place of vit_h, ignoring its checkpoint 'sam_vit_h_4b8939.pth'" in stderr


def test_imports_nothing_that_the_script_does_not(folder: Path) -> None:
    (folder / "script.py").write_text(
        "import sys; print({'torch', 'segment_anything'} & set(sys.modules))"
    )
    assert outcome(*RUN, "--replace", "vit_h", "script.py", cwd=folder) == (0, "set()\n", "")


def test_the_file_decides_on_the_model(folder: Path) -> None:
    (folder / "script.py").write_text(
        dedent("""
            import sys
            from mobile_sam import sam_model_registry as of_mobile_sam
            from segment_anything import build_sam, sam_model_registry
            for build in (build_sam, sam_model_registry["vit_b"], of_mobile_sam["vit_l"]):
                print(type(build(checkpoint=sys.argv[1])).__name__)
        """)
    )
    weights = ROOT / "mobile_sam_plugin/weights/mobile_sam.safetensors"
    options = ["--by-checkpoint", "--provide", "mobile_sam", "--hide-installed"]
    code, stdout, stderr = outcome(*RUN, *options, "script.py", str(weights), cwd=folder)
    assert (code, stdout) == (0, "MobileSam\nMobileSam\nMobileSam\n"), stderr
    assert f"building what {weights} holds in place of vit_b" in stderr


BUILDERS = """
import segment_anything
from segment_anything.build_sam import build_sam_vit_h

def builders(_):
    registry = segment_anything.sam_model_registry
    functions = (registry["vit_h"], registry["vit_t"], segment_anything.build_sam, build_sam_vit_h)
    return [function.__module__ for function in functions]
"""
REPLACED, REGISTERED = "mobile_sam_plugin.replacement", "mobile_sam_plugin.build"
STARTERS = {
    **{
        method: f"""
            import multiprocessing
            from builders import builders
            if __name__ == "__main__":
                with multiprocessing.get_context("{method}").Pool(1) as pool:
                    print(*pool.map(builders, [0]))
            """
        for method in ("forkserver", "spawn")
    },
    "subprocess": """
        import subprocess, sys
        child = "import builders; print(builders.builders(0))"
        grandchild = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
        subprocess.run([sys.executable, "-c", grandchild, "-c", child])
        """,
    "torch.distributed.run": """
        import os, runpy, sys
        if "RANK" in os.environ:
            import builders
            print(builders.builders(0))
        else:
            sys.argv[1:] = ["--standalone", "--nproc-per-node", "1", __file__]
            runpy.run_module("torch.distributed.run", run_name="__main__")
        """,
}


@pytest.mark.parametrize("starter", STARTERS)
def test_reaches_the_processes_that_a_script_starts(folder: Path, starter: str) -> None:
    (folder / "builders.py").write_text(BUILDERS)
    (folder / "script.py").write_text(dedent(STARTERS[starter]))
    code, stdout, stderr = outcome(*RUN, "--replace", "vit_h", "script.py", cwd=folder)
    assert (code, stdout) == (0, f"{[REPLACED, REGISTERED, REPLACED, REPLACED]}\n"), stderr


def test_processes_of_a_script_are_otherwise_as_python_starts_them(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "sitecustomize.py").write_text("print(__name__, __file__, __spec__.name)")
    (folder / "script.py").write_text(
        dedent("""
            import subprocess, sys
            child = "import sitecustomize, sys; print(sys.path, sitecustomize.__file__)"
            print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True))
        """)
    )
    path = f"{folder / 'other'}{os.pathsep}{ROOT}"
    expected = outcome(sys.executable, "script.py", cwd=folder, PYTHONPATH=path)
    assert str(folder / "other" / "sitecustomize.py") in expected[1]
    assert outcome(*RUN, "script.py", cwd=folder, PYTHONPATH=path) == expected


def test_a_script_may_import_this_package_first(folder: Path) -> None:
    (folder / "script.py").write_text(
        "from mobile_sam_plugin import replace, sam_model_registry as ours\n"
        "import segment_anything\n"
        "print(segment_anything.build_sam.__module__, ours['vit_t'].__module__)"
    )
    expected = (0, f"{REPLACED} {REGISTERED}\n", "")
    assert outcome(*RUN, "--replace", "vit_h", "script.py", cwd=folder) == expected


COPIES = """
import mobile_sam
from sam.segment_anything import build_sam
from sam.segment_anything.build_sam import sam_model_registry
print(mobile_sam.build_sam_vit_t.__module__, mobile_sam.sam_model_registry["vit_t"].__module__)
print(build_sam.__module__, sam_model_registry["vit_t"].__module__)
"""


@pytest.fixture
def copies(folder: Path) -> Path:
    """A script with a vendored copy of segment_anything, and a renamed one with its own vit_t."""
    upstream = Path(segment_anything.__file__).parent
    shutil.copytree(upstream, folder / "sam" / "segment_anything")
    shutil.copytree(upstream, folder / "mobile_sam")
    with open(folder / "mobile_sam" / "__init__.py", "a") as file:
        file.write("\nbuild_sam_vit_t = sam_model_registry['vit_t'] = lambda checkpoint: None\n")
    (folder / "script.py").write_text(COPIES)
    return folder


def test_registers_and_replaces_in_copies(copies: Path) -> None:
    options = ["--in", "mobile_sam", "--replace", "default", "--in", "sam.segment_anything"]
    code, stdout, stderr = outcome(*RUN, *options, "script.py", cwd=copies)
    assert (code, stderr) == (0, "")
    assert stdout.split() == [REGISTERED, REGISTERED, REPLACED, REGISTERED]


def test_says_which_copies_it_could_not_change(copies: Path) -> None:
    (copies / "script.py").write_text(
        "import sam.segment_anything, neighbour, mobile_sam, atexit\n"
        "atexit.register(print, 'done')\nraise SystemExit(3)"
    )
    with open(copies / "mobile_sam" / "__init__.py", "a") as file:
        file.write("del sam_model_registry['vit_l']")
    options = ["--in", "sam_hq", "--in", "neighbour", "--in", "mobile_sam", "--replace", "vit_l"]
    code, stdout, stderr = outcome(*RUN, *options, "script.py", cwd=copies)
    assert (code, stdout) == (3, "done\n")
    for line, words in zip(
        stderr.splitlines(),
        (
            "--in sam_hq was not imported; imported were: ",
            "--in neighbour has no dict sam_model_registry; imported were: ",
            "--in mobile_sam has no vit_l to replace, only default, vit_h, vit_b, vit_t",
        ),
        strict=True,
    ):
        assert line.startswith(f"mobile-sam: warning: {words}")
        assert "sam.segment_anything" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing argument"),
        (["--in", "sam/segment_anything", "script.py"], "such as sam.segment_anything"),
        (["missing.py"], "missing.py: No such file"),
        (["."], ".: Is a directory"),
        (["--replace", "vit_x", "script.py"], "vit_x"),
        (["--replace", "vit_h"], "Missing argument"),
        (["--checkpoint", "missing.pt", "script.py"], "there is no checkpoint at 'missing.pt'"),
    ],
)
def test_mistakes_end_with_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "script.py").touch()
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("mobile-sam: ") and captured.err.count("\n") == 1
    assert words in captured.err
