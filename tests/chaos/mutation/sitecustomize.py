"""Imported at start by every Python process that has this folder on its path (``tests/chaos/mutants.py``), so
also by the worker process, which its guardian starts by a command of its own."""

import os

from tests.chaos.mutants import MUTANT, apply

apply(os.environ[MUTANT])
