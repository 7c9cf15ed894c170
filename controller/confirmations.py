"""Confirmations: what a person saw, signed, so that what is started is what was shown.

A preview's facts are hashed under a key that only this installation has. Starting computes the facts anew; another outcome
means that something changed since, and the person looks again. Nothing is stored, and a confirmation has no time limit of its
own: it holds as long as the facts do.
"""

import base64
import hmac
import json
from typing import Any

from controller.db.secrets import Vault
from controller.errors import ConfirmationStale


def sign(vault: Vault, action: str, facts: Any) -> str:
    """Return the confirmation of an action with these facts (JSON types)."""
    text = json.dumps([action, facts], sort_keys=True, separators=(",", ":"))
    return base64.urlsafe_b64encode(vault.mac("confirmation", text.encode())).decode().rstrip("=")


def check(vault: Vault, action: str, facts: Any, confirmation: str) -> None:
    """Raise ConfirmationStale unless `sign` would give the same confirmation now."""
    if not hmac.compare_digest(sign(vault, action, facts).encode(), confirmation.encode()):
        raise ConfirmationStale
