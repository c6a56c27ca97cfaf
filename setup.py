"""A bridge: settings live in pyproject.toml, sources and flags of flamvid._C in CMakeLists.txt."""

import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


def missing() -> str:
    """Why the kernels can't be built here; empty if they can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not importable (pip install --no-build-isolation shows the build yours)"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    return "" if compiler and shutil.which("cmake") else "no C++ compiler or no cmake"


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        from torch.utils.cpp_extension import include_paths, library_paths

        build = Path(self.build_temp).resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        flags = {
            "CMAKE_BUILD_TYPE": "Release",
            "TORCH_INCLUDE_DIRS": ";".join(include_paths()),
            "TORCH_LIBRARY_DIRS": ";".join(library_paths()),
            "PYTHON_INCLUDE_DIR": sysconfig.get_path("include"),
        }
        defines = [f"-D{name}={value}" for name, value in flags.items()]
        subprocess.run(["cmake", "-S", Path(__file__).parent, "-B", build, *defines], check=True)
        subprocess.run(["cmake", "--build", build], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", target], check=True)


wanted = os.environ.get("FLAMVID_BUILD_KERNELS", "auto")
reason = "FLAMVID_BUILD_KERNELS=0" if wanted == "0" else missing()
if reason and wanted == "1":
    raise SystemExit(f"flamvid: FLAMVID_BUILD_KERNELS=1, but {reason}")
if reason:
    print(f"flamvid: kernels are not built: {reason}; the PyTorch references serve")
    setup()
else:
    setup(
        ext_modules=[Extension("flamvid._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
