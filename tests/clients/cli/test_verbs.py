"""Every verb's request and reply: names where ids are wanted, previews before what destroys, pages read to the end."""

import json
import re
import uuid
from typing import Any

import pytest

from clients.gen.backupmanager.v1 import access_token_pb2, disk_pb2, job_pb2
from tests.clients import rows
from tests.clients.bmctl import Bmctl
from tests.clients.canned import ENROLLMENT_TOKEN, NEW_TOKEN, Canned, completed

READING = {
    ("hypervisor", "list"): "hypervisors",
    ("hypervisor", "show", "hv1"): "hypervisor",
    ("hypervisor", "domains", "hv1"): "domains",
    ("server", "list"): "servers",
    ("server", "show", "web1"): "server",
    ("storage", "list"): "storages",
    ("storage", "show", "offsite"): "storage",
    ("backup", "list"): "backups",
    ("backup", "show", rows.FULL): "backup",
    ("job", "list"): "jobs",
    ("job", "show", rows.FAILED_JOB): "job",
    ("job", "log", rows.JOB): "entries",
    ("token", "list"): "access_tokens",
}


@pytest.mark.parametrize(("arguments", "key"), READING.items(), ids=[" ".join(one[:2]) for one in READING])
def test_what_reads_is_one_document_with_one_key(bmctl: Bmctl, arguments: tuple[str, ...], key: str) -> None:
    ended = bmctl(*arguments, "--output", "json")

    assert (ended.code, ended.err) == (0, "")
    assert set(ended.json) - {"report_time"} == {key}
    first = ended.json[key][0] if isinstance(ended.json[key], list) else ended.json[key]
    assert all(re.fullmatch(r"[a-z0-9_]+", name) for name in first)


@pytest.mark.feature("M5", "M6")
def test_tables_say_names_ages_and_sizes(bmctl: Bmctl) -> None:
    backups = bmctl("backup", "list").out
    assert re.search(rf"{rows.INCREMENTAL} +3 minutes ago +web1 +incremental +● available +400 MiB .*offsite", backups)
    assert "\x1b" not in backups

    jobs = bmctl("job", "list").out
    assert re.search(rf"{rows.FAILED_JOB} +backup +● failed +db1 +5 hours ago .*10 min .*STORAGE_FULL", jobs)


def test_a_terminal_gets_colors_unless_it_wants_none(bmctl: Bmctl) -> None:
    with bmctl.on_terminal("job", "list") as terminal:
        assert terminal.end() == 0
        assert b"\x1b[1;31m\xe2\x97\x8f failed" in terminal.raw
    with bmctl.on_terminal("job", "list", NO_COLOR="1") as terminal:
        assert terminal.end() == 0
        assert b"\x1b[1;31m" not in terminal.raw


def test_empty_lists_say_what_to_do_next(bmctl: Bmctl, canned: Canned) -> None:
    canned.servers, canned.backups, canned.storages = [], [], []
    assert "bmctl server register" in bmctl("server", "list").out
    assert bmctl("backup", "list", "-o", "json").json == {"backups": []}


@pytest.mark.feature("M8")
def test_lists_are_read_to_the_end_or_to_the_limit(bmctl: Bmctl, canned: Canned) -> None:
    one = canned.backups[0]
    canned.backups = [type(one)(backup_id=str(uuid.uuid4()), server_id=rows.WEB1) for _ in range(1203)]

    everything = bmctl("backup", "list", "--limit", "0", "-o", "json").json["backups"]
    assert [row["backup_id"] for row in everything] == [row.backup_id for row in canned.backups]
    assert [call.page_size for call in canned.calls["ListBackups"]] == [1000, 1000]

    some = bmctl("backup", "list", "--limit", "7")
    assert len(some.out.splitlines()) == 2 + 7
    assert "There are more" in some.err


def test_filters_go_along(bmctl: Bmctl, canned: Canned) -> None:
    arguments = ("--server", "web1", "--active", "--state", "failed", "--type", "restore", "--since", "2d")
    assert bmctl("job", "list", *arguments, "-o", "json").code == 0

    asked = canned.calls["ListJobs"][0]
    assert asked.server_id == "web1"
    assert set(asked.states) == {
        job_pb2.JOB_STATE_FAILED,
        job_pb2.JOB_STATE_PENDING,
        job_pb2.JOB_STATE_QUEUED,
        job_pb2.JOB_STATE_DISPATCHED,
        job_pb2.JOB_STATE_RUNNING,
    }
    assert list(asked.types) == [job_pb2.JOB_TYPE_RESTORE]
    assert asked.HasField("start_time")
    assert not asked.HasField("end_time")


