"""The table of what each method demands: whole, true to the contract's words, and strict about what is not in it."""

import re
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from clients.gen.backupmanager.agent.v1 import session_service_pb2
from controller.security.permissions import RULES, Rule, Scope, allows
from controller.serving import PUBLIC_SERVICES

PROTOS = Path(__file__).parents[3] / "protos" / "backupmanager"
SCOPES: tuple[Scope, ...] = ("admin", "operator", "viewer", "portal")


def methods() -> dict[str, MethodDescriptor]:
    pool = descriptor_pool.Default()
    services = [pool.FindServiceByName(name) for name in PUBLIC_SERVICES]
    services.append(session_service_pb2.DESCRIPTOR.services_by_name["SessionService"])
    return {f"/{service.full_name}/{method.name}": method for service in services for method in service.methods}


@pytest.mark.feature("N4")
def test_every_method_has_a_rule_and_every_rule_a_method() -> None:
    ours = {name for name in RULES if name.startswith("/backupmanager.")}
    assert ours == set(methods())
    assert len(ours) > 35


@pytest.mark.feature("N4")
def test_the_scopes_are_those_that_the_contract_tells_its_readers() -> None:
    told = {}
    for path in PROTOS.glob("v1/*_service.proto"):
        text = path.read_text()
        service = re.search(r"^service (\w+)", text, re.MULTILINE)
        assert service
        for comment, method in re.findall(r"((?:  //[^\n]*\n)+)  rpc (\w+)\(", text):
            scope = re.search(r"Scope:\s+(?://\s+)?(\w+)", comment)
            assert scope, method
            told[f"/backupmanager.v1.{service[1]}/{method}"] = scope[1]
    assert told == {name: RULES[name].demand for name in told}
    assert set(told) == {name for name in RULES if name.startswith("/backupmanager.v1.")}


def field(message: Descriptor, path: str) -> FieldDescriptor:
    *heads, last = path.split(".")
    for head in heads:
        inner = message.fields_by_name[head].message_type
        assert inner is not None
        message = inner
    return message.fields_by_name[last]


@pytest.mark.feature("N5")
def test_what_changes_something_is_audited_and_names_what_it_changed() -> None:
    looking = re.compile(r"/(Get|List|Watch|Poll|Preview|Diagnose|Session$)")
    for name, method in methods().items():
        rule = RULES[name]
        assert rule.audited != bool(looking.search(name)), name
        for message, path in ((method.input_type, rule.resource), (method.output_type, rule.made)):
            if path:
                found = field(message, path)
                assert not found.GetOptions().debug_redact, "a secret must not reach the audit"
                assert found.type == FieldDescriptor.TYPE_STRING


@pytest.mark.feature("N4")
@pytest.mark.parametrize(
    ("demand", "allowed"),
    [
        ("admin", {"admin"}),
        ("operator", {"admin", "operator"}),
        ("viewer", {"admin", "operator", "viewer"}),
        ("any", set(SCOPES)),
        ("open", set(SCOPES)),
        ("certificate", set()),
    ],
)
def test_a_scope_includes_those_below_and_portal_none(demand: str, allowed: set[str]) -> None:
    rule = Rule(demand)  # type: ignore[arg-type]
    assert {scope for scope in SCOPES if allows(scope, rule.demand)} == allowed
