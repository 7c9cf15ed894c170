"""Generate clients/gen from protos/: `python -m clients.generate [FOLDER]`. Deterministic: two runs are byte-equal.

grpcio-tools writes modules that import `backupmanager...` as a top-level package; ours live below `clients.gen`, so the
imports (and the module names that pickle and repr use) are rewritten. Method paths and descriptor names stay untouched.
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "clients" / "gen"


def generate(target: Path) -> None:
    """Write the generated package to `target`, replacing what is there."""
    import grpc_tools
    from grpc_tools import protoc

    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for protoc-gen-mypy
    sources = sorted(str(path.relative_to(ROOT / "protos")) for path in (ROOT / "protos").rglob("*.proto"))
    with tempfile.TemporaryDirectory() as folder:
        flags = [f"--{kind}={option}{folder}" for kind, option in OUTPUTS.items()]
        includes = [f"-I{ROOT / 'protos'}", f"-I{Path(grpc_tools.__file__).parent / '_proto'}"]
        if protoc.main(["protoc", *includes, *flags, *sources]) != 0:
            raise SystemExit("protoc failed")
        _rewrite(Path(folder))
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)


OUTPUTS = {"python_out": "", "grpc_python_out": "", "mypy_out": "quiet:", "mypy_grpc_out": "quiet,only_async:"}


def _rewrite(folder: Path) -> None:
    for path in sorted(folder.rglob("*.py*")):
        service = path.name.split("_pb2")[0].endswith("_service")
        if "_pb2_grpc." in path.name and not service:
            path.unlink()
            continue
        text = path.read_text()
        text = re.sub(r"^(from|import) backupmanager\b", r"\1 clients.gen.backupmanager", text, flags=re.MULTILINE)
        text = text.replace("DESCRIPTOR, 'backupmanager.", "DESCRIPTOR, 'clients.gen.backupmanager.")
        path.write_text(text)
    for inside in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        (inside / "__init__.py").write_text("")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
