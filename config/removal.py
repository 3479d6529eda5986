"""The command `delete`: one object, by kind and name. It asks nothing; `--plan` only shows."""

import argparse
import uuid
from typing import Final

from rich.console import Console
from tenon.registry.v1 import config_service_pb2

from config.cli import Output, Subparsers, UsageError, add_registry_options, open_service
from config.client import RegistryClient
from config.order import KINDS
from config.problems import Mark, problem
from config.reconcile import Exit, Outcome, Plan, Reconciler, planned, taken
from config.render import show_revision
from config.resolve import Batch
from services.chassis.constraints import did_you_mean
from services.chassis.errors import TenonError
from services.chassis.ids import BadName, collection_of, format_name

SOURCE: Final = "rpc"
"""In whose name the registry deletes single objects."""

DELETABLE: Final = tuple(kind for kind in KINDS if kind != "Tenant")


def register(subparsers: "Subparsers[argparse.ArgumentParser]") -> None:
    """Add the command to a parser."""
    words = "delete one wanted object; refused while others refer to it"
    command = subparsers.add_parser("delete", help=words, description=words)
    command.add_argument("kind", metavar="KIND", help=", ".join(DELETABLE))
    command.add_argument("name", metavar="NAME", help="its name")
    command.add_argument("--tenant", required=True, help="its tenant's slug")
    command.add_argument("--plan", action="store_true", help="only show; exits 2")
    command.add_argument("--force", action="store_true", help="also what another source has set")
    command.add_argument("--output", choices=("table", "json"), default="table")
    add_registry_options(command)
    command.set_defaults(run=delete)


def delete(args: argparse.Namespace) -> int:
    """Show what the deletion takes away, and do exactly that."""
    output = Output(Console(), Console(stderr=True), args.output == "json")
    try:
        name = _name(args)
        with open_service(args, args.registry) as channel:
            outcome = _deleted(args, output, RegistryClient(channel), name)
    except (UsageError, BadName) as error:
        return output.finish((), [problem(Mark("tenon"), str(error))], Exit.ERROR)
    if not output.as_json:
        show_revision(output.out, outcome)
    told = () if output.as_json else outcome.problems
    return output.finish([outcome], told, outcome.exit)


def _deleted(
    args: argparse.Namespace, output: Output, client: RegistryClient, name: str
) -> Outcome:
    batch, plan = Batch(args.tenant, (), (), ()), None
    try:
        plan = client.delete(_request(name, validate_only=True, force=args.force)).plan
        output.show_plan(plan)
        if args.plan:
            return planned(plan)
        done = client.delete(_bound(_request(name, force=args.force), plan))
    except TenonError as error:
        return Reconciler(client, args.registry, SOURCE).failed(batch, error, plan)
    return taken(plan, done)


def _request(
    name: str, *, force: bool, validate_only: bool = False
) -> config_service_pb2.DeleteObjectRequest:
    return config_service_pb2.DeleteObjectRequest(
        name=name, force=force, validate_only=validate_only
    )


def _bound(
    request: config_service_pb2.DeleteObjectRequest, plan: Plan
) -> config_service_pb2.DeleteObjectRequest:
    """The request bound to the plan that was shown."""
    request.base_revision, request.plan_hash = plan.base_revision, plan.plan_hash
    request.request_id = str(uuid.uuid4())
    return request


def _name(args: argparse.Namespace) -> str:
    if args.kind not in DELETABLE:
        guess = did_you_mean(args.kind, DELETABLE)
        raise UsageError(f"KIND must be one of {', '.join(DELETABLE)}{guess}")
    return format_name(args.tenant, collection_of(args.kind), args.name)
