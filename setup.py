"""Shim for tools that want a setup.py; the metadata is in setup.cfg."""

import sys

from setuptools import setup

if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(
        f"python={sys.version.split()[0]} cannot run obert_modifiers; expected Python"
        " 3.11 to 3.14; install with one of them, such as python3.13 -m pip"
    )

setup()
