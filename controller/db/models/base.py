"""What every table is made of. Portable: BIGINT and TEXT only."""

import peewee
from peewee import BigIntegerField, TextField

proxy = peewee.DatabaseProxy()


def id_field() -> "TextField[str]":
    return TextField(primary_key=True)


def text_field() -> "TextField[str]":
    """A text that is "" until it is set."""
    return TextField(default="")


def number_field() -> "BigIntegerField[int]":
    return BigIntegerField(default=0)


class Table(peewee.Model):
    class Meta:
        database = proxy
        legacy_table_names = False
