"""What the registry forgets: whole months of the audit log."""

from typing import Final

from services.chassis.partitions import TimeTables

LEADER: Final = "registry.retention"
TIME_TABLES: Final = TimeTables("registry", ("audit_events",))
