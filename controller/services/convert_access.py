"""Access tokens as messages."""

from clients.gen.backupmanager.v1 import (
    access_token_pb2,
)
from controller.security.tokens import AccessToken
from controller.services import convert


def access_token(record: AccessToken) -> access_token_pb2.AccessToken:
    return access_token_pb2.AccessToken(
        access_token_id=record.access_token_id,
        name=record.name,
        scope=convert.enum_number(access_token_pb2.AccessScope.DESCRIPTOR, record.scope),
        server_ids=record.server_ids,
        create_time=convert.time(record.create_time),
        expire_time=convert.time(record.expire_time),
        revoke_time=convert.time(record.revoke_time),
        last_use_time=convert.time(record.last_use_time),
    )
