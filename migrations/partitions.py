"""The owner's functions by which time tables get and lose their months.

No login owns a table, so one that wants a partition made or dropped asks the owner: these functions
run with the owner's rights, on a closed list of tables, for whole months (UTC) as the database's
own clock allows. Migrations make the first months by the same function. A month goes in two steps:
detached, which alone takes a lock that inserts would wait for, and then dropped.
"""

from collections.abc import Sequence

from alembic import op

from services.chassis.partitions import KEPT_BEHIND, MADE

# No further than this do clocks differ and leaders look ahead.
FURTHEST_AHEAD = 3
# An insert waits at most so long behind one who waits for a table; the leader tries again later.
LOCK_LIMIT = "200ms"

_HEADING = "SET search_path = pg_catalog, pg_temp"
_AS_OWNER = f"SECURITY DEFINER {_HEADING} SET lock_timeout = '{LOCK_LIMIT}'"
# Keeps two who change a table's months apart; nobody who reads or writes rows waits for it.
_ALONE = "EXECUTE format('LOCK TABLE ONLY {schema}.%I IN SHARE UPDATE EXCLUSIVE MODE', relation);"

# Only the owner calls these two, through the others.
_INNER = {
    "uuid7_floor(month date) RETURNS uuid": f"""
        LANGUAGE sql IMMUTABLE STRICT {_HEADING} AS $$
            SELECT (lpad(to_hex((extract(epoch FROM month) * 1000)::bigint), 12, '0')
                || '70008000000000000000')::uuid
        $$""",
    "partition_name(relation text, month date) RETURNS text": f"""
        LANGUAGE plpgsql STABLE STRICT {_HEADING} AS $$
        BEGIN
            IF relation <> ALL (ARRAY[{{tables}}]) THEN
                RAISE 'not a time table' USING ERRCODE = 'invalid_parameter_value';
            ELSIF month < date '1970-01-01'
                OR month > now() AT TIME ZONE 'UTC' + interval '{FURTHEST_AHEAD} months' THEN
                RAISE 'before 1970 or far ahead' USING ERRCODE = 'invalid_parameter_value';
            ELSIF extract(day FROM month) <> 1 THEN
                RAISE 'not the first of a month' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            RETURN relation || to_char(month, '_YYYY_MM');
        END $$""",
}

# What the system login may call; each answers whether it had anything to do.
_OUTER = {
    "make_partition(relation text, month date) RETURNS boolean": f"""
        LANGUAGE plpgsql STRICT {_AS_OWNER} AS $$
        DECLARE
            child text := {{schema}}.partition_name(relation, month);
        BEGIN
            {_ALONE}
            IF to_regclass(format('{{schema}}.%I', child)) IS NOT NULL THEN
                RETURN false;
            END IF;
            -- PARTITION OF would lock the table against inserts; ATTACH does not.
            EXECUTE format('CREATE TABLE {{schema}}.%I (LIKE {{schema}}.%I INCLUDING ALL)',
                child, relation);
            EXECUTE format('ALTER TABLE {{schema}}.%I ENABLE ROW LEVEL SECURITY,'
                ' FORCE ROW LEVEL SECURITY', child);
            EXECUTE format('ALTER TABLE {{schema}}.%I ATTACH PARTITION {{schema}}.%I'
                ' FOR VALUES FROM (%L) TO (%L)', relation, child, {{schema}}.uuid7_floor(month),
                {{schema}}.uuid7_floor((month + interval '1 month')::date));
            RETURN true;
        END $$""",
    "detach_partition(relation text, month date) RETURNS boolean": f"""
        LANGUAGE plpgsql STRICT {_AS_OWNER} AS $$
        DECLARE
            child text := {{schema}}.partition_name(relation, month);
        BEGIN
            IF month + interval '{KEPT_BEHIND} months'
                >= date_trunc('month', now() AT TIME ZONE 'UTC') THEN
                RAISE 'too young' USING ERRCODE = 'invalid_parameter_value';
            END IF;
            {_ALONE}
            IF NOT EXISTS (SELECT FROM pg_inherits
                WHERE inhrelid = to_regclass(format('{{schema}}.%I', child))
                AND inhparent = to_regclass(format('{{schema}}.%I', relation))) THEN
                RETURN false;
            END IF;
            {{guard}}
            EXECUTE format('ALTER TABLE {{schema}}.%I DETACH PARTITION {{schema}}.%I',
                relation, child);
            RETURN true;
        END $$""",
    "drop_partition(relation text, month date) RETURNS boolean": f"""
        LANGUAGE plpgsql STRICT {_AS_OWNER} AS $$
        DECLARE
            child text := {{schema}}.partition_name(relation, month);
        BEGIN
            {_ALONE}
            IF EXISTS (SELECT FROM pg_inherits
                WHERE inhrelid = to_regclass(format('{{schema}}.%I', child))) THEN
                RAISE 'not detached' USING ERRCODE = 'invalid_parameter_value';
            ELSIF to_regclass(format('{{schema}}.%I', child)) IS NULL THEN
                RETURN false;
            END IF;
            EXECUTE format('DROP TABLE {{schema}}.%I', child);
            RETURN true;
        END $$""",
}

CALLABLE = tuple(head.partition("(")[0] for head in _OUTER)


def make(schema: str, tables: Sequence[str], caller: str, guard: str = "") -> None:
    """Make the functions of a schema, for `caller` alone to call, and the tables' first months.

    `guard` is what is asked before a month goes: a statement that raises where it must not.
    A later migration calls it again with all the schema's time tables.
    """
    names = {
        "schema": schema,
        "tables": ", ".join(f"'{table}'" for table in tables),
        "guard": guard.strip(),
    }
    for head, body in {**_INNER, **_OUTER}.items():
        op.execute(f"CREATE OR REPLACE FUNCTION {schema}.{head} {body.format_map(names)}")
        op.execute(f"REVOKE ALL ON FUNCTION {schema}.{head.partition('(')[0]} FROM PUBLIC")
    for function in CALLABLE:
        op.execute(f"GRANT EXECUTE ON FUNCTION {schema}.{function} TO {caller}")
    op.execute(
        f"""
        SELECT {schema}.make_partition(relation, (
            date_trunc('month', now() AT TIME ZONE 'UTC') + n * interval '1 month')::date)
        FROM unnest(ARRAY[{names["tables"]}]) relation, unnest(ARRAY{list(MADE)}) n"""
    )


def drop(schema: str) -> None:
    """Drop the functions; what is detached and not dropped yet stays."""
    for head in reversed({**_INNER, **_OUTER}):
        op.execute(f"DROP FUNCTION {schema}.{head.partition('(')[0]}")
