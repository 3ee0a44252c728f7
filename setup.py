"""Shim for tools that want a setup.py; the metadata is in setup.cfg."""

import sys

from setuptools import setup

if not (3, 10) <= sys.version_info[:2] <= (3, 11):
    sys.exit(
        f"python={sys.version.split()[0]} cannot run obert_modifiers; expected Python"
        " 3.10 or 3.11: transformers 5 needs 3.10, and sparseml 1.8.0 needs onnx<1.15,"
        " which has no wheels for 3.12 and later; install with python3.11 -m pip"
    )

setup()
