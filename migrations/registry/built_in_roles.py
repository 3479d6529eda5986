"""The built-in roles and the permissions that they have, as revision r0001 seeds them."""

from alembic import op

from migrations.registry.permissions import give

ROLES = {
    "VIEWER": (1, "Reads everything of a tenant but its audit log"),
    "MANAGER": (2, "Reads, runs, plans and reports"),
    "ADMIN": (3, "Does everything in a tenant"),
    "SUPER_ADMIN": (4, "Does everything in every tenant, and makes tenants"),
    "CONFIG_SOURCE": (50, "Plans and applies configuration, and makes tenants by it"),
    "STAFF_DEVELOPER": (60, "Of the platform's staff: sees who may do what"),
    "STAFF_ADMIN": (61, "Of the platform's staff: manages principals and keys"),
    "STAFF_OWNER": (62, "Of the platform's staff: does everything, and says who is staff"),
    "EXECUTOR": (100, "The executor service itself"),
}
# In every tenant, one a call, and each time with a reason.
NEEDS_REASON = frozenset({"SUPER_ADMIN", "STAFF_DEVELOPER", "STAFF_ADMIN", "STAFF_OWNER"})
READ = (
    *("tenants.read", "integrations.read", "credentials.read", "config.read", "executions.read"),
    *("lanes.read", "roles.read"),
)
MANAGE = (*READ, "connectors.run", "config.plan", "audit.read", "principals.read", "keys.read")
ADMINISTER = (
    *MANAGE,
    *("config.apply", "access.manage", "config.approve"),
    *("lanes.pause", "audit.review", "principals.manage", "keys.manage"),
)
SEE_STAFF = ("tenants.read", "roles.read", "principals.read", "grants.read", "staff.read")
ADMINISTER_STAFF = (*SEE_STAFF, "audit.read", "principals.manage", "keys.read", "keys.manage")
ADMINISTER_ALL = (
    *(*ADMINISTER, "tenants.create", "tenants.delete", "tombstones.read", "providers.switch"),
    *("grants.read", "grants.manage", "staff.read"),
)
GRANTED = {
    "VIEWER": READ,
    "MANAGER": MANAGE,
    "ADMIN": ADMINISTER,
    "SUPER_ADMIN": ADMINISTER_ALL,
    "STAFF_DEVELOPER": SEE_STAFF,
    "STAFF_ADMIN": ADMINISTER_STAFF,
    "STAFF_OWNER": (*ADMINISTER_ALL, "staff.manage"),
    "CONFIG_SOURCE": (
        "tenants.read",
        "tenants.create",
        "config.read",
        "config.plan",
        "config.apply",
    ),
    "EXECUTOR": (
        "config.read",
        "feed.watch",
        "projections.report",
        "purges.report",
        "tombstones.read",
        "audit.record",
        "credentials.resolve",
        "keys.lease",
        "principals.authenticate",
        "usage.report",
    ),
}
PERMISSIONS = {
    "tenants.read": "See a tenant",
    "tenants.create": "Make a tenant by a Tenant document",
    "tenants.delete": "Delete a tenant for good",
    "tombstones.read": "See that a tenant was deleted, and what there was of it",
    "integrations.read": "See integrations",
    "credentials.read": "See credentials, masked",
    "config.read": "See wanted state and its revisions",
    "config.plan": "See what a change would do",
    "config.apply": "Change wanted state",
    "access.manage": "Change roles, role bindings and review policies, besides config.apply",
    "config.approve": "Approve or reject a change that waits for review",
    "connectors.run": "Run a connector",
    "executions.read": "See executions and their steps, masked",
    "lanes.read": "See lanes, and why one does not move",
    "lanes.pause": "Pause and resume a lane",
    "providers.switch": "Stop and start the work of every tenant with a provider",
    "audit.read": "See the audit log",
    "audit.review": "Look at what was risky, and sign that one has",
    "audit.record": "Tell the audit log what another service did",
    "feed.watch": "Follow what changes in every tenant",
    "projections.report": "Say which revision the executor works by",
    "purges.report": "Say that the executor has nothing more of a tenant",
    "credentials.resolve": "Open a credential",
    "keys.lease": "Lease a key derived from a tenant's",
    "principals.authenticate": "Ask who a credential belongs to",
    "principals.read": "See services, sources and users",
    "principals.manage": "Make principals, and say whether they may call",
    "keys.read": "See API keys, masked, and how they are used",
    "keys.manage": "Make, rotate and take back API keys",
    "roles.read": "See roles and what they allow",
    "grants.read": "See who has which role in every tenant",
    "grants.manage": "Give and take roles in every tenant",
    "staff.read": "See who runs the platform",
    "staff.manage": "Say who runs the platform",
    "usage.report": "Tell how API keys were used",
}


def seed() -> None:
    """Write down the built-in roles, every permission, and which role has which."""
    for role, (level, description) in ROLES.items():
        op.execute(
            f"INSERT INTO registry.roles VALUES "
            f"('{role}', {level}, {role in NEEDS_REASON}, $${description}$$)"
        )
    give(PERMISSIONS, GRANTED)
