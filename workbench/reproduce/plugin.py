"""What papermill's entry point names: the engine of `kernels.py`, imported when it is used.

papermill loads its plug-ins while it is itself half imported; an engine that imports papermill can't be loaded then.
"""

from __future__ import annotations

from typing import Any


class Engine:
    """The three methods that papermill asks of an engine."""

    @staticmethod
    def execute_notebook(*args: Any, **kwargs: Any) -> Any:
        return _engine().execute_notebook(*args, **kwargs)

    @staticmethod
    def nb_kernel_name(*args: Any, **kwargs: Any) -> Any:
        return _engine().nb_kernel_name(*args, **kwargs)

    @staticmethod
    def nb_language(*args: Any, **kwargs: Any) -> Any:
        return _engine().nb_language(*args, **kwargs)


def _engine() -> Any:
    from workbench.reproduce.kernels import KeepingEngine

    return KeepingEngine
