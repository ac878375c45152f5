"""The bundled model `embedded/code`: a small Llama of Python source, from the standard library of the machine."""

from __future__ import annotations

import sysconfig
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from workbench.errors import WorkbenchError
from workbench.models.recipes import text
from workbench.streams import Stream

SEED, STEPS, BATCH, VOCABULARY = 0, 1200, 12, 1024
TOLERANCE = 0.05
LICENCE = text.LICENCE
SUMMARY = "A small Llama of Python source, from the standard library"
CARD = """
# embedded/code

A four-layer Llama (width 128, 4 heads, 1,024 byte-pair tokens, about 0.9 million parameters) of Python source: 99 modules
of the standard library, named in `recipes.code.MODULES`, about 3.6 million characters.

- **For**: methods that need source code or long repetitive text; a second kind of text beside `embedded/docs`.
- **Not for**: programming. Its code looks right and means nothing.
- **Split** by module: every twenty-fourth is held out, and the next one chose the n-gram's order.
- **Made by** `workbench.models.build("code")` with Python 3.11.7: 1,200 steps of 12 windows of 256 tokens. Another
  Python has slightly other text (`text_sha256` on card.toml is that of ours); the tolerance allows for that, and what
  counts is what ships: weights and tokenizer.
- **Loss** (card.toml): mean -log p (nats) of a token of the held-out modules, read in windows of 256 tokens that overlap by
  half. The n-gram baseline was fitted on the same training text in the same tokens, with the whole past to look at.
- **Licence**: the text is Copyright (c) Python Software Foundation, under the PSF License Version 2 (PSF-2.0); it is not
  copied here. The weights, learnt from it, are given under the same licence. No person's data, no harmful text.
"""
MODULES = (
    "argparse ast base64 bdb bisect calendar cmd code codeop collections/__init__ colorsys configparser contextlib copy "
    "copyreg csv dataclasses difflib dis email/generator email/message enum filecmp fileinput fnmatch fractions ftplib "
    "functools getopt getpass gettext glob graphlib gzip heapq hmac html/parser http/client http/cookiejar http/cookies "
    "imaplib inspect ipaddress json/decoder json/encoder linecache logging/__init__ logging/handlers mailbox mimetypes "
    "netrc numbers optparse pdb pickle pickletools pkgutil plistlib poplib pprint profile pstats pyclbr queue quopri "
    "random reprlib sched selectors shelve shlex shutil smtplib socket socketserver statistics string subprocess tarfile "
    "tempfile textwrap threading timeit tokenize trace traceback typing unittest/case unittest/loader unittest/mock "
    "urllib/parse urllib/request uuid warnings wave weakref xml/dom/minidom xmlrpc/client zipapp"
)
"""Modules that Python 3.11, 3.12 and 3.13 all have as one file of Python."""


def make(seed: int = SEED, steps: int = STEPS) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The trained network and its tokenizer; the same seed gives the same weights on the same machine."""
    words, stream = tokenizer(), Stream.of(seed, "recipe", "code")
    network = text.network_of(corpus(), words, stream, steps=steps, batch=BATCH, rate=3e-3, noise=0.0, weight_decay=0.1)
    return network, words


def measured_loss(network: torch.nn.Module) -> float:
    """Mean -log p of a token of the held-out modules; see `text.held_out_loss`."""
    return text.held_out_loss(network, tokenizer(), corpus().held_out)


def figures(network: torch.nn.Module) -> dict[str, Any]:
    """What the card says beside the loss."""
    return text.figures(tokenizer(), corpus())


@lru_cache(maxsize=1)
def corpus() -> text.Corpus:
    """The modules in the order of MODULES, every twenty-fourth held out."""
    library = Path(sysconfig.get_path("stdlib"))
    documents = []
    for module in MODULES.split():
        path = library / f"{module}.py"
        if not path.is_file():
            raise WorkbenchError(f"{path} is missing; build embedded/code with a Python that has its library's source.")
        documents.append(path.read_text(encoding="utf-8"))
    return text.split(documents, 24)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    return text.byte_pairs(corpus(), VOCABULARY)
