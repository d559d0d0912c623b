"""Packs turbo.js into wheels; everything else is declared in pyproject.toml.

A wheel holds turbo.js, so that pages load it from the application instead of a CDN; neither the
repository nor the source distribution does. The build fetches it by npm and checks its hash.
``FLASK_SOCKETS2_TURBO`` says how much that matters:

=============  =====================================================================================
``auto``       the default: where it cannot be had, a warning, and a wheel without it
``require``    where it cannot be had, the build fails; for wheels to publish
``skip``       a wheel without it; npm is not called
=============  =====================================================================================
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.errors import SetupError

VARIABLE = "FLASK_SOCKETS2_TURBO"
MODES = ("auto", "require", "skip")
TURBO = Path("flask_sockets2", "turbo")


def load_npm() -> ModuleType:
    """Return ``flask_sockets2.turbo.npm``, whose package cannot be imported without Flask."""
    spec = importlib.util.spec_from_file_location("npm", Path(__file__).parent / TURBO / "npm.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildPy(build_py):
    """Builds the modules, then adds turbo.js and its licence beside those of Turbo."""

    def run(self) -> None:
        mode = os.environ.get(VARIABLE) or MODES[0]
        if mode not in MODES:
            raise SetupError(f"expected {VARIABLE} to be one of {', '.join(MODES)}, got {mode!r}")
        self.vendored: list[str] = []
        super().run()
        if self.editable_mode:
            return
        # What a build before this one has left in build/ would get into the wheel.
        shutil.rmtree(self.vendored_folder(), ignore_errors=True)
        if mode != "skip":
            self.vendor(required=mode == "require")

    def vendored_folder(self) -> Path:
        return Path(self.build_lib, TURBO, "vendored")

    def vendor(self, *, required: bool) -> None:
        npm = load_npm()
        try:
            files = npm.files_of(npm.fetch())
        except npm.Unobtainable as exc:
            if required:
                raise SetupError(f"{exc}; {VARIABLE}=auto builds without turbo.js") from exc
            self.warn(f"{exc}; built without turbo.js, so pages will load it from a CDN")
            return
        paths = npm.write({npm.UMD: files[npm.UMD]}, self.vendored_folder())
        self.vendored = [str(path) for path in paths]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *getattr(self, "vendored", ())]


setup(cmdclass={"build_py": BuildPy})
