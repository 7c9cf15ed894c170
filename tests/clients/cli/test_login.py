"""Whom bmctl trusts and as whom it comes: pinned once, refused when it changes, and never seen where others look."""

import json
import stat
from pathlib import Path

import pytest

from tests.clients.authority import Authority
from tests.clients.bmctl import Bmctl
from tests.clients.canned import TOKEN, Canned


@pytest.fixture
def fresh(tmp_path: Path) -> Bmctl:
    """bmctl that knows no controller."""
    return Bmctl(tmp_path)


@pytest.mark.feature("N3", "N4", "S28")
def test_a_script_logs_in_with_fingerprint_and_token_file(fresh: Bmctl, canned: Canned, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")

    ended = fresh(
        "login", canned.address, "--fingerprint", canned.authority.fingerprint, "--token-file", str(tmp_path / "token")
    )

    assert ended.code == 0, ended.err
    assert TOKEN not in ended.out + ended.err
    assert stat.S_IMODE(fresh.profile.stat().st_mode) == 0o600
    assert stat.S_IMODE(fresh.profile.parent.stat().st_mode) == 0o700
    saved = json.loads(fresh.profile.read_text())
    assert (saved["token"], saved["fingerprint"]) == (TOKEN, canned.authority.fingerprint)
    assert fresh("server", "list").code == 0


@pytest.mark.feature("N3")
def test_a_person_compares_the_fingerprint(fresh: Bmctl, canned: Canned) -> None:
    with fresh.on_terminal("login", canned.address) as terminal:
        terminal.wait_for("Is it the same?")
        shown = terminal.screen().replace(" ", "")
        terminal.write("y\n")
        terminal.wait_for("The access token: ")
        terminal.write(f"{TOKEN}\n")
        assert terminal.end() == 0, terminal.screen()
        assert TOKEN not in terminal.screen()

    assert canned.authority.fingerprint in shown
    assert "Logged in" in terminal.screen()


@pytest.mark.feature("N3")
def test_a_no_keeps_nothing(fresh: Bmctl, canned: Canned) -> None:
    with fresh.on_terminal("login", canned.address) as terminal:
        terminal.wait_for("Is it the same?")
        terminal.write("\n")
        assert terminal.end() == 8
    assert not fresh.profile.exists()
    assert not canned.calls


@pytest.mark.feature("N3")
def test_nobody_to_ask_is_a_usage_error(fresh: Bmctl, canned: Canned) -> None:
    ended = fresh("login", canned.address, BMCTL_TOKEN=TOKEN)
    assert ended.code == 2
    assert "--fingerprint" in ended.err
    assert not fresh.profile.exists()


@pytest.mark.feature("N3")
def test_another_fingerprint_than_the_given_is_refused(fresh: Bmctl, canned: Canned) -> None:
    ended = fresh("login", canned.address, "--fingerprint", "00" * 32, BMCTL_TOKEN=TOKEN, BMCTL_OUTPUT="json")
    assert (ended.code, ended.error["reason"]) == (5, "AUTHORITY_CHANGED")
    assert ended.error["facts"]["seen"] == canned.authority.fingerprint
    assert not canned.calls  # the token went nowhere
    assert fresh("login", canned.address, "--fingerprint", "abc", BMCTL_TOKEN=TOKEN).code == 2


@pytest.mark.feature("N3")
def test_a_changed_authority_is_refused_everywhere(fresh: Bmctl, canned: Canned) -> None:
    fresh.log_in(canned.address, Authority(), TOKEN)  # whom we knew at this address before
    before = fresh.profile.read_text()

    for verb in (("login", canned.address), ("server", "list")):
        ended = fresh(*verb, BMCTL_TOKEN=TOKEN, BMCTL_OUTPUT="json")
        assert (ended.code, ended.error["reason"]) == (5, "AUTHORITY_CHANGED"), verb
    assert fresh.profile.read_text() == before
    assert not canned.calls

    given = fresh("login", canned.address, "--fingerprint", canned.authority.fingerprint, BMCTL_TOKEN=TOKEN)
    assert given.code == 0, given.err  # whoever names the new fingerprint has compared it


def test_a_pinned_authority_is_not_asked_about_again(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("login", canned.address, BMCTL_TOKEN=TOKEN).code == 0


@pytest.mark.feature("N4")
def test_a_token_that_does_not_work_is_not_kept(fresh: Bmctl, canned: Canned) -> None:
    wrong = "bmt_" + "W" * 43
    ended = fresh("login", canned.address, "--fingerprint", canned.authority.fingerprint, BMCTL_TOKEN=wrong)
    assert ended.code == 5
    assert "[UNAUTHENTICATED]" in ended.err
    assert wrong not in ended.out + ended.err
    assert not fresh.profile.exists()


@pytest.mark.feature("S28")
@pytest.mark.parametrize("text", ["bm1.enrollment", "bmt_short", "line\nline", TOKEN + "x"])
def test_what_is_no_token_is_not_sent(fresh: Bmctl, canned: Canned, text: str) -> None:
    ended = fresh(
        "login", canned.address, "--fingerprint", canned.authority.fingerprint, "--token-file", "-", stdin=text
    )
    assert ended.code == 2
    assert text not in ended.err
    assert not canned.calls


@pytest.mark.feature("S28")
def test_a_profile_that_others_read_is_refused(bmctl: Bmctl) -> None:
    bmctl.profile.chmod(0o644)
    ended = bmctl("server", "list")
    assert ended.code == 2
    assert "chmod 600" in ended.err


@pytest.mark.parametrize("text", ["", "not json", '{"version": 9}', '{"version": 1, "address": "a"}', "[]"])
def test_a_damaged_profile_is_an_error_that_quotes_nothing(bmctl: Bmctl, text: str) -> None:
    bmctl.profile.write_text(text)
    ended = bmctl("server", "list", BMCTL_OUTPUT="json")
    assert (ended.code, ended.error["reason"]) == (2, "PROFILE_UNREADABLE")


def test_the_environment_says_another_token(bmctl: Bmctl, canned: Canned) -> None:
    bmctl.log_in(canned.address, canned.authority, "bmt_" + "W" * 43)
    assert bmctl("server", "list").code == 5
    assert bmctl("server", "list", BMCTL_TOKEN=TOKEN).code == 0


@pytest.mark.feature("S28")
def test_what_is_no_token_in_the_environment_is_not_sent(bmctl: Bmctl, canned: Canned) -> None:
    ended = bmctl("server", "list", BMCTL_TOKEN="not\na token")
    assert ended.code == 2
    assert "BMCTL_TOKEN" in ended.err
    assert "a token\n" not in ended.err
    assert not canned.calls


def test_the_profile_follows_xdg(bmctl: Bmctl, canned: Canned, tmp_path: Path) -> None:
    del bmctl.environment["BMCTL_CONFIG"]
    arguments = ("login", canned.address, "--fingerprint", canned.authority.fingerprint)
    assert bmctl(*arguments, BMCTL_TOKEN=TOKEN, XDG_CONFIG_HOME=str(tmp_path / "xdg")).code == 0
    assert (tmp_path / "xdg" / "backup-manager" / "bmctl.json").is_file()
    assert bmctl(*arguments, BMCTL_TOKEN=TOKEN).code == 0
    assert (tmp_path / ".config" / "backup-manager" / "bmctl.json").is_file()


def test_logout_forgets(bmctl: Bmctl) -> None:
    assert bmctl("logout", "-o", "json").json == {"logged_out": True}
    assert not bmctl.profile.exists()
    assert bmctl("logout", "-o", "json").json == {"logged_out": False}


@pytest.mark.feature("S28")
def test_no_option_takes_a_secret() -> None:
    """Whatever is given as an argument, every process of the machine can read."""
    import typer

    from clients.cli import backups, hypervisors, jobs, main, servers, storages, tokens

    checked = 0
    for app in (main.app, backups.app, hypervisors.app, jobs.app, servers.app, storages.app, tokens.app):
        for group in [app, *(one.typer_instance for one in app.registered_groups)]:
            assert group is not None
            if not group.registered_commands:
                continue
            command = typer.main.get_command(group)
            for verb in getattr(command, "commands", {"": command}).values():
                for parameter in verb.params:
                    checked += 1
                    for name in getattr(parameter, "opts", ()):
                        secret = any(word in name for word in ("token", "secret", "password", "passphrase", "key"))
                        allowed = name.endswith("-file") or name in {
                            "--host-key",
                            "--access-key",
                            "token",
                        }  # public, all of them
                        assert not secret or allowed, (verb.name, name)
    assert checked > 100
