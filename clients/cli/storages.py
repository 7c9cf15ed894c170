"""`bmctl storage …`: where backups go. The verbs stand by subject: adding, showing, changing, and the work on one.

storage_add.py      add                              storage_settings.py   the options and secrets of a storage
storage_show.py     list, show, health               storage_health.py     how health and usage read
storage_change.py   update, set, delete
storage_jobs.py     test, probe, check, reindex, reconcile
storage_keys.py     key export, key add-passphrase
"""

from clients.cli import storage_add, storage_change, storage_jobs, storage_keys, storage_show, storage_types
from clients.cli.options import group
from clients.cli.storage_fields import FIELDS, own_parameters, parameters, with_parameters

app = group()
app.add_typer(storage_keys.app, name="key", help="The keys of an encrypted storage.", no_args_is_help=True)
app.add_typer(storage_add.add, name="add", help="Add a storage.", invoke_without_command=True, no_args_is_help=False)
app.command("list")(storage_show.list_storages)
app.command("types")(storage_types.list_types)
app.command()(storage_show.show)
app.command()(with_parameters(storage_change.update, [*own_parameters(storage_change.update), *parameters(FIELDS)]))
app.command("set")(storage_change.set_retention)
app.command()(storage_change.delete)
app.command("test")(storage_jobs.try_storage)
app.command()(with_parameters(storage_jobs.probe, [*own_parameters(storage_jobs.probe), *parameters(FIELDS)]))
app.command()(storage_show.health)
app.command("check")(storage_jobs.check_health)
app.command()(storage_jobs.reindex)
app.command()(storage_jobs.reconcile)
