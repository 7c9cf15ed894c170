"""`bm-engine bundle`: fetch a recovery bundle of the controller from a storage, sealed as it is (N11).

It asks for no key and no passphrase: what it fetches opens with the recovery key alone, in `bm-controller restore`.
"""

import argparse
import os
from pathlib import Path

from engine import bundles
from engine.cli import print_json
from engine.cli_storage import load_storage_file
from engine.errors import ObjectNotFound, TargetError
from engine.storage.open import open_storage
from engine.units import human_bytes


def fetch(options: argparse.Namespace) -> int:
    """Fetch the newest whole bundle, or the one with an id, into a new file."""
    with open_storage(load_storage_file(options.storage)) as storage:
        whole = [one for one in bundles.find(storage) if one.whole and options.id in {"", one.bundle_id}]
        if not whole:
            raise ObjectNotFound(storage=options.storage, step="find", name=f"{bundles.FOLDER}/{options.id}")
        found = whole[-1]
        data = bundles.read(storage, found)
    _write_new(Path(options.to), data)
    if options.output == "json":
        print_json({"bundle_id": found.bundle_id, "file": options.to, "stored_bytes": len(data)})
    else:
        print(f"bundle {found.bundle_id}, {human_bytes(len(data))}: {options.to}")
        print(f"On the new controller: bm-controller restore {options.to}")
    return 0


def _write_new(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
