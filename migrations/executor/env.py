"""The history of the schema `executor`."""

from migrations.environment import run

run("executor")
