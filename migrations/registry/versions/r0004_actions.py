"""Subscriptions whose target is an integration's action, and the shorthands that stand for some."""

from migrations.tenancy import seeing

revision = "r0004"
down_revision = "r0003"

# As the contract says them where nobody has said anything.
NO_ACTION = """{"integration": "", "role": "", "operation": "", "input": null,
    "retry": {"max_attempts": 3, "base": "0.500s", "cap": "60s"}}"""
NO_AUTOMATION = """{"notify_on_events": [], "channel": "", "trigger_on_release": false,
    "auto_create_epics": false, "epic_template": null}"""
ACTS = "nullif(action ->> 'integration', '')"
WIDEN = (
    f"""ALTER TABLE registry.subscriptions
        ADD action jsonb NOT NULL DEFAULT '{NO_ACTION}',
        DROP CONSTRAINT subscriptions_one_target_check,
        ADD CONSTRAINT subscriptions_one_target_check
            CHECK (num_nonnulls(connector_id, target_id, {ACTS}) = 1)""",
    f"ALTER TABLE registry.integrations ADD automation jsonb NOT NULL DEFAULT '{NO_AUTOMATION}'",
)
NARROW = (
    "ALTER TABLE registry.integrations DROP COLUMN automation",
    "DELETE FROM registry.subscriptions WHERE connector_id IS NULL AND target_id IS NULL",
    """ALTER TABLE registry.subscriptions
        DROP CONSTRAINT subscriptions_one_target_check,
        DROP COLUMN action,
        ADD CONSTRAINT subscriptions_one_target_check
            CHECK (num_nonnulls(connector_id, target_id) = 1)""",
)
SEEN = ("registry.subscriptions", "registry.integrations")


def upgrade() -> None:
    """Say of every row that it has none."""
    seeing(SEEN, WIDEN)


def downgrade() -> None:
    """Take away what routes to actions."""
    seeing(SEEN, NARROW)
