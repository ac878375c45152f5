"""The command's larger parts, a file each; `workbench.cli` registers them."""
