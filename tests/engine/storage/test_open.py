"""Opening a storage from its settings."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import InvalidSpec
from engine.spec import LocalConfig, SftpConfig, StorageSpec
from engine.storage.open import open_storage

SFTP = SftpConfig(host="h", username="u", path="/p", private_key="")


@pytest.mark.feature("S3")
def test_the_type_decides(tmp_path):
    with open_storage(StorageSpec("r", "i", local=LocalConfig(str(tmp_path)))) as storage:
        assert storage.label == f"local:{tmp_path}"


@pytest.mark.parametrize("configs", [{}, {"local": LocalConfig("/p"), "sftp": SFTP}])
def test_exactly_one_type_must_be_set(configs):
    with pytest.raises(InvalidSpec):
        open_storage(StorageSpec("r", "i", **configs))


def test_a_local_storage_loads_no_ssh():
    """paramiko costs 0.2 s of CPU time and 20 MiB; an engine that does not need it does not pay."""
    program = (
        "import sys; from engine.spec import *; from engine.storage.open import open_storage;"
        "open_storage(StorageSpec('r', 'i', local=LocalConfig('/tmp'))); import engine.storage.sftp;"
        "sys.exit('paramiko' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[3], check=False)
    assert done.returncode == 0
