"""`bmctl hypervisor …`: the hosts, and how they come and go."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import words
from clients.cli.options import HypervisorArgument, Output, group, span
from clients.cli.output import Column, Screen, card, heading, plain, state_of, styled
from clients.cli.session import Controller, run

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from clients.gen.backupmanager.v1.hypervisor_pb2 import Hypervisor

app = group()

_NONE = "No hypervisors yet. `bmctl hypervisor enroll NAME` makes a token for one."
_CLOCK_WARNING_SECONDS = 60  # more is warned of, see Hypervisor.clock_offset
_DOMAINS = (
    Column("Name", lambda one: one.name),
    Column("State", state_of),
    Column("Guest agent", lambda one: state_of(one, "guest_agent"), rank=1),
    Column("Disks", lambda one: ", ".join(disk.disk for disk in one.disks) or "-"),
    Column("Size", lambda one: words.size(sum(disk.size_bytes for disk in one.disks)), right=True),
    Column("Server", lambda one: one.server_id or styled("not registered", "dim"), rank=2, whole=True),
    Column("UUID", lambda one: one.domain_uuid, rank=3, whole=True),
)


@app.command("list")
def list_hypervisors(output: Output = "table") -> None:
    """List hypervisors by name."""
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import ListHypervisorsRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        stub = controller.hypervisors.ListHypervisors
        reply, _ = await controller.every(stub, ListHypervisorsRequest(), "hypervisors")
        screen.show_list(reply, "hypervisors", _columns(screen), empty=_NONE)

    run(work)


@app.command()
def show(hypervisor: HypervisorArgument, output: Output = "table") -> None:
    """Show one hypervisor."""
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import GetHypervisorRequest

    async def work(controller: Controller) -> None:
        request = GetHypervisorRequest(hypervisor_id=hypervisor)
        reply = await controller.call(controller.hypervisors.GetHypervisor, request)
        _show(Screen(output), reply.hypervisor)

    run(work)


@app.command()
def domains(hypervisor: HypervisorArgument, output: Output = "table") -> None:
    """List the domains of a hypervisor.

    As it last reported them, with the servers that are registered for them.
    """
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import ListDomainsRequest

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        request = ListDomainsRequest(hypervisor_id=hypervisor)
        reply, _ = await controller.every(controller.hypervisors.ListDomains, request, "domains")
        report_time = words.set_time(reply, "report_time")
        if report_time is not None:
            screen.note(f"Reported {words.long_time(report_time, screen.now)}.")
        screen.show_list(reply, "domains", _DOMAINS, empty="It has reported no domains yet.")

    run(work)


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name that the hypervisor will have.")],
    lifetime: Annotated[str, typer.Option("--lifetime", help="How long the token works: 30m, 2h, at most 7d.")] = "1h",
    renew: Annotated[bool, typer.Option("--renew", help="It exists, and gets a new certificate.")] = False,
    output: Output = "table",
) -> None:
    """Make and print a one-time enrollment token.

    An agent enrolls with it; this is the only time that it is shown.
    """
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import CreateEnrollmentTokenRequest

    request = CreateEnrollmentTokenRequest(name=name, renew=renew)
    if (wanted := span("--lifetime", lifetime)) is not None:
        request.lifetime.FromTimedelta(wanted)

    async def work(controller: Controller) -> None:
        screen = Screen(output)
        reply = await controller.call(controller.hypervisors.CreateEnrollmentToken, request)
        screen.show(reply, lambda: reply.token)
        expiry = words.age(reply.expire_time.ToDatetime(tzinfo=screen.now.tzinfo), screen.now)
        screen.note(
            f"It works once and ends {expiry}. On {name}, put it into a file that only root reads, and run\n"
            f"  bm-agent enroll --config FILE --controller {controller.profile.address} --token-file FILE"
        )

    run(work)


@app.command()
def ban(hypervisor: HypervisorArgument, output: Output = "table") -> None:
    """Refuse a hypervisor from now on.

    Its session ends and its certificate is refused, even a new one, until the ban is lifted.
    """
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import BanHypervisorRequest

    async def work(controller: Controller) -> None:
        request = BanHypervisorRequest(hypervisor_id=hypervisor)
        _show(Screen(output), (await controller.call(controller.hypervisors.BanHypervisor, request)).hypervisor)

    run(work)


@app.command()
def unban(hypervisor: HypervisorArgument, output: Output = "table") -> None:
    """Lift a ban."""
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import UnbanHypervisorRequest

    async def work(controller: Controller) -> None:
        request = UnbanHypervisorRequest(hypervisor_id=hypervisor)
        _show(Screen(output), (await controller.call(controller.hypervisors.UnbanHypervisor, request)).hypervisor)

    run(work)


def _columns(screen: Screen) -> tuple[Column, ...]:
    return (
        Column("Name", lambda one: one.name),
        Column("State", state_of),
        Column("Last contact", lambda one: words.short_time(words.set_time(one, "last_contact_time"), screen.now)),
        Column("Load", lambda one: f"{one.load:.2f}", right=True, rank=2),
        Column("Scratch free", lambda one: words.size(one.scratch_free_bytes), right=True, rank=1),
        Column("Clock", _clock, right=True, rank=3),
        Column("Agent", lambda one: one.agent_version or "-", rank=4),
        Column("QEMU", lambda one: one.capabilities.qemu_version or "-", rank=5),
        Column("Hypervisor", lambda one: one.hypervisor_id, rank=3, whole=True),
    )


def _clock(hypervisor: "Hypervisor") -> "Text":
    """Return how far the host's clock is off, standing out when that is worth a warning."""
    seconds = words.seconds_of(hypervisor.clock_offset)
    return styled(f"{seconds:+.1f} s", "bold yellow" if abs(seconds) > _CLOCK_WARNING_SECONDS else "")


def _show(screen: Screen, hypervisor: "Hypervisor") -> None:
    screen.show({"hypervisor": plain(hypervisor)}, lambda: _card(screen, hypervisor))


def _card(screen: Screen, hypervisor: "Hypervisor") -> "RenderableType":
    now, can = screen.now, hypervisor.capabilities
    facts: tuple[tuple[str, Any], ...] = (
        ("Hypervisor", hypervisor.hypervisor_id),
        ("Last contact", words.long_time(words.set_time(hypervisor, "last_contact_time"), now)),
        ("Clock is off by", _clock(hypervisor)),
        ("Load", f"{hypervisor.load:.2f}"),
        ("Scratch free", words.size(hypervisor.scratch_free_bytes)),
        ("Agent", hypervisor.agent_version),
        ("libvirt", can.libvirt_version),
        ("QEMU", can.qemu_version),
        ("Storage types", ", ".join(can.storage_types)),
        ("Enrolled", words.long_time(words.set_time(hypervisor, "create_time"), now)),
        ("Certificate ends", words.long_time(words.set_time(hypervisor, "certificate_expire_time"), now)),
    )
    return card(heading(hypervisor.name, state_of(hypervisor)), facts)
