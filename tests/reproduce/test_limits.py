"""A notebook that misbehaves takes down nothing else, and its one line says what happened."""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
import psutil
import pytest

from workbench.measure import CLAIM_MIME
from workbench.reproduce import confine, provisioner
from workbench.reproduce.limits import Limits, default_limits, family, machine_memory, proportional, resident
from workbench.reproduce.notebook_run import Outcome, run_notebook

PARAMETERS = {"scale": "quick", "seed": 0, "control": False}
forked_only = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")
confined_only = pytest.mark.skipif(not confine.available(), reason="this system has no Landlock")


@pytest.fixture(autouse=True, scope="module")
def mother():
    with provisioner.pre_imported(libraries=False):
        yield


@pytest.fixture
def run(tmp_path):
    """Runs cells as a notebook in a folder of its own and gives its outcome."""

    def run(*cells: str, name: str = "n", stop: threading.Event | None = None, **limits) -> Outcome:
        return run_cells(tmp_path, name, cells, Limits(**limits), stop)

    return run


def run_cells(folder: Path, name: str, cells, limits: Limits = Limits(), stop=None, **more) -> Outcome:  # noqa: B008
    cell = nbformat.v4.new_code_cell
    parameters = cell("scale = ''\nseed = 1\ncontrol = None", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[parameters, *map(cell, cells)])
    source = folder / "source" / f"{name}.ipynb"
    source.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, source)
    save_to = folder / "run" / f"{name}.ipynb"
    save_to.parent.mkdir(exist_ok=True)
    return run_notebook(source, PARAMETERS, save_to, stop=stop, limits=limits, **more)


def text(outcome: Outcome) -> str:
    outputs = [output for cell in outcome.notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def test_kernels_end_as_soon_as_they_are_told_to(tmp_path):
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda i: run_cells(tmp_path, f"n{i}", ("1",)), range(40)))
    waited = sorted(each.seconds for each in done)
    # One in twelve once waited for the answer to its own shutdown, until it was terminated after 2.5 s.
    assert waited[-1] < waited[20] + 2.2


def test_a_claim_is_told_when_it_is_measured(tmp_path):
    heard: list[tuple[dict, bool]] = []
    more = tmp_path / "more"
    show = f"from IPython.display import display\ndisplay({{{CLAIM_MIME!r}: {{'claim': 'C1'}}}}, raw=True)"
    wait = f"import os, time\nwhile not os.path.exists({str(more)!r}): time.sleep(0.01)\nprint('ended')"

    def claimed(record: dict) -> None:
        heard.append((record, more.exists()))
        more.touch()

    done = run_cells(tmp_path, "n", (show, wait), limits=Limits(seconds=60), claimed=claimed)
    assert heard == [({"claim": "C1"}, False)] and text(done) == "ended\n"


def test_a_good_one_is_done_and_measured(run, tmp_path):
    done = run("import time\ntime.sleep(0.5)\nprint(scale, seed, control)")
    assert (done.state, done.error, done.died, done.trouble) == ("done", "", "", "")
    assert text(done) == "quick 0 False\n"
    assert 0.5 <= done.work_seconds < done.seconds and done.peak_memory > 10e6
    saved = nbformat.read(tmp_path / "run/n.ipynb", as_version=4)
    nbformat.validate(saved)
    assert saved.cells[-1].outputs == done.notebook.cells[-1].outputs


@pytest.mark.parametrize(
    "last_words, said",
    [
        (
            "os.kill(os.getpid(), 9)",
            r"its kernel died of SIGKILL in cell 3 at 0\.\d GB; if memory ran out, try --workers 1",
        ),
        ("os.abort()", r"its kernel died of SIGABRT in cell 3 at 0\.\d GB$"),
        ("os._exit(3)", r"its kernel died with exit status 3 in cell 3 at 0\.\d GB$"),
    ],
)
@forked_only
def test_one_that_kills_its_kernel(run, last_words, said):
    done = run(f"import os\nprint('said before', flush=True)\n{last_words}", "print('never')")
    assert (done.state, done.died) == ("failed", "signal") and re.match(said, done.error), done.error
    assert text(done) in ("said before\n", "")


def test_one_that_loops_for_ever_is_interrupted_where_it_hangs(run):
    done = run("1", "while True:\n    pass", seconds=2)
    assert (done.state, done.died) == ("failed", "time")
    assert re.match(r"stopped after 2 s in cell 4; raise the limit", done.error), done.error
    assert done.notebook.cells[-1].outputs[-1].ename == "KeyboardInterrupt"


def test_one_that_takes_no_interrupt_is_killed(run):
    deaf = "import time\nwhile True:\n    try:\n        time.sleep(9)\n    except KeyboardInterrupt:\n        pass"
    done = run(deaf, seconds=1)
    assert (done.state, done.died) == ("failed", "time") and done.seconds < 20
    assert "in cell 3, killed as it took no interrupt within 5 s" in done.error


