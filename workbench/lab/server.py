"""A JupyterLab server on the papers' notebooks.

Does: start JupyterLab in this process, on loopback and behind a token, with what the workbench adds to it: an index
that shows itself, notebooks that open trusted, kernels that are pre-imported, a card in the launcher. All of it is
passed to this one server. Does not: write settings, kernels or extensions into the user's folders (trust alone is kept
where Jupyter keeps it), ask the network for news, or ask a question at Ctrl-C.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
import time
from pathlib import Path

from workbench.errors import WorkbenchError, refuse, require_integer
from workbench.paths import notebooks_folder
from workbench.reproduce.forked import NoFork
from workbench.reproduce.provisioner import NAME, start_mother, stop_mother, tell_once, write_kernelspec

LOOPBACK = "127.0.0.1"
# A workspace of its own: tabs that the user's other labs left open stay there.
START = "/lab/workspaces/workbench/tree/index.ipynb"
# Other defaults than JupyterLab's; what the user set goes first.
SETTINGS = {"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False}}
EXTENSIONS = Path(__file__).resolve().parent / "labextensions"


def checked_port(port: int | None) -> int:
    """The port if it is free, or a free one for None."""
    if port is not None:
        require_integer("--port", port, low=1, high=65535, cure="leave it out for a free one")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # elsewhere it would share a port that is taken
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port or 0))
        except OSError as error:
            raise refuse(
                "--port", port, f"be a port that can be opened ({error.strerror})", "leave it out for a free one"
            ) from None
        return probe.getsockname()[1]


def preimport(wait: bool = False) -> None:
    """Begin the imports of the kernels to come; with `wait`, end them too. Their widgets have somebody to move them."""
    os.environ.pop("WORKBENCH_HEADLESS", None)
    try:
        mother = start_mother()
        while wait and not mother.ready():
            time.sleep(0.05)
    except NoFork as why:
        tell_once(f"ordinary kernels, each with imports of its own: {why}")


def furnish(prefix: Path) -> None:
    """Put below `prefix` what Jupyter looks for in folders, and let this process look there too."""
    write_kernelspec(str(prefix))
    settings = prefix / "etc/jupyter/labconfig/default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS), encoding="utf-8")
    for name, folder in (("JUPYTER_PATH", "share/jupyter"), ("JUPYTER_CONFIG_PATH", "etc/jupyter")):
        os.environ[name] = os.pathsep.join([str(prefix / folder), *filter(None, [os.environ.get(name)])])


def open_lab(port: int | None = None, browser: bool = True) -> None:
    """Start JupyterLab on the index, print its address, and stay until Ctrl-C."""
    try:
        from jupyterlab.labapp import LabApp

        from workbench.lab.contents import INDEX, LabContents, trust_bundled
    except ImportError as error:
        raise WorkbenchError(
            f"JupyterLab is not installed ({error.name} is missing); install it with 'pip install jupyterlab'."
        ) from None
    folder = notebooks_folder()
    if not (folder / INDEX).is_file():
        raise WorkbenchError(
            f"The folder {folder} has no {INDEX}; set WORKBENCH_HOME to a checkout of the workbench that has it."
        )
    port, token = checked_port(port), secrets.token_hex(24)
    preimport()
    with tempfile.TemporaryDirectory(prefix="workbench-lab-") as prefix:
        furnish(Path(prefix))
        arguments = [
            f"--ServerApp.ip={LOOPBACK}",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={folder}",
            f"--IdentityProvider.token={token}",
            # In a container there is nobody but root.
            "--ServerApp.allow_root=True",
            "--ServerApp.answer_yes=True",
            "--ServerApp.log_level=ERROR",
            f"--KernelProvisionerFactory.default_provisioner_name={NAME}",
            f"--ServerApp.contents_manager_class={LabContents.__module__}.{LabContents.__name__}",
            f"--ServerApp.open_browser={browser}",
            f"--LabApp.default_url={START}",
            f"--LabApp.extra_labextensions_path={EXTENSIONS}",
            # It reads settings of the classic notebook, and warns of them.
            "--ServerApp.jpserver_extensions={'notebook_shim': False}",
            "--LabApp.news_url=None",
            "--LabApp.extension_manager=readonly",
            "--LabApp.log_level=ERROR",
            "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
        ]
        try:
            server = LabApp.initialize_server(argv=arguments)
            trust_bundled(server.contents_manager.notary)
            print(f"JupyterLab: http://{LOOPBACK}:{port}{START}?token={token}   (Ctrl-C ends it)", flush=True)
            server.start()
        finally:
            stop_mother()
