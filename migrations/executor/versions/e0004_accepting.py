"""Events of many tenants are kept by one statement, each inside its own tenant."""

from alembic import op

revision = "e0004"
down_revision = "e0003"

# It runs with its caller's rights: row-level security lets each step see the tenant of its event
# alone, which is set before. A statement of its own sees the receipt that somebody else took while
# this one waited for them.
ACCEPT = """
    CREATE FUNCTION executor.accept_events(events json)
    RETURNS TABLE (event_id uuid, enabled boolean)
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    #variable_conflict use_column
    DECLARE
        given record;
        whose uuid;
        allowed boolean;
    BEGIN
        FOR given IN SELECT * FROM json_to_recordset(events) AS given (
            tenant_id uuid, id uuid, endpoint_id uuid, type text, delivery_key text,
            headers jsonb, body text, data_key_id uuid, sealed_headers text)
        LOOP
            PERFORM set_config('app.current_tenant_id', given.tenant_id::text, true);
            SELECT t.enabled INTO allowed FROM executor.tenants AS t
            WHERE t.tenant_id = given.tenant_id;
            whose := NULL;
            IF allowed THEN
                INSERT INTO executor.event_receipts (tenant_id, endpoint_id, key, event_id)
                VALUES (given.tenant_id, given.endpoint_id, given.delivery_key, given.id)
                ON CONFLICT DO NOTHING RETURNING event_receipts.event_id INTO whose;
                IF FOUND THEN
                    INSERT INTO executor.events (tenant_id, id, endpoint_id, type, delivery_key,
                        headers, body, data_key_id, sealed_headers)
                    VALUES (given.tenant_id, given.id, given.endpoint_id, given.type,
                        given.delivery_key, given.headers, decode(given.body, 'base64'),
                        given.data_key_id, decode(given.sealed_headers, 'base64'));
                ELSE
                    SELECT r.event_id INTO whose FROM executor.event_receipts AS r
                    WHERE r.tenant_id = given.tenant_id AND r.endpoint_id = given.endpoint_id
                        AND r.key = given.delivery_key;
                END IF;
            END IF;
            RETURN QUERY SELECT whose, coalesce(allowed, false);
        END LOOP;
    END $$"""


def upgrade() -> None:
    """Make the function."""
    op.execute(ACCEPT)


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP FUNCTION executor.accept_events")
