"""Shim for tools that want a setup.py; the metadata is in setup.cfg."""

import sys

from setuptools import setup

if not (3, 10) <= sys.version_info[:2] <= (3, 13):
    sys.exit(
        f"python={sys.version.split()[0]} cannot run obert_modifiers; expected Python"
        " 3.10 to 3.13, as transformers 5 needs 3.10; install with python3.11 -m pip"
    )

setup()
