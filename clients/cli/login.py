"""`bmctl login` and `bmctl logout`: whom bmctl trusts, and as whom it comes.

fingerprint   --fingerprint HEX  >  the one pinned at an earlier login to this address  >  a question on the terminal
token         --token-file F     >  BMCTL_TOKEN                                         >  a hidden prompt
"""

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clients.cli import profile, words
from clients.cli.failures import Usage
from clients.cli.options import Output
from clients.cli.output import Screen

if TYPE_CHECKING:
    from clients.cli.session import Controller

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def login(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Where the controller's interface is.")],
    fingerprint: Annotated[
        str, typer.Option("--fingerprint", help="SHA-256 of the controller's authority, as the controller printed it.")
    ] = "",
    token_file: Annotated[str, typer.Option("--token-file", help="File with the access token; - for stdin.")] = "",
    output: Output = "table",
) -> None:
    """Remember a controller and an access token.

    The controller's authority is pinned by its fingerprint, and the token is tried, before anything is kept.
    """
    from clients import connect
    from clients.cli.session import run

    screen = Screen(output)
    known = _pinned(address)
    expected = connect.normalize_fingerprint(fingerprint)
    if expected and not _FINGERPRINT.fullmatch(expected):
        raise Usage(field="--fingerprint", problem="a fingerprint is 64 hexadecimal digits")
    authority, seen = connect.fetch_authority(address, expected=expected or known)
    if not (expected or known):
        _confirm_authority(address, seen)
    token = _token(token_file)
    found = profile.Profile(address, authority, seen, token)
    run(lambda controller: _check_and_save(controller, screen), found)


def logout(output: Output = "table") -> None:
    """Forget the controller and the token.

    The token itself stays valid; `bmctl token revoke` ends it.
    """
    forgotten = profile.forget()
    sentence = (
        "Forgotten. The token still works elsewhere; `bmctl token revoke` ends it." if forgotten else "Not logged in."
    )
    Screen(output).show({"logged_out": forgotten}, lambda: sentence)


def _pinned(address: str) -> str:
    """Return the fingerprint that an earlier login pinned for this address, "" where there is none."""
    known = profile.find()
    return known.fingerprint if known is not None and known.address == address else ""


def _confirm_authority(address: str, fingerprint: str) -> None:
    """Let a person compare the fingerprint. Raises Usage where there is none to ask, Declined."""
    from clients.cli import ask

    if not sys.stdin.isatty():
        raise Usage(
            field="--fingerprint", problem=f"{address} is new here, and nobody can be asked whether to trust it"
        )
    pairs = " ".join(fingerprint[start : start + 8] for start in range(0, len(fingerprint), 8))
    print(f"The controller at {address} shows an authority with this SHA-256 fingerprint:", file=sys.stderr)
    print(f"\n  {pairs}\n\nCompare it with what `bm-controller init` printed.", file=sys.stderr)
    ask.confirm("Is it the same?", yes=False)


def _token(file: str) -> str:
    from clients.cli import ask

    token = ask.secret("the access token", option="--token-file", file=file, variable=profile.TOKEN_VARIABLE)
    return profile.check_token("--token-file", token)


async def _check_and_save(controller: "Controller", screen: Screen) -> None:
    from clients.gen.backupmanager.v1.system_service_pb2 import GetVersionRequest

    reply = await controller.call(controller.system.GetVersion, GetVersionRequest())
    where = profile.save(controller.profile)
    document = {
        "address": controller.profile.address,
        "fingerprint": controller.profile.fingerprint,
        "token_name": reply.token_name,
        "token_scope": words.enum_label(reply, "token_scope"),
        "profile": str(where),
    }
    screen.show(
        document,
        lambda: (
            f"Logged in to {controller.profile.address} as {reply.token_name} ({document['token_scope']}), "
            f"controller {reply.version}. Remembered in {where}."
        ),
    )
