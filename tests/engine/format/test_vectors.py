"""The vectors never change, every reader reads them, and FORMAT.md shows them as they are."""

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.format import keys, manifest, names
from engine.format.markers import Deleted, Intent, Repository
from tests import independent_reader
from tests.engine.format import samples
from tests.vectors import chains, generate

EXPECTED: dict[str, Any] = json.loads((generate.FOLDER / "expected.json").read_text())
IMAGES = [
    (backup_id, disk, digest) for backup_id, disks in EXPECTED["images"].items() for disk, digest in disks.items()
]


def objects_of(kind: str) -> samples.Objects:
    folder = generate.FOLDER / kind
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.feature("T12", "T13", "T14", "T16")
def test_generating_again_gives_the_same_bytes():
    committed = {
        str(path.relative_to(generate.FOLDER)): path.read_bytes()
        for path in generate.FOLDER.rglob("*")
        if path.is_file() and path.suffix in {".data", ".json"}
    }

    assert generate.all_files(generate.records()) == committed


@pytest.mark.feature("T12", "T13", "T14", "T16")
@pytest.mark.parametrize("kind", ["plain", "sealed"])
@pytest.mark.parametrize(("backup_id", "disk", "digest"), IMAGES)
def test_our_reader_restores_every_vector(kind, backup_id, disk, digest):
    key = samples.SERVER_KEY if kind == "sealed" else None

    image = samples.restore(objects_of(kind), backup_id, disk, key)

    assert hashlib.sha256(image).hexdigest() == digest


@pytest.mark.feature("T12", "T13", "T14", "T16")
@pytest.mark.parametrize("kind", ["plain", "sealed"])
@pytest.mark.parametrize(("backup_id", "disk", "digest"), IMAGES)
def test_the_independent_reader_restores_every_vector(kind, backup_id, disk, digest):
    passphrase = EXPECTED["passphrases"][0] if kind == "sealed" else ""

    image = independent_reader.restore(generate.FOLDER / kind, EXPECTED["server_id"], backup_id, disk, passphrase)

    assert hashlib.sha256(image).hexdigest() == digest


@pytest.mark.feature("T1", "T2", "T3", "T4")
@pytest.mark.parametrize("kind", ["chain-plain", "chain-sealed"])
@pytest.mark.parametrize("step", chains.steps(), ids=lambda step: step.type)
def test_both_readers_restore_every_type_of_backup(kind, step):
    key = samples.SERVER_KEY if kind == "chain-sealed" else None
    passphrase = EXPECTED["passphrases"][1] if key else ""
    expected = json.loads((generate.FOLDER / "chains.json").read_text())[step.backup_id]

    ours = samples.restore(objects_of(kind), step.backup_id, "vda", key)
    theirs = independent_reader.restore(generate.FOLDER / kind, samples.SERVER, step.backup_id, "vda", passphrase)

    assert ours == theirs == step.image
    assert hashlib.sha256(ours).hexdigest() == expected


@pytest.mark.feature("T3", "R19")
@pytest.mark.parametrize("kind", ["chain-plain", "chain-sealed"])
def test_a_differential_is_restored_without_what_lies_between_it_and_the_full(kind):
    key = samples.SERVER_KEY if kind == "chain-sealed" else None
    between = f"servers/{samples.SERVER}/{samples.INCREMENTAL}/"
    objects = {name: data for name, data in objects_of(kind).items() if not name.startswith(between)}
    images = {step.backup_id: step.image for step in chains.steps()}

    for backup_id in (chains.DIFFERENTIAL, chains.LATER):
        assert samples.restore(objects, backup_id, "vda", key) == images[backup_id]


