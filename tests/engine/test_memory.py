"""Bounds on a whole engine process's memory, a little above what it takes; `make bench` has the figures."""

import hashlib
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.memory import constant_areas
from engine.units import MIB
from tests.bench.memory import TIB, peak_of

PLAIN_MIB_MAX, ENCRYPTED_MIB_MAX, FURTHER_MIB_MAX = 56, 62, 25


def make_image(path: Path) -> Path:
    """Write half of what cannot be compressed, half of what can."""
    path.write_bytes(random.Random(1).randbytes(32 * MIB) + b"some text " * (32 * MIB // 10))
    return path


@pytest.mark.feature("P10")
def test_the_size_of_a_disk_costs_no_memory(tmp_path: Path, libvirtd: Any) -> None:
    image = make_image(tmp_path / "disk.raw")
    with image.open("r+b") as file:
        file.truncate(4 * TIB)
    assert 20 < peak_of(tmp_path / "one", libvirtd.uri, image, 1, encrypted=True) <= ENCRYPTED_MIB_MAX


@pytest.mark.feature("P10")
def test_a_further_server_costs_less_than_the_first(tmp_path: Path, libvirtd: Any) -> None:
    image = make_image(tmp_path / "disk.raw")
    peak = peak_of(tmp_path / "three", libvirtd.uri, image, 3, encrypted=False)
    assert 20 < peak <= PLAIN_MIB_MAX + 2 * FURTHER_MIB_MAX


def mapping(begin: int, end: int, permissions: str, inode: int, changed_kib: int = 0) -> str:
    return (
        f"{begin:x}-{end:x} {permissions} 00000000 fe:00 {inode}    /usr/lib/libexample.so\n"
        f"Size: {(end - begin) // 1024} kB\nRss: 4 kB\nAnonymous: {changed_kib:>8} kB\nVmFlags: rd mr mw me\n"
    )


@pytest.mark.feature("P10")
def test_only_what_is_as_the_file_has_it_is_given_back() -> None:
    library = [
        mapping(0x1000, 0x2000, "r--p", 7),
        mapping(0x2000, 0x5000, "r-xp", 7),
        mapping(0x5000, 0x6000, "r--p", 7),
        mapping(0x6000, 0x7000, "r--p", 7, changed_kib=4),  # relocated, and then protected
        mapping(0x7000, 0x8000, "rw-p", 7, changed_kib=4),
    ]
    being_loaded = [
        mapping(0x10000, 0x11000, "r--p", 8),
        mapping(0x11000, 0x12000, "r-xp", 8),
        mapping(0x12000, 0x14000, "r--p", 8),  # whose end becomes the writable part
    ]
    others = [
        mapping(0x20000, 0x21000, "r--p", 9),
        mapping(0x30000, 0x31000, "rw-p", 0),
        mapping(0x32000, 0x33000, "r--s", 10),
    ]

    assert constant_areas("".join(library + being_loaded + others)) == [
        (0x1000, 0x2000),
        (0x2000, 0x5000),
        (0x5000, 0x6000),
    ]


@pytest.mark.feature("P10")
def test_a_process_goes_on_without_what_it_gave_back() -> None:
    """Code, constants and relocated tables of everything loaded are used afterwards, in a process that has been asked to."""
    script = """
import hashlib, json, re, sys, threading
import libvirt
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from engine.memory import give_back_libraries

def resident():
    return int(re.search(r"RssFile:\\s+(\\d+)", open("/proc/self/status").read())[1])

before = resident()
give_back_libraries()
after = resident()
box = ChaCha20Poly1305(bytes(32)).encrypt(bytes(12), b"x", b"")
import ssl, sqlite3, xml.dom.minidom
threading.Thread(target=give_back_libraries).start()
assert ChaCha20Poly1305(bytes(32)).decrypt(bytes(12), box, b"") == b"x"
assert libvirt.open("test:///default").listAllDomains()
ssl.create_default_context()
json.dump([before, after, hashlib.sha256(b"x").hexdigest()], sys.stdout)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    before, after, digest = json.loads(done.stdout)
    assert after < before / 2
    assert digest == hashlib.sha256(b"x").hexdigest()


@pytest.mark.feature("P10", "S4")
def test_a_session_over_ssh_does_not_bring_along_what_it_never_uses() -> None:
    """Of the SSH library's own imports one brings asyncio and unittest; whoever wants that one afterwards still gets it."""
    script = """
import json, sys, threading
from engine.storage.sftp_library import load

threads = [threading.Thread(target=load) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
json.dump(sorted(name for name in ("paramiko", "invoke", "asyncio", "unittest") if name in sys.modules), sys.stdout)
import invoke
assert invoke.run
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout) == ["paramiko"]
