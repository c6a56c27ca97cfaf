"""Settings live in pyproject.toml. This file is where setuptools will meet CMake's kernels."""

from setuptools import setup

setup()
