"""Builds the native library (docs/decisions/0007-a-native-linear-layer.md); all else stands in pyproject.toml.

Without a compiler or OpenVINO's headers the package is installed without the library, with a warning;
`QEfficient.devices.cpu.native.why_missing()` tells.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CompileError, LinkError

FOLDER = Path("QEfficient/devices/cpu/native")
PREFIX, SUFFIX = "libqefficient-openvino-", ".so"
LINKED = ("libopenvino.so", "libtbb.so")
# No contraction: which products and sums are fused is written out, or results would depend on the instruction set.
# The warning is about GCC's own headers, hundreds of times.
COMPILING = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-maybe-uninitialized"]


class BuildLibrary(build_ext):
    """Builds a plain shared library, named after the OpenVINO that it is linked to, or warns that it could not."""

    def run(self) -> None:
        for old in FOLDER.glob(f"{PREFIX}*{SUFFIX}") if self.inplace or self.editable_mode else ():
            old.unlink()  # a failed build must not leave the library of other sources behind
        super().run()

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")[:-1], f"{PREFIX}{_version() or 'none'}{SUFFIX}"))

    def build_extension(self, extension: Extension) -> None:
        try:
            _prepare(extension)
            super().build_extension(extension)
        except (BaseError, CompileError, LinkError, OSError, LookupError) as error:
            self.warn(f"the native library is not built, linear layers will run on OpenVINO's own kernels: {error}")


class AnyPythonWheel(bdist_wheel):
    """The library depends on the platform, not on the version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def _version() -> str | None:
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def _prepare(extension: Extension) -> None:
    spec = importlib.util.find_spec("openvino")
    if not sys.platform.startswith("linux") or spec is None or spec.origin is None:
        raise LookupError("this is not Linux" if spec else "OpenVINO is not installed where it is built")
    openvino = Path(spec.origin).parent
    libraries = [path for name in LINKED for path in (openvino / "libs").glob(f"{name}.*")]
    if len(libraries) != len(LINKED):
        raise LookupError(f"{openvino / 'libs'} has {[path.name for path in libraries]} of {LINKED}")
    extension.include_dirs = [str(openvino / "include")]
    extension.extra_objects = [str(path) for path in libraries]
    extension.extra_compile_args = [*COMPILING, f"-fmacro-prefix-map={openvino.parent}/="]
    extension.extra_link_args = ["-s", "-Wl,-rpath,$ORIGIN/../../../../openvino/libs"]


setup(
    ext_modules=[
        Extension(
            "QEfficient.devices.cpu.native.libqefficient",
            sources=sorted(str(path) for path in FOLDER.glob("*.cpp")),
            depends=sorted(str(path) for path in FOLDER.glob("*.hpp")),
            language="c++",
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel},
)