@pytest.mark.parametrize("who", ["itself", "its child"])
def test_one_that_allocates_without_end(run, who):
    greedy = "kept = []\nwhile True: kept.append(bytearray(1 << 24))"
    if who == "its child":
        greedy = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {greedy!r}])"
    done = run("1", greedy, memory=500 * 10**6)
    assert (done.state, done.died) == ("failed", "memory")
    assert re.fullmatch(r"killed for memory at 0\.[5-9] GB in cell 4; try --workers 1", done.error), done.error
    assert done.peak_memory > 500e6


def test_one_that_prints_200_mb_is_cut_and_goes_on(run, tmp_path):
    before = psutil.Process().memory_info().rss
    display = f"from IPython.display import display\ndisplay({{'text/plain': 'y' * 300_000}}, raw=True)"  # noqa: F541
    claim = f"display({{{CLAIM_MIME!r}: {{'claim': 'C1'}}}}, raw=True)"
    done = run("for _ in range(200): print('x' * (1 << 20))", display, claim, output=2**20)
    assert done.state == "done", done.error
    assert text(done).endswith("\n[cut: more than 1 MB of output; the rest was dropped]\n")
    assert text(done).count("[cut") == 1 and len(text(done)) < 2**20 + 100
    assert psutil.Process().memory_info().rss - before < 100e6
    assert (tmp_path / "run/n.ipynb").stat().st_size < 3 * 2**20
    kept = [output for cell in done.notebook.cells for output in cell.get("outputs", [])]
    assert any(CLAIM_MIME in output.get("data", {}) for output in kept), "a claim is never cut"


@pytest.mark.parametrize("kernels", ["forked", "ordinary"])
def test_displays_and_ordinary_kernels_are_cut_too(run, monkeypatch, kernels):
    if kernels == "ordinary":
        monkeypatch.setenv("WORKBENCH_KERNELS", "ordinary")
    show = "from IPython.display import display\nfor _ in range(9): display({'text/plain': 'y' * 300_000}, raw=True)"
    done = run(show, "print('z' * 2_000_000)", output=2**20)
    shown = [output for cell in done.notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert done.state == "done" and len(shown) == 3 and text(done).count("[cut") >= 1 and len(text(done)) < 2**20 + 200


@confined_only
@pytest.mark.parametrize(
    "deed",
    [
        "open({path!r}, 'w')",
        "import os; os.remove({victim!r})",
        "import os; os.rename({victim!r}, 'mine')",
        "import os; os.mkdir({path!r})",
        "import os; os.truncate({victim!r}, 0)",
        "import os; os.symlink('x', {path!r})",
        "import subprocess; subprocess.run(['touch', {path!r}], check=True)",
        "open('victim.txt', 'w')",
    ],
)
def test_one_that_writes_outside_its_folder_is_refused(run, tmp_path, deed):
    (tmp_path / "source").mkdir()
    victim = tmp_path / "source" / "victim.txt"
    victim.write_text("here")
    done = run(deed.format(path=str(tmp_path / "evil"), victim=str(victim)))
    assert done.state == "failed" and re.match(r"cell 3: (PermissionError|OSError|CalledProcessError)", done.error), (
        done
    )
    assert victim.read_text() == "here" and not (tmp_path / "evil").exists()


def test_it_reads_its_neighbours_and_keeps_what_it_writes(run, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "beside.csv").write_text("1,2")
    (tmp_path / "source" / "beside.py").write_text("answer = 42")
    read = "import beside, tempfile\nprint(beside.answer, open('beside.csv').read())"
    write = "open('mine.txt', 'w').write('kept')\nprint(tempfile.mkdtemp())"
    done = run(read, write)
    assert done.state == "done" and text(done).startswith("42 1,2\n"), done.error
    assert not Path(text(done).split()[-1]).exists(), "what is temporary goes with the kernel"
    assert [path.name for path in (tmp_path / "run/n.files").iterdir() if path.name != "__pycache__"] == ["mine.txt"]
    assert run("1", name="m").state == "done" and not (tmp_path / "run/m.files").exists()


def test_bad_ones_side_by_side_leave_a_good_one_alone(tmp_path):
    cells = {
        "good": ["import time\ntime.sleep(3)", "print('well')"],
        "dies": ["import os; os.abort()"],
        "loops": ["while True: pass"],
        "greedy": ["kept = []\nwhile True: kept.append(bytearray(1 << 24))"],
    }
    limits = {"loops": Limits(seconds=2), "greedy": Limits(memory=400 * 10**6)}
    outcomes: dict[str, Outcome] = {}

    def one(name: str) -> None:
        outcomes[name] = run_cells(tmp_path, name, cells[name], limits.get(name, Limits()))

    (tmp_path / "source").mkdir()
    threads = [threading.Thread(target=one, args=(name,)) for name in cells]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: outcome.died for name, outcome in outcomes.items()} == {
        "good": "", "dies": "signal", "loops": "time", "greedy": "memory",
    }  # fmt: skip
    assert outcomes["good"].state == "done" and text(outcomes["good"]) == "well\n"


