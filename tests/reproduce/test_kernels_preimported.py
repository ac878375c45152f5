"""Kernels whose libraries were imported before they were forked: as good as new, and nothing passes between them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from workbench.reproduce import provisioner
from workbench.reproduce.limits import Limits
from workbench.reproduce.notebook_run import run_notebook

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux alone")


@pytest.fixture(autouse=True, scope="module")
def mother():
    with provisioner.pre_imported():
        mother = provisioner.start_mother()
        while not mother.ready():
            time.sleep(0.05)
        yield mother


@pytest.fixture
def said(tmp_path):
    """What a notebook of these cells prints."""

    def said(*cells: str, threads: int | None = None) -> str:
        cell = nbformat.v4.new_code_cell
        notebook = nbformat.v4.new_notebook(cells=list(map(cell, cells)))
        nbformat.write(notebook, tmp_path / "n.ipynb")
        done = run_notebook(tmp_path / "n.ipynb", {}, tmp_path / "out.ipynb", threads=threads, limits=Limits())
        assert done.state == "done", done.error
        outputs = [output for each in done.notebook.cells for output in each.get("outputs", [])]
        return "".join(output.get("text", "") or f"<{','.join(output['data'])}>" for output in outputs)

    return said


def test_the_mother_has_one_thread_and_the_imports_done(mother, said):
    assert len(os.listdir(f"/proc/{mother.process.pid}/task")) == 1
    names = ["torch", "transformers", "scipy.stats", "matplotlib.pyplot", "sklearn", "workbench.models.hf"]
    loaded = said(f"import sys\nprint(all(name in sys.modules for name in {names}))")
    assert loaded == "True\n"
    assert len(os.listdir(f"/proc/{mother.process.pid}/task")) == 1


def test_what_starts_threads_is_left_to_the_kernels(mother, said):
    pytest.importorskip("pyarrow")
    shown = said(
        "import sys\nprint('pandas' in sys.modules, 'pyarrow' in sys.modules)",
        "import io, pandas, pyarrow\nframe = pandas.DataFrame({'a': ['x']}, dtype=pandas.ArrowDtype(pyarrow.string()))",
        "frame.to_parquet(file := io.BytesIO())\nprint(pandas.read_parquet(file).a[0])",
    )
    assert shown == "False False\nx\n"


SET = """
import matplotlib, numpy, random, torch, warnings, logging
matplotlib.rcParams["lines.linewidth"] = 9
matplotlib.pyplot.figure()
torch.manual_seed(1), numpy.random.seed(1), random.seed(1)
torch.set_default_dtype(torch.float64)
torch.mark, numpy.mark = 1, 1
warnings.simplefilter("error")
"""
SHOW = """
import matplotlib, matplotlib.pyplot, numpy, torch
print(matplotlib.rcParams["lines.linewidth"], matplotlib.pyplot.get_fignums())
print(torch.get_default_dtype(), hasattr(torch, "mark"), hasattr(numpy, "mark"))
"""


def test_nothing_passes_from_one_to_the_next(said):
    fresh = subprocess.run([sys.executable, "-c", SHOW], capture_output=True, text=True, check=True).stdout
    said(SET)
    assert said(SHOW) == fresh


def test_what_is_random_in_a_new_process_is_random_in_each_kernel(said):
    draw = "import random, numpy, torch, uuid\nprint(random.random(), numpy.random.rand(), torch.rand(1).item(), uuid.uuid4())"
    first, second = said(draw).split(), said(draw).split()
    assert len(first) == 4 and not set(first) & set(second)


def test_temporary_files_go_where_this_kernel_was_told(said):
    assert said("import os, tempfile\nprint(tempfile.gettempdir() == os.environ['TMPDIR'])") == "True\n"


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_what_was_asked_for(said, threads):
    code = """
import numpy, torch, threadpoolctl
print(torch.get_num_threads(), {pool["num_threads"] for pool in threadpoolctl.threadpool_info()})
x = torch.rand(400, 400)
print(bool(torch.isfinite(x @ x).all()), bool(numpy.isfinite(numpy.linalg.svd(x.numpy())[1]).all()))
"""
    assert said(code, threads=threads) == f"{threads} {{{threads}}}\nTrue True\n"


def test_figures_and_warnings_appear_as_in_an_ordinary_kernel(said):
    plot = "import matplotlib.pyplot as plt\nplt.plot([1, 2]);"
    assert said(plot, "print(plt.get_backend())") == "<text/plain,image/png>module://matplotlib_inline.backend_inline\n"


def test_a_page_that_is_loaded_again_may_ask_for_all_widgets_at_once(said):
    # A kernel that doesn't know this target leaves a page to ask for each widget by itself, and some are then missed.
    code = "import comm, ipywidgets\nprint(comm.get_comm_manager().targets['jupyter.widget.control'].__name__)"
    assert said(code) == "handle_control_comm_opened\n"


def test_processes_and_threads_can_be_started(said):
    code = """
import joblib, multiprocessing
from concurrent.futures import ThreadPoolExecutor
with multiprocessing.get_context("fork").Pool(2) as pool: print(pool.map(abs, [-1, 2]))
with ThreadPoolExecutor(2) as pool: print(list(pool.map(abs, [-1, 2])))
print(joblib.Parallel(2)(joblib.delayed(abs)(i) for i in [-1, 2]))
"""
    assert said(code) == "[1, 2]\n" * 3


def test_a_kernel_costs_less_than_150_mb_of_its_own(mother):
    line = {"argv": [], "env": dict(os.environ), "cwd": "/", "threads": 1, "writable": None, "output": None}
    kernel = mother.fork((1, 2), **line, scratch=None)
    deadline = time.monotonic() + 30
    while psutil.Process(kernel.pid).num_threads() < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    rows = dict(row.split(":", 1) for row in Path(f"/proc/{kernel.pid}/smaps_rollup").read_text().splitlines()[1:])
    own = sum(int(rows[name].split()[0]) * 1024 for name in ("Private_Clean", "Private_Dirty"))
    kernel.kill()
    assert kernel.wait(10) == -9
    assert own < 150e6
