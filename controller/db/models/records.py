"""Who we are, who may call, and who did what."""

from peewee import BigAutoField, BigIntegerField, TextField

from controller.db.fields import JsonField, OptionalTimeField, TimeField
from controller.db.models.base import Table, id_field, text_field


class Installation(Table):
    """One row: who we are. `epoch` grows when a lost controller is restored."""

    number = BigIntegerField(primary_key=True)  # always 1
    installation_id = TextField()
    epoch = BigIntegerField()
    create_time = TimeField()
    mark = BigIntegerField(default=0)  # grows while we serve; see controller/set_back.py
    epoch_time = OptionalTimeField()  # when the present epoch began; None in the first


class AccessToken(Table):
    access_token_id = id_field()
    name = TextField(index=True)
    scope = TextField()
    secret_hash = TextField(unique=True)
    server_ids = JsonField(default=list)
    create_time = TimeField()
    expire_time = OptionalTimeField()
    revoke_time = OptionalTimeField()
    last_use_time = OptionalTimeField()
    creator = text_field()


AccessToken.add_index(
    AccessToken.index(AccessToken.name, unique=True, name="access_token_live_name").where(
        AccessToken.revoke_time.is_null()
    )
)
AccessToken.add_index(
    AccessToken.index(AccessToken.expire_time, name="access_token_portal_expire").where(AccessToken.scope == "portal")
)


class Audit(Table):
    """Who did what (N5)."""

    sequence = BigAutoField()
    time = TimeField(index=True)
    token_id = text_field()
    token_name = text_field()
    method = TextField()
    resource = text_field()
    outcome = text_field()
    peer = text_field()
    detail = JsonField(null=True)
