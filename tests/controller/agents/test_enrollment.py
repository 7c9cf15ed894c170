"""Enrollment: a token once, a certificate for one id, a ban that lasts."""

from datetime import timedelta

import pytest

from controller import hypervisors
from controller.agents import enrollment
from controller.db import models
from controller.errors import (
    EnrollmentTokenInvalid,
    HypervisorBanned,
    HypervisorExists,
    HypervisorNotFound,
    InvalidField,
    PermissionDenied,
    Unauthenticated,
)
from tests.controller.world import Certificate, World, read_token

pytestmark = pytest.mark.feature("N3")
HOUR = timedelta(hours=1)


def create(
    world: World, name: str = "h1", lifetime: timedelta | None = HOUR, renew: bool = False
) -> enrollment.NewToken:
    return world.run(enrollment.create_token, name, lifetime, renew, "fingerprint", world.now())


def redeem(world: World, token: enrollment.NewToken, serial: str = "a1") -> str:
    made = Certificate(serial, world.now() + timedelta(days=90))
    secret = read_token(token.token)["secret"]
    hypervisor_id, certificate = world.run(enrollment.redeem, secret, "0.1.0", lambda _: made, world.now())
    assert certificate is made
    return hypervisor_id


def check(world: World, hypervisor_id: str, serial: str) -> None:
    world.run(hypervisors.check_certificate, hypervisor_id, serial)


def test_a_token_carries_the_fingerprint_and_is_kept_as_a_hash(world: World) -> None:
    token = create(world)

    said = read_token(token.token)
    assert said["ca"] == "fingerprint"
    assert len(said["secret"]) == 43
    for row in world.run(lambda: list(models.EnrollmentToken.select())):
        assert said["secret"] not in row.token_hash
    assert token.token not in repr(token)


def test_a_token_works_once_and_gives_the_id_that_was_promised(world: World) -> None:
    token = create(world)

    assert redeem(world, token) == token.hypervisor_id
    with pytest.raises(EnrollmentTokenInvalid):
        redeem(world, token)
    found = world.run(hypervisors.find, "h1", world.limits, world.now())
    assert (found.hypervisor_id, found.state, found.agent_version) == (token.hypervisor_id, "offline", "0.1.0")
    check(world, token.hypervisor_id, "a1")


def test_an_old_an_unknown_and_a_replaced_token_are_refused_alike(world: World) -> None:
    first = create(world, lifetime=timedelta(minutes=1))
    second = create(world, lifetime=timedelta(minutes=1))
    with pytest.raises(EnrollmentTokenInvalid):
        redeem(world, first)  # a newer token for the name took its place
    world.clock.advance(61)
    with pytest.raises(EnrollmentTokenInvalid):
        redeem(world, second)
    with pytest.raises(EnrollmentTokenInvalid):
        world.run(enrollment.redeem, "guess", "", lambda _: Certificate("x", world.now()), world.now())


@pytest.mark.parametrize("lifetime", [timedelta(0), timedelta(seconds=-1), timedelta(days=7, seconds=1)])
def test_a_lifetime_has_limits(world: World, lifetime: timedelta) -> None:
    with pytest.raises(InvalidField):
        create(world, lifetime=lifetime)


def test_a_request_that_cannot_be_signed_uses_no_token_up(world: World) -> None:
    token = create(world)

    def refuse(_: str) -> Certificate:
        raise InvalidField(field="certificate_request", problem="is not one")

    with pytest.raises(InvalidField):
        world.run(enrollment.redeem, read_token(token.token)["secret"], "", refuse, world.now())

    assert redeem(world, token) == token.hypervisor_id


def test_a_name_is_taken_once_and_enrolls_again_under_its_id(world: World) -> None:
    own = redeem(world, create(world))
    with pytest.raises(HypervisorExists):
        create(world)
    with pytest.raises(HypervisorNotFound):
        create(world, name="none", renew=True)

    assert redeem(world, create(world, renew=True), "b2") == own
    check(world, own, "b2")
    with pytest.raises(Unauthenticated):
        check(world, own, "a1")  # the certificate before it is worth nothing any more


def test_a_renewed_certificate_replaces_the_old_when_it_is_used(world: World) -> None:
    own = redeem(world, create(world))

    def renew(serial: str, new: str) -> Certificate:
        made = Certificate(new, world.now() + timedelta(days=90))
        return world.run(enrollment.renew, own, serial, lambda _: made, world.now())

    renew("a1", "lost")  # the answer never arrived
    renew("a1", "b2")
    check(world, own, "a1")
    check(world, own, "b2")
    with pytest.raises(Unauthenticated):
        check(world, own, "lost")
    world.run(enrollment.confirm, own, "b2")

    check(world, own, "b2")
    with pytest.raises(Unauthenticated):
        check(world, own, "a1")
    with pytest.raises(Unauthenticated):
        check(world, own, "")
    with pytest.raises(Unauthenticated):
        check(world, "nobody", "b2")


def test_a_ban_refuses_the_certificate_and_survives_a_new_token(world: World) -> None:
    own = redeem(world, create(world))
    world.run(hypervisors.ban, own, world.now())

    with pytest.raises(PermissionDenied):
        check(world, own, "a1")
    with pytest.raises(HypervisorBanned):
        redeem(world, create(world, renew=True), "b2")
    with pytest.raises(PermissionDenied):
        world.run(enrollment.renew, own, "a1", lambda _: Certificate("c3", world.now()), world.now())
    assert world.run(hypervisors.find, own, world.limits, world.now()).state == "banned"

    world.run(hypervisors.unban, own, world.now())
    check(world, own, "a1")
    with pytest.raises(HypervisorNotFound):
        world.run(hypervisors.ban, "nobody", world.now())
