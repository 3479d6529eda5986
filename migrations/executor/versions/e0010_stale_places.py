"""Whoever keeps an event by what is remembered of a tenant hears where that has changed."""

from alembic import op

from migrations.executor.versions import e0004_accepting as unchecked

revision = "e0010"
down_revision = "e0009"

# As in e0004, and `projected_at` may come with an event: when the tenant was projected whose wishes
# were looked at. Where it has been projected anew nothing is kept. What belongs to the tenant is
# asked once for all its events that stand together.
ACCEPT = """
    CREATE FUNCTION executor.accept_events(events json)
    RETURNS TABLE (event_id uuid, enabled boolean, stale boolean)
    LANGUAGE plpgsql SET search_path = pg_catalog AS $$
    #variable_conflict use_column
    DECLARE
        given record;
        inside uuid;
        allowed boolean;
        projected timestamptz;
    BEGIN
        FOR given IN SELECT * FROM json_to_recordset(events) AS given (
            tenant_id uuid, id uuid, endpoint_id uuid, type text, delivery_key text,
            headers jsonb, body text, data_key_id uuid, sealed_headers text,
            projected_at timestamptz)
        LOOP
            IF inside IS DISTINCT FROM given.tenant_id THEN
                inside := given.tenant_id;
                PERFORM set_config('app.current_tenant_id', inside::text, true);
                SELECT t.enabled, t.projected_at INTO allowed, projected
                FROM executor.tenants AS t WHERE t.tenant_id = inside;
            END IF;
            event_id := NULL;
            enabled := coalesce(allowed, false);
            stale := given.projected_at IS NOT NULL
                AND given.projected_at IS DISTINCT FROM projected;
            IF enabled AND NOT stale THEN
                INSERT INTO executor.event_receipts (tenant_id, endpoint_id, key, event_id)
                VALUES (given.tenant_id, given.endpoint_id, given.delivery_key, given.id)
                ON CONFLICT DO NOTHING RETURNING event_receipts.event_id INTO event_id;
                IF FOUND THEN
                    INSERT INTO executor.events (tenant_id, id, endpoint_id, type, delivery_key,
                        headers, body, data_key_id, sealed_headers)
                    VALUES (given.tenant_id, given.id, given.endpoint_id, given.type,
                        given.delivery_key, given.headers, decode(given.body, 'base64'),
                        given.data_key_id, decode(given.sealed_headers, 'base64'));
                ELSE
                    SELECT r.event_id INTO event_id FROM executor.event_receipts AS r
                    WHERE r.tenant_id = given.tenant_id AND r.endpoint_id = given.endpoint_id
                        AND r.key = given.delivery_key;
                END IF;
            END IF;
            RETURN NEXT;
        END LOOP;
    END $$"""


def upgrade() -> None:
    """Put the new function in the old one's place; what it answers with is another row."""
    op.execute("DROP FUNCTION executor.accept_events")
    op.execute(ACCEPT)


def downgrade() -> None:
    """Put the old one back."""
    op.execute("DROP FUNCTION executor.accept_events")
    op.execute(unchecked.ACCEPT)