@pytest.mark.feature("M14", "N7")
def test_backup_start_says_what_was_asked(bmctl: Bmctl, canned: Canned) -> None:
    one_id = str(uuid.uuid4())
    arguments = ("--type", "full", "--consistency", "freeze", "--disk", "vda", "--disk", "vdb", "--request-id", one_id)
    assert bmctl("backup", "start", "web1", "--storage", "offsite", *arguments).code == 0
    assert bmctl("backup", "start", "web1", "--storage", "offsite").code == 0

    first, second = canned.calls["StartBackup"]
    assert (first.server_id, first.storage_id, list(first.disks)) == ("web1", "offsite", ["vda", "vdb"])
    assert (first.type, first.consistency) == (disk_pb2.BACKUP_TYPE_FULL, disk_pb2.CONSISTENCY_MODE_FREEZE)
    assert first.request_id == one_id
    assert uuid.UUID(second.request_id) != uuid.UUID(one_id)
    assert (second.type, second.consistency) == (0, 0)


@pytest.mark.feature("M15")
def test_restore_shows_what_is_lost_and_asks(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal("backup", "restore", "--server", "web1") as terminal:
        terminal.wait_for("[y/N]")
        assert not canned.calls["StartRestore"]
        shown = terminal.screen()
        terminal.write("y\n")
        assert terminal.end() == 0, terminal.screen()

    for words in ("incremental backup", "What is on vda now is lost", "stopped for it and started again", "40.0 GiB"):
        assert words in shown
    assert rows.INCREMENTAL in shown
    request = canned.calls["StartRestore"][0]
    assert (request.backup_id, request.confirmation) == (rows.INCREMENTAL, "confirmed")
    assert canned.calls["PreviewRestore"][0].server_id == "web1"


@pytest.mark.feature("M15")
def test_what_destroys_needs_yes_where_nobody_can_be_asked(bmctl: Bmctl, canned: Canned) -> None:
    verbs = (
        ("backup", "restore", rows.FULL),
        ("backup", "delete", rows.FULL),
        ("server", "delete", "web1"),
        ("storage", "delete", "nas"),
        ("token", "revoke", "admin"),
    )
    for verb in verbs:
        ended = bmctl(*verb)
        assert (ended.code, ended.out) == (2, ""), verb
        assert "--yes" in ended.err
        assert bmctl(*verb, "--yes", "-o", "json").code == 0, verb
    done = {"StartRestore", "StartDelete", "DeleteServer", "DeleteStorage", "RevokeAccessToken"}
    assert all(len(canned.calls[method]) == 1 for method in done)


def test_ctrl_c_and_the_end_of_input_answer_a_question_with_no(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal("backup", "restore", rows.FULL) as terminal:
        terminal.wait_for("[y/N]")
        terminal.interrupt()
        assert terminal.end() == 130
    with bmctl.on_terminal("backup", "restore", rows.FULL) as terminal:
        terminal.wait_for("[y/N]")
        terminal.write("\x04")  # Ctrl-D
        assert terminal.end() == 8
    assert not canned.calls["StartRestore"]


@pytest.mark.feature("M15")
def test_restore_to_files_overwrites_nothing(bmctl: Bmctl, canned: Canned) -> None:
    ended = bmctl("backup", "restore", rows.FULL, "--to-folder", "/srv/out", "--yes", "-o", "json")

    assert ended.json == {"job_id": rows.JOB}
    assert "new files in /srv/out" in ended.err
    assert "lost" not in ended.err
    preview, request = canned.calls["PreviewRestore"][0], canned.calls["StartRestore"][0]
    assert preview.target_folder == request.target_folder == "/srv/out"


@pytest.mark.feature("C12")
def test_each_disk_can_be_asked_for_alone(bmctl: Bmctl, canned: Canned) -> None:
    assert bmctl("backup", "start", "web1", "--storage", "offsite", "--disk-type", "vdb=full").code == 0
    options = ("--target", "vda=/dev/vg/a=b", "--point", f"vdb={rows.INCREMENTAL}", "--format", "qcow2", "--overwrite")
    ended = bmctl("backup", "restore", rows.FULL, *options, "--yes")

    assert dict(canned.calls["StartBackup"][0].disk_types) == {"vdb": disk_pb2.BACKUP_TYPE_FULL}
    for request in (canned.calls["PreviewRestore"][0], canned.calls["StartRestore"][0]):
        assert dict(request.targets) == {"vda": "/dev/vg/a=b"}
        assert dict(request.points) == {"vdb": rows.INCREMENTAL}
        assert (request.target_format, request.overwrite) == (disk_pb2.IMAGE_FORMAT_QCOW2, True)
    assert "written over" in ended.err
    assert "/dev/vg/a=b" in ended.err


@pytest.mark.parametrize("wrong", ["vdb", "=full", "vdb=", "vdb=daily"])
def test_what_is_not_for_one_disk_is_a_usage_error(bmctl: Bmctl, canned: Canned, wrong: str) -> None:
    ended = bmctl("backup", "start", "web1", "--storage", "offsite", "--disk-type", wrong)

    assert ended.code == 2
    assert "--disk-type" in ended.err
    assert not canned.calls["StartBackup"]


def test_delete_names_what_goes_along(bmctl: Bmctl, canned: Canned) -> None:
    ended = bmctl("backup", "delete", rows.FULL, "--hypervisor", "hv1", "--yes")

    assert re.search(rf"{rows.INCREMENTAL} .*needs one of these", ended.err)
    assert re.search(rf"{rows.FULL} .*asked for", ended.err)
    request = canned.calls["StartDelete"][0]
    assert (list(request.backup_ids), request.confirmation) == ([rows.FULL], "confirmed")
    assert request.hypervisor_id == "hv1"


def test_ids_are_found_for_names(bmctl: Bmctl, canned: Canned) -> None:
    """These calls take ids only; a person says a name."""
    assert bmctl("server", "update", "web1", "--name", "www", "--external-id", "", "--hypervisor", "hv2").code == 0
    assert bmctl("server", "delete", "db1", "--yes").code == 0
    assert bmctl("token", "revoke", "admin", "--yes").code == 0
    assert bmctl("token", "create", "shop", "--scope", "portal", "--lifetime", "90d", "--server", "www").code == 0

    update = canned.calls["UpdateServer"][0]
    assert (update.server.server_id, update.server.etag) == (rows.WEB1, "7")
    assert (update.server.name, update.server.external_id, update.server.hypervisor_id) == ("www", "", rows.HV2)
    assert set(update.update_mask.paths) == {"name", "external_id", "hypervisor_id"}
    assert canned.calls["DeleteServer"][0].server_id == rows.DB1
    assert canned.calls["RevokeAccessToken"][0].access_token_id == rows.ADMIN_TOKEN
    created = canned.calls["CreateAccessToken"][0]
    assert (created.scope, list(created.server_ids)) == (access_token_pb2.ACCESS_SCOPE_PORTAL, [rows.WEB1])
    assert created.lifetime.seconds == 90 * 86_400


def test_a_domain_is_named_by_name_or_uuid(bmctl: Bmctl, canned: Canned) -> None:
    domain_uuid = str(uuid.uuid4())
    assert bmctl("server", "register", "web1", "--hypervisor", "hv1", "--external-id", "4711").code == 0
    assert bmctl("server", "register", domain_uuid.upper(), "--hypervisor", "hv1").code == 0

    by_name, by_uuid = canned.calls["RegisterServer"]
    assert (by_name.domain_name, by_name.domain_uuid, by_name.external_id) == ("web1", "", "4711")
    assert (by_uuid.domain_name, by_uuid.domain_uuid) == ("", domain_uuid)


@pytest.mark.feature("N3", "N4")
def test_what_is_shown_once_is_alone_on_stdout(bmctl: Bmctl, canned: Canned) -> None:
    enrolled = bmctl("hypervisor", "enroll", "hv3", "--lifetime", "2h", "--renew")
    assert enrolled.out == f"{ENROLLMENT_TOKEN}\n"
    assert f"--controller {canned.address}" in enrolled.err
    assert ENROLLMENT_TOKEN not in enrolled.err
    request = canned.calls["CreateEnrollmentToken"][0]
    assert (request.name, request.lifetime.seconds, request.renew) == ("hv3", 7200, True)

    created = bmctl("token", "create", "panel", "--scope", "operator")
    assert created.out == f"{NEW_TOKEN}\n"
    assert NEW_TOKEN not in created.err


def test_a_secret_given_as_a_name_is_not_repeated(bmctl: Bmctl) -> None:
    ended = bmctl("token", "revoke", NEW_TOKEN, "--yes")
    assert ended.code == 3
    assert NEW_TOKEN not in ended.err


@pytest.mark.feature("M7")
def test_cancel(bmctl: Bmctl, canned: Canned) -> None:
    assert "is being cancelled" in bmctl("job", "cancel", rows.JOB).out
    canned.change(rows.JOB, state=job_pb2.JOB_STATE_CANCELLED)
    assert bmctl("job", "cancel", rows.JOB, "-o", "json").json["job"]["state"] == "JOB_STATE_CANCELLED"
    assert bmctl("job", "watch", rows.JOB).code == 8


@pytest.mark.feature("M6")
def test_the_log_is_followed_to_its_end(bmctl: Bmctl, canned: Canned) -> None:
    follower = bmctl.start("job", "log", rows.JOB, "--follow")
    try:
        assert follower.stdout is not None
        lines = [follower.stdout.readline() for _ in range(3)]
        canned.log.append(job_pb2.JobLogEntry(sequence=4, level="info", message="late", time=rows.ago(seconds=1)))
        canned.change(rows.JOB, **completed())
        rest, err = follower.communicate(timeout=30)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == 0, err
    assert "backup of web1 started" in lines[0]
    assert rest.count("\n") == 1
    assert rest.rstrip().endswith("late")
    assert bmctl("job", "log", rows.JOB, "--follow", "-o", "json").code == 2


def test_a_closed_pipe_is_no_error(bmctl: Bmctl) -> None:
    reader = bmctl.start("backup", "list", "-o", "json")
    assert reader.stdout is not None
    assert reader.stderr is not None
    reader.stdout.close()  # as `head` does when it has seen enough
    err = reader.stderr.read()
    reader.stderr.close()
    assert reader.wait(30) in {0, 141}
    assert err == ""


def test_version(bmctl: Bmctl) -> None:
    known: dict[str, Any] = json.loads(bmctl("version", "-o", "json").out)
    assert known["controller"]["token_scope"] == "ACCESS_SCOPE_ADMIN"
    assert known["bmctl"]["version"]
    bmctl.profile.unlink()
    assert bmctl("version", "-o", "json").json == {"bmctl": known["bmctl"], "controller": None}


@pytest.mark.feature("M11")
def test_a_ticket_ends_with_a_command_that_can_be_copied(bmctl: Bmctl, canned: Canned) -> None:
    command = f"bm-engine restore --ticket /var/lib/{'long-' * 30}/tickets/{rows.JOB}.json --to /path/to/folder"
    left = job_pb2.TicketResult(
        path=f"/var/lib/{rows.JOB}.json", expire_time=rows.ago(hours=-12, seconds=-5), command=command, disks=["vda"]
    )
    canned.change(rows.JOB, **completed(type=job_pb2.JOB_TYPE_TICKET, result=job_pb2.JobResult(ticket=left)))
    verb = ("backup", "ticket", rows.FULL, "--hypervisor", "hv1", "--expires", "12h", "--disk", "vda")

    shown = bmctl(*verb, "--wait")

    assert shown.code == 0, shown.err
    assert command in [line.strip() for line in shown.out.splitlines()]
    assert "in 12 hours" in shown.out
    (request,) = canned.calls["CreateRestoreTicket"]
    assert (request.backup_id, request.hypervisor_id, list(request.disks)) == (rows.FULL, "hv1", ["vda"])
    assert request.lifetime.seconds == 12 * 3600
    uuid.UUID(request.request_id)
    assert bmctl(*verb, "--wait", "-o", "json").json["job"]["result"]["ticket"]["command"] == command
    with bmctl.on_terminal(*verb, "--wait") as terminal:
        assert terminal.end() == 0
        assert command.encode() in terminal.raw, "one line, whatever the width"
    assert bmctl(*verb[:-4], "--expires", "soon").code == 2


@pytest.mark.feature("N10", "N11")
def test_recovery_says_what_would_bring_the_controller_back_and_what_is_blocked(bmctl: Bmctl) -> None:
    out = bmctl("recovery").out
    assert "204.8 kB" in out or "200 KiB" in out
    assert "bmctl storage reconcile vault" in out
    assert bmctl("recovery", "-o", "json").json["blocked_storages"][0]["name"] == "vault"
