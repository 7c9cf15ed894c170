"""Where webhooks may be sent, and when they are tried again."""

import ipaddress
from datetime import timedelta

import pytest

from controller.errors import InvalidField
from controller.rules import targets
from controller.rules.deliveries import ATTEMPTS_MAX, wait_after

PRIVATE = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "169.254.1.1",
    "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:5601:5601",
)  # fmt: skip
PUBLIC = ("1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101", "::ffff:8.8.8.8")


@pytest.mark.feature("N6")
@pytest.mark.parametrize("address", PRIVATE)
def test_what_is_not_public_is_refused_however_it_is_written(address: str) -> None:
    assert not targets.is_permitted(ipaddress.ip_address(address), ())


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    assert targets.is_permitted(ipaddress.ip_address(address), ())


@pytest.mark.feature("N6")
def test_the_settings_allow_what_they_name_and_nothing_else() -> None:
    allowed = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/16"))
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "fd00:ec2::254"):
        assert targets.is_permitted(ipaddress.ip_address(address), allowed), address
    for address in ("11.0.0.0", "127.0.0.1", "169.254.169.254", "::1"):
        assert targets.is_permitted(ipaddress.ip_address(address), allowed) == (address == "11.0.0.0")


@pytest.mark.parametrize(
    "url",
    [
        "", "panel", "ftp://a.example/", "file:///etc/passwd", "https://", "https:///x", "http://u:p@a.example/", "http://u@a/",
        "https://a.example/#x", "https://a.example/#", "https://a.example:0/", "https://a.example:99999/", "https://a:b/",
        "http://a.example/ x", "http://a.example/\r\nHost: b", "http://ä.example/", "http://[::1", "https://[fe80::1%25eth0]/",
        "https://a.example/" + "x" * 2048, "javascript:alert(1)", "http://a.example/{}",
    ],
)  # fmt: skip
def test_what_is_no_url_of_ours_is_refused(url: str) -> None:
    with pytest.raises(InvalidField) as caught:
        targets.parse(url)
    assert caught.value.facts["field"] == "url"


def test_a_url_is_taken_apart() -> None:
    target = targets.parse("https://Panel.example:8443/hook?a=b")
    assert (target.scheme, target.host, target.port, target.path) == ("https", "panel.example", 8443, "/hook?a=b")
    assert target.authority == "panel.example:8443"
    assert targets.parse("http://[2606:4700::1111]").authority == "[2606:4700::1111]"
    assert targets.parse("http://a.example?x").path == "/?x"


@pytest.mark.feature("N6")
def test_waits_double_and_spread_and_end() -> None:
    waits = [wait_after(attempts, 0) for attempts in range(1, ATTEMPTS_MAX)]
    assert waits[:3] == [timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]
    assert wait_after(1, 1) == timedelta(seconds=12.5)
    assert wait_after(ATTEMPTS_MAX, 0) is None
    whole = sum((one for one in waits if one), timedelta())
    assert timedelta(hours=5) < whole < timedelta(hours=6)
