"A Python of its own for a test."
import os
import sys


def python(*words):
    """The command that runs `-m module` or `-c code`: in a fork of the process that has loaded the libraries, where
    tests/conftest.py has started one, else in a new one. Only for processes that no test kills from outside."""
    return [*os.environ.get('NMC_PYTHON', sys.executable).split('\n'), *words]
