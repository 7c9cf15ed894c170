"""Settings: what is read, what is refused and how it is said, and that the manual tells the truth about them."""

import re
from pathlib import Path

import pytest

from controller.addresses import is_host, join_address, split_address
from controller.config import ConfigInvalid, Settings, load

MANUAL = Path(__file__).parents[2] / "docs" / "controller.md"


def write(folder: Path, text: str) -> Path:
    (folder / "controller.toml").write_text(text)
    return folder / "controller.toml"


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path, ""), {})
    assert settings == Settings()
    assert settings.database_url == "sqlite:////var/lib/backup-manager/controller/controller.db"


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, 'tick_seconds = 2\nlisten = "127.0.0.1:1"\nhost_names = ["a.example"]')
    settings = load(
        file, {"BM_CONTROLLER_TICK_SECONDS": "3", "BM_CONTROLLER_HOST_NAMES": "b.example, 192.0.2.1", "PATH": "/"}
    )
    assert settings.tick_seconds == 3
    assert settings.listen == "127.0.0.1:1"
    assert settings.host_names == ("b.example", "192.0.2.1")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tick_second = 2", "tick_second"),
        ("heartbeat_seconds = 0", "heartbeat_seconds"),
        ('heartbeat_seconds = "many"', "heartbeat_seconds"),
        ('listen = "nowhere"', "listen"),
        ('agent_listen = "::1:70"', "agent_listen"),
        ('listen = "127.0.0.1:70000"', "listen"),
        ('state_folder = "relative"', "state_folder"),
        ('database = "mysql://x"', "database"),
        ('host_names = ["not a name"]', "host_names"),
        ('log_level = "loud"', "log_level"),
        ("tick_seconds = -1", "tick_seconds"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_and_file(tmp_path: Path, text: str, key: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigInvalid) as refusal:
        load(file, {})
    assert f"{key} in {file}: " in str(refusal.value)


def test_a_variable_that_is_no_key_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="environment variable BM_CONTROLLER_LISTN: is not a known key"):
        load(write(tmp_path, ""), {"BM_CONTROLLER_LISTN": "127.0.0.1:1"})


def test_a_refusal_never_repeats_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid) as refusal:
        load(write(tmp_path, ""), {"BM_CONTROLLER_DATABASE": "mysql://user:hunter2@host/x"})
    assert "hunter2" not in str(refusal.value)


@pytest.mark.feature("S28")
def test_a_database_password_is_not_printed_with_the_settings(tmp_path: Path) -> None:
    settings = load(write(tmp_path, 'database = "postgresql://user:hunter2@host/x"'), {})
    assert "hunter2" not in repr(settings)


def test_a_file_that_is_missing_or_not_toml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot read"):
        load(tmp_path / "missing.toml", {})
    with pytest.raises(ConfigInvalid, match="is not TOML"):
        load(write(tmp_path, "= ="), {})


@pytest.mark.parametrize("text", ["127.0.0.1:0", "backup.example:7440", "[::1]:7440", "localhost:65535"])
def test_addresses_are_read_and_written_alike(text: str) -> None:
    assert join_address(*split_address(text)) == text


@pytest.mark.parametrize("text", ["", "a b", "a..b", "-a", "a" * 64, "1.2.3", "300.1.1.1", "a/b", "[::1]", "a\n"])
def test_what_is_no_host_is_not_taken_for_one(text: str) -> None:
    assert not is_host(text)


def test_the_manual_lists_every_setting_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", MANUAL.read_text(), re.MULTILINE)
    documented = {key: (default, meaning) for key, default, meaning in rows}
    wanted = {key: (_shown(field.default), field.description) for key, field in Settings.model_fields.items()}
    assert documented == wanted


def _shown(value: object) -> str:
    if value in {"", ()}:
        return "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"