@forked_only
def test_what_a_notebook_leaves_running_ends_with_it_or_with_the_run(run):
    # The interrupt at a kernel's end is no help against a shell that ignores it.
    stubborn = ["sh", "-c", "trap '' INT TERM; while true; do sleep 1; done"]
    start = f"""
import subprocess
print(*(subprocess.Popen({stubborn}, start_new_session=own).pid for own in (False, True)))"""
    own = provisioner.start_mother()
    in_its_group, in_a_session_of_its_own = map(int, text(run(start)).split())
    psutil.wait_procs([psutil.Process(in_its_group)] if psutil.pid_exists(in_its_group) else [], timeout=5)
    assert not psutil.pid_exists(in_its_group)
    assert psutil.pid_exists(in_a_session_of_its_own)
    provisioner.stop_mother()
    assert own.process.returncode == 0 and not psutil.pid_exists(in_a_session_of_its_own)
    provisioner.start_mother(libraries=False)


def test_what_fails_after_a_stop_is_interrupted(run):
    stop = threading.Event()
    stop.set()
    done = run("1 / 0", stop=stop)
    assert (done.state, done.error) == ("interrupted", "")


def leftovers() -> dict[str, int]:
    gc.collect()
    me = psutil.Process()
    mother = provisioner.start_mother().process.pid
    return {
        "processes": len(me.children(recursive=True)),
        "handles": me.num_fds(),
        "handles of the mother": psutil.Process(mother).num_fds(),
        "sockets": len(me.net_connections("unix")),
        "threads": threading.active_count(),
        "temporary files": len(os.listdir(tempfile.gettempdir())),
    }


TALK = """
import os, random, sys
print(sorted(name for name in globals() if name.startswith("mark_")), os.environ.get("MARK"), os.listdir())
mark_{i} = 1
os.environ["MARK"] = "{i}"
sys.modules["mark_{i}"] = sys
random.seed({i})
assert not [name for name in sys.modules if name.startswith("mark_") and name != "mark_{i}"]
"""


@forked_only
def test_many_notebooks_leave_nothing_behind_and_tell_each_other_nothing(tmp_path, monkeypatch):
    """200 with WORKBENCH_SLOW=1; two at a time, as a run would have them."""
    many = 200 if os.environ.get("WORKBENCH_SLOW") else 16
    with tempfile.TemporaryDirectory() as own, ThreadPoolExecutor(2) as pool:
        monkeypatch.setattr(tempfile, "tempdir", own)

        def one(i: int) -> Outcome:
            return run_cells(tmp_path, f"n{i}", [TALK.format(i=i)])

        # The first ones open what stays open by design: a loop a worker.
        list(pool.map(one, range(4)))
        before = leftovers()
        outcomes = list(pool.map(one, range(4, many)))
        deadline = time.monotonic() + 10
        while any((after := leftovers())[name] > before[name] for name in before) and time.monotonic() < deadline:
            time.sleep(0.1)
    assert [outcome.error for outcome in outcomes if outcome.error] == []
    assert {line for outcome in outcomes for line in re.sub(r"'n\d+\.ipynb',? ?", "", text(outcome)).splitlines()} == {
        "[] None []"
    }
    assert not {name: count for name, count in after.items() if count > before[name]}, (before, after)
    assert after["temporary files"] == 0
    assert not list((tmp_path / "run").glob("*.files"))


def test_memory_counts_shared_pages_once_and_children_too():
    code = "import os, time\nkept = bytearray(100 << 20)\nos.fork()\nos.write(1, b'up\\n')\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert [process.stdout.readline() for _ in range(2)] == ["up\n"] * 2
        pids = family(process.pid)
        assert len(pids) == 2 and pids[0] == process.pid
        assert sum(map(resident, pids)) > 200e6
        if sys.platform == "linux":
            assert 100e6 < sum(map(proportional, pids)) < 140e6
    finally:
        for child in psutil.Process(process.pid).children():
            child.kill()
        process.kill()
        process.wait()
        process.stdout.close()
    assert family(process.pid) == [] and resident(process.pid) == 0


def test_default_limits_share_the_memory_among_workers():
    assert default_limits("full", 1).seconds is None and default_limits("quick", 1).seconds == 900
    memory = [default_limits("quick", workers).memory or 0 for workers in (1, 4)]
    assert memory[0] < machine_memory() and abs(memory[0] / memory[1] - 4) < 1e-6
