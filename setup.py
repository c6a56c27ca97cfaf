"""Settings live in pyproject.toml; compiled kernels will be built from here by CMakeLists.txt."""

from setuptools import setup

setup()
