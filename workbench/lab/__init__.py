"""JupyterLab as the workbench opens it: on an index of the papers, and a paper's first look as an app."""

from workbench.lab.index_page import index

__all__ = ["index"]
