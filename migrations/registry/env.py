"""The history of the schema `registry`."""

from migrations.environment import run

run("registry")