@pytest.mark.feature("N12", "S25")
def test_the_independent_reader_takes_the_second_passphrase_and_no_other(tmp_path):
    args = (generate.FOLDER / "sealed", EXPECTED["server_id"], samples.FULL, "vda")
    first = independent_reader.restore(*args, EXPECTED["passphrases"][0])

    assert independent_reader.restore(*args, EXPECTED["passphrases"][1]) == first
    with pytest.raises(independent_reader.Damaged):
        independent_reader.restore(*args, "another passphrase")


def test_the_independent_reader_is_a_program(tmp_path):
    shutil.copytree(generate.FOLDER / "plain", tmp_path / "storage")
    program = [sys.executable, independent_reader.__file__, str(tmp_path / "storage")]

    subprocess.run(
        [*program, EXPECTED["server_id"], samples.FULL, "vda", str(tmp_path / "vda.raw")], check=True, timeout=60
    )

    digest = hashlib.sha256((tmp_path / "vda.raw").read_bytes()).hexdigest()
    assert digest == EXPECTED["images"][samples.FULL]["vda"]


def test_the_independent_reader_imports_nothing_of_ours():
    source = Path(independent_reader.__file__).read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert imported <= sys.stdlib_module_names | {"cryptography", "zstandard"}
    assert len(source.splitlines()) < 300


@pytest.mark.feature("N12", "S26", "S29", "T25")
def test_every_object_of_the_vectors_is_known_and_loads():
    for kind in ("plain", "sealed", "chain-plain", "chain-sealed"):
        key = samples.SERVER_KEY if kind.endswith("sealed") else None
        for name, data in objects_of(kind).items():
            load(name, data, key)


def load(name: str, data: bytes, key: Any) -> None:
    parsed = names.parse(name)
    assert parsed is not None, name
    match parsed.kind:
        case "repository":
            assert Repository.load(data, "vectors").installation_id == samples.INSTALLATION
        case "key":
            opened = keys.unwrap_key(keys.KeyObject.load(data, name), EXPECTED["passphrases"][0])
            assert opened.secret.hex() == EXPECTED["storage_key"]
        case "intent":
            assert Intent.load(data, name).job_id == "job-1"
        case "deleted":
            assert Deleted.load(data, name).job_id == "job-2"
        case "manifest":
            sealed = manifest.load_disk(data, name, key).sealed
            assert sealed is not None
            assert sealed["format"] == "qcow2"
        case "backup":
            server = manifest.load_server(data, name, key)
            assert server.sealed is not None
            assert server.sealed.domain_xml.startswith("<domain>")
            assert not key or keys.KeyObject.load(server.wrapped_key.encode(), name).key_id == key.key_id
        case "segment":
            assert data.startswith(b"\x89BMSEG")


def test_the_format_page_shows_the_vectors():
    files = {
        f"tiny/{name}.data": (generate.FOLDER / "tiny" / f"{name}.data").read_bytes() for name in ("plain", "sealed")
    }
    page = generate.FORMAT_PAGE.read_text()

    for name, block in generate.examples(files).items():
        assert f"<!-- example: {name} -->\n```\n{block}\n```\n" in page


@pytest.mark.parametrize("kind", ["plain", "sealed"])
def test_both_readers_read_the_page_itself(kind):
    block = generate.FORMAT_PAGE.read_text().split(f"<!-- example: {kind}.data -->\n```\n")[1].split("```")[0]
    rows = [line[8:55] for line in block.splitlines() if line.startswith("  ")]
    data = bytes.fromhex("".join(rows))
    name = names.segment_name(samples.SERVER, samples.FULL, "vda", 0)
    key = samples.SERVER_KEY if kind == "sealed" else None
    ours, theirs = bytearray(b"\xff" * 8192), bytearray(b"\xff" * 8192)

    samples.apply(ours, {name: data}, name, None, key)
    place = (samples.SERVER, samples.FULL, "vda", 0)
    independent_reader.Segment(data, place, key.secret if key else None).write_to(theirs)

    assert ours == theirs == b"\xff" * 512 + b"sixteen raw byte" + b"\xff" * 3568 + bytes(4096)
