"""Taking secrets out of what an engine said. Pure.

An engine's errors are made so that no secret gets into them, but a library's message or a traceback in its stderr may hold
anything. Whatever leaves this host is therefore searched for the spec's secrets first, in the forms they are likely to take.
"""

import base64
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any
from urllib.parse import quote, quote_plus

from engine.spec import Operation, StorageSpec

MASK = "[secret]"
_WHOLE_BELOW = 6  # a shorter secret is only looked for as a word of its own: else it would be found everywhere
_LINE_MIN = 8  # the last line of a PEM body may be a few characters, which tell nothing


class Scrubber:
    """Replaces secrets in texts. Its own repr tells nothing."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        patterns = [
            rf"(?<!\w){re.escape(form)}(?!\w)" if len(form) < _WHOLE_BELOW else re.escape(form)
            for form in sorted(forms, key=len, reverse=True)  # the longest first: no rest of it stays behind
        ]
        self._pattern = re.compile("|".join(patterns), re.IGNORECASE) if patterns else None

    def text(self, text: str) -> str:
        """Return the text with every secret masked."""
        return text if self._pattern is None else self._pattern.sub(MASK, text)

    def json(self, value: Any) -> Any:
        """Return a JSON value with every secret masked, in its texts and in its keys."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(one) for one in value]
        if isinstance(value, dict):
            return {self.text(str(key)): self.json(one) for key, one in value.items()}
        return value


def secrets_of(operation: Operation) -> list[str]:
    """Return the secrets that a spec holds."""
    found = storage_secrets(operation.storage)
    for job in operation.jobs:
        for verb in (job.backup, job.restore, job.verify, job.ticket):
            if verb is not None:
                found += verb.server_keys.values()
    return [secret for secret in found if secret]


def storage_secrets(storage: StorageSpec) -> list[str]:
    """Return the secrets of a storage's settings: whatever its dataclass keeps out of its own repr is one."""
    configs = (storage.local, storage.sftp, storage.s3, storage.ftp, storage.rclone)
    return [
        str(getattr(config, one.name))
        for config in configs
        if config is not None
        for one in fields(config)
        if not one.repr
    ]


def _forms(secret: str) -> Iterator[str]:
    """Yield the shapes in which a secret may show up in a text."""
    yield secret
    if "\n" in secret:
        for line in secret.splitlines():
            if len(line) >= _LINE_MIN and not line.startswith("-----"):
                yield line
    elif re.fullmatch(r"(?:[0-9a-fA-F]{2}){8,}", secret):
        data = bytes.fromhex(secret)
        yield repr(data)[2:-1]
        yield base64.b64encode(data).decode().rstrip("=")
        yield base64.urlsafe_b64encode(data).decode().rstrip("=")
    for quoted in (repr(secret)[1:-1], quote(secret, safe=""), quote_plus(secret, safe="")):
        if quoted != secret:
            yield quoted
