"""What the migrations let each built-in role do, all of them together."""

from typing import Final

from migrations.registry import built_in_roles as first
from migrations.registry.versions import r0002_credentials as second
from migrations.registry.versions import r0003_endpoints_out as third
from migrations.registry.versions import r0007_event_types as seventh
from migrations.registry.versions import r0010_consuming as tenth
from migrations.registry.versions import r0011_syncs as eleventh

NEEDS_REASON: Final = first.NEEDS_REASON
LATER: Final = (second, third, seventh, tenth, eleventh)
GRANTED: Final[dict[str, tuple[str, ...]]] = {
    role: (
        *permissions,
        *(one for each in LATER for one in each.GRANTED.get(role, ())),
    )
    for role, permissions in first.GRANTED.items()
}
