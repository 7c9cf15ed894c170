"""The table of what runs beside what, pair by pair, written down a second time and independently of the code."""

import itertools

import pytest

from controller.rules.exclusion import CHAIN_USES, GROUPS, ChainUse, Outcome, Work, decide, decide_all

TRANSFERS = ("backup", "restore")
REMOVALS = ("delete", "prune", "purge")
CHECKS = ("verify", "reindex", "estimate", "health", "test", "inventory", "mount", "copy", "ticket", "bundle")
READERS = ("restore", "verify", "mount", "copy")


def work(kind: str, server: str = "", chain: str = "", hypervisor: str = "h1") -> Work:
    return Work(kind, hypervisor, server, frozenset({chain} - {""}), job_id=f"{kind} {server}")


def each(asked: tuple[str, ...], running: tuple[str, ...]) -> list[tuple[str, str]]:
    return list(itertools.product(asked, running))


def test_every_kind_of_work_is_in_this_test() -> None:
    assert {"batch", *TRANSFERS, *REMOVALS, *CHECKS} == set(GROUPS)
    assert {*READERS, *REMOVALS, "backup", "batch"} == set(CHAIN_USES)


@pytest.mark.feature("X1")
def test_a_batch_waits_for_the_running_one() -> None:
    assert decide(work("batch"), work("batch")) is Outcome.DEFER


@pytest.mark.feature("X3")
@pytest.mark.parametrize("running", TRANSFERS)
def test_a_batch_is_deferred_by_a_single(running: str) -> None:
    assert decide(work("batch"), work(running, "s1")) is Outcome.DEFER


@pytest.mark.feature("X6")
@pytest.mark.parametrize("running", REMOVALS)
def test_a_batch_waits_for_a_removal(running: str) -> None:
    assert decide(work("batch"), work(running, "s1", "c1")) is Outcome.QUEUE


@pytest.mark.parametrize("running", CHECKS)
def test_a_batch_runs_beside_checks(running: str) -> None:
    assert decide(work("batch"), work(running, "s1", "c1")) is Outcome.RUN


@pytest.mark.feature("X2")
@pytest.mark.parametrize("asked", [*TRANSFERS, *REMOVALS])
def test_singles_and_removals_wait_for_a_batch(asked: str) -> None:
    assert decide(work(asked, "s1", "c1"), work("batch")) is Outcome.QUEUE


@pytest.mark.parametrize("asked", CHECKS)
def test_checks_run_beside_a_batch(asked: str) -> None:
    assert decide(work(asked, "s1", "c1"), work("batch")) is Outcome.RUN


@pytest.mark.feature("X5")
@pytest.mark.parametrize(("asked", "running"), each(TRANSFERS, TRANSFERS))
def test_singles_of_other_servers_run_up_to_the_cap(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2")) is Outcome.CAPPED


@pytest.mark.feature("X4")
@pytest.mark.parametrize(("asked", "running"), each(TRANSFERS, TRANSFERS))
def test_a_second_single_of_a_server_is_refused_on_any_hypervisor(asked: str, running: str) -> None:
    for hypervisor in ("h1", "h2"):
        assert decide(work(asked, "s1"), work(running, "s1", hypervisor=hypervisor)) is Outcome.BUSY


@pytest.mark.parametrize(("asked", "running"), each(TRANSFERS, REMOVALS))
def test_a_single_waits_for_a_removal_of_its_server_and_runs_beside_others(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2")) is Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2")) is Outcome.QUEUE
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2", "h2")) is Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is Outcome.BUSY
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1", "h2")) is Outcome.BUSY


@pytest.mark.parametrize(("asked", "running"), each(TRANSFERS, CHECKS))
def test_a_single_runs_beside_checks(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is Outcome.RUN


@pytest.mark.parametrize(("asked", "running"), each(REMOVALS, TRANSFERS))
def test_a_removal_waits_for_singles_of_its_server_and_runs_beside_others(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2")) is Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2")) is Outcome.QUEUE
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2", "h2")) is Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is Outcome.BUSY


@pytest.mark.feature("X6")
@pytest.mark.parametrize(("asked", "running"), each(REMOVALS, REMOVALS))
def test_removals_of_a_hypervisor_come_one_after_the_other(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2")) is Outcome.QUEUE
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2", "h2")) is Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1", "h2")) is Outcome.BUSY


@pytest.mark.feature("R19")
@pytest.mark.parametrize(("asked", "running"), each(REMOVALS, CHECKS))
def test_a_removal_wants_a_chain_alone(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2")) is Outcome.RUN
    expected = Outcome.BUSY if running in READERS else Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is expected


@pytest.mark.parametrize(("asked", "running"), each(CHECKS, (*TRANSFERS, *CHECKS)))
def test_checks_share_chains_with_all_but_removals(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is Outcome.RUN


@pytest.mark.parametrize(("asked", "running"), each(CHECKS, REMOVALS))
def test_a_check_waits_for_the_removal_of_its_chain(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c2")) is Outcome.RUN
    expected = Outcome.QUEUE if asked in READERS else Outcome.RUN
    assert decide(work(asked, "s1", "c1"), work(running, "s1", "c1")) is expected


@pytest.mark.parametrize(("asked", "running"), each(tuple(GROUPS), tuple(GROUPS)))
def test_hypervisors_do_not_know_one_another(asked: str, running: str) -> None:
    assert decide(work(asked, "s1", "c1"), work(running, "s2", "c2", "h2")) is Outcome.RUN


def test_only_one_backup_extends_a_chain() -> None:
    assert CHAIN_USES["backup"] is ChainUse.EXTENDED
    assert decide(work("backup", "s1", "c1"), work("backup", "s2", "c1", "h2")) is Outcome.BUSY


def test_the_weightiest_outcome_wins_and_names_who_demands_it() -> None:
    asked = work("backup", "s1", "c1")
    others = [work("verify", "s1", "c1"), work("restore", "s2"), work("restore", "s1"), work("backup", "s3")]

    assert decide_all(asked, others[:1]) == (Outcome.RUN, None)
    assert decide_all(asked, others[:2]) == (Outcome.CAPPED, others[1])
    assert decide_all(asked, others) == (Outcome.BUSY, others[2])
