"""A bridge: settings live in pyproject.toml, sources and flags of flamvid._C in CMakeLists.txt.

FLAMVID_BUILD_KERNELS=auto (default) skips the kernels with one line where torch or a compiler is
absent; 1 makes that an error; 0 skips them. A compile that fails always is an error.
FLAMVID_BUILD_CUDA=auto|1|0 is the same for their CUDA side.
"""

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# A virtual environment's tools, also where it is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def torch_folder() -> Path | None:
    """Torch of the environment that flamvid goes to, which pip's isolation hides from import."""
    spec = importlib.util.find_spec("torch")
    found = [Path(p) for p in spec.submodule_search_locations or ()] if spec else []
    folders = [*found, Path(sysconfig.get_path("platlib")) / "torch"]
    return next((f for f in folders if (f / "version.py").is_file()), None)


def torch_says(name: str) -> str:
    """A line of torch/version.py; read and not imported, which takes seconds."""
    text = (TORCH / "version.py").read_text() if TORCH else ""
    line = re.search(rf"^{name}\b[^=\n]*= *'([^']*)'", text, re.MULTILINE)
    return line[1] if line else ""


def missing() -> str:
    """Why the kernels can't be built here; empty if they can."""
    if TORCH is None:
        return "torch is not there at build time (install it first)"
    release = torch_says("__version__")
    if [int(n) for n in re.findall(r"\d+", release)[:2]] < [2, 11]:
        return f"torch {release} is older than 2.11"
    if not any(map(shutil.which, (os.environ.get("CXX", ""), "c++", "g++", "clang++"))):
        return "no C++ compiler (install one, or name it in CXX)"
    tools = [name for name in ("cmake", "ninja") if not shutil.which(name)]
    return f"no {' or '.join(tools)} (pip install 'cmake>=3.28' ninja)" if tools else ""


def missing_cuda() -> str:
    """Why their CUDA side can't be built here; empty if it can."""
    if not torch_says("cuda"):
        return "this torch has no CUDA"
    if not shutil.which("nvcc"):
        return "no nvcc"
    output = {
        tool: subprocess.run([tool, "--version"], capture_output=True, text=True).stdout
        for tool in ("nvcc", "cmake")
    }
    major = torch_says("cuda").partition(".")[0]
    if f"release {major}." not in output["nvcc"]:
        return f"nvcc is not of CUDA {major}, as torch is"
    version = [int(n) for n in re.findall(r"\d+", output["cmake"])[:2]]
    return "" if version >= [3, 28] else "cmake is older than 3.28 (pip install 'cmake>=3.28')"


def asked(variable: str, reason: str, what: str) -> bool:
    """Whether to build, as the variable and the reason against it say; one line if not."""
    wish = os.environ.get(variable, "auto")
    if wish not in ("auto", "0", "1"):
        raise SystemExit(f"flamvid: {variable} is {wish!r}; must be auto, 0 or 1")
    if wish == "1" and reason:
        raise SystemExit(f"flamvid: {variable}=1, but {reason}")
    if wish == "0" or reason:
        print(f"flamvid: {what} not built: {reason or variable + '=0'}", file=sys.stderr)
        return False
    return True


class CMakeBuild(build_ext):
    """Configure, build and install by CMake."""

    def build_extension(self, ext: Extension) -> None:
        assert TORCH is not None
        include = TORCH / "include"
        cuda = asked("FLAMVID_BUILD_CUDA", missing_cuda(), "CUDA kernels are")
        flags = {
            "CMAKE_BUILD_TYPE": "Release",
            "TORCH_INCLUDE_DIRS": f"{include};{include / 'torch/csrc/api/include'}",
            "TORCH_LIBRARY_DIRS": str(TORCH / "lib"),
            "PYTHON_INCLUDE_DIR": sysconfig.get_path("include"),
            "FLAMVID_CUDA": "ON" if cuda else "OFF",
        }
        if architectures := os.environ.get("CUDAARCHS"):  # as CMake has it
            flags["FLAMVID_CUDA_ARCHITECTURES"] = architectures
        defines = [f"-D{name}={value}" for name, value in flags.items()]
        # One folder for each torch and Python: what did not change is not compiled again.
        key = hashlib.sha256("\n".join([*defines, torch_says("__version__")]).encode()).hexdigest()[
            :8
        ]
        build = (ROOT / "build" / f"kernels-{key}").resolve()
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # Said anew each time: the ninja of the last build lay in an environment that is gone.
        defines.append(f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja')}")
        subprocess.run(["cmake", "-S", ROOT, "-B", build, "-G", "Ninja", *defines], check=True)
        subprocess.run(["cmake", "--build", build], check=True)
        subprocess.run(["cmake", "--install", build, "--prefix", target], check=True)


TORCH = torch_folder()
if asked("FLAMVID_BUILD_KERNELS", missing(), "kernels are"):
    setup(
        ext_modules=[Extension("flamvid._C", sources=[], py_limited_api=True)],
        cmdclass={"build_ext": CMakeBuild},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
else:
    setup()
