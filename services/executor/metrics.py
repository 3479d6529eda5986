"""The executor's metrics: what there is to do, what this process does of it, and on what.

No label holds anything of a tenant. What there is to do is told by the process whose doctor leads,
and by no other, so that sums over processes count it once.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final, TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.chassis.database import Database, PoolFigures
from services.executor.audit.shipping import Shipping
from services.executor.engine.doctor import Doctor
from services.executor.engine.meters import KindMeter
from services.executor.executions.scheduler import Scheduler
from services.executor.ingress.streams import Counts
from services.executor.store.doctor import Load

Row = TypeVar("Row")
Figures = Mapping[str, tuple[str, Callable[[Row], float]]]

QUANTILES: Final = (0.5, 0.99)

LOADS: Final[Figures[Load]] = {
    "tenon_work_waiting": ("Work that waits, due or not", lambda load: load.waiting),
    "tenon_work_due": ("Work that is due and waits for a worker", lambda load: load.due),
    "tenon_work_claimed": ("Work that some process has claimed", lambda load: load.claimed),
    "tenon_work_oldest_age_seconds": (
        "How long the oldest due work has waited beyond its time",
        lambda load: load.oldest_s,
    ),
}
POOLS: Final[Figures[PoolFigures]] = {
    "tenon_database_pool_max": ("Connections a pool may have", lambda pool: pool.most),
    "tenon_database_pool_open": ("Connections a pool has", lambda pool: pool.open),
    "tenon_database_pool_idle": ("Connections a pool has to spare", lambda pool: pool.idle),
    "tenon_database_pool_waiting": ("Who waits for a connection", lambda pool: pool.waiting),
}
POOL_COUNTS: Final[Figures[PoolFigures]] = {
    "tenon_database_pool_requests": ("Connections asked of a pool", lambda pool: pool.requests),
    "tenon_database_pool_wait_seconds": (
        "How long all have waited for a connection",
        lambda pool: pool.waited_s,
    ),
}


class Metrics(Collector):
    """Collects the figures of one process."""

    def __init__(
        self,
        database: Database,
        meters: Mapping[str, KindMeter],
        doctor: Doctor,
        scheduler: Scheduler,
        shipping: Shipping,
        app_items: Counts,
    ) -> None:
        self._database = database
        self._meters = meters
        self._doctor = doctor
        self._scheduler = scheduler
        self._shipping = shipping
        self._app_items = app_items

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is to collect is told by collecting it."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Every figure as it is now."""
        pools = self._database.pools()
        yield from _each(GaugeMetricFamily, LOADS, "kind", self._doctor.loads or {})
        yield from _of_meters(self._meters)
        yield from _each(GaugeMetricFamily, POOLS, "login", pools)
        yield from _each(CounterMetricFamily, POOL_COUNTS, "login", pools)
        yield _repairs(self._doctor.repairs)
        yield _of_apps(self._app_items)
        yield CounterMetricFamily(
            "tenon_scheduled_runs",
            "Runs this process has started by schedules",
            value=self._scheduler.started,
        )
        yield GaugeMetricFamily(
            "tenon_audit_events_set_aside",
            "Audit events that the registry refuses: must stay 0",
            value=self._shipping.aside,
        )


def _each(
    family: type[GaugeMetricFamily] | type[CounterMetricFamily],
    figures: "Figures[Row]",
    label: str,
    rows: Mapping[str, Row],
) -> Iterator[Metric]:
    """A metric for each figure, with a sample for each row."""
    for name, (words, read) in figures.items():
        metric = family(name, words, labels=[label])
        for of, row in rows.items():
            metric.add_metric([of], read(row))
        yield metric


def _of_meters(meters: Mapping[str, KindMeter]) -> Iterator[Metric]:
    running = GaugeMetricFamily("tenon_work_running", "Work this process runs", labels=["kind"])
    claims = CounterMetricFamily("tenon_work_claims", "Work this process took", labels=["kind"])
    outcomes = CounterMetricFamily(
        "tenon_work_outcomes", "What it came to: done, later, failed", labels=["kind", "outcome"]
    )
    lag = GaugeMetricFamily(
        "tenon_work_lag_seconds",
        "How late this process began its last items",
        labels=["kind", "quantile"],
    )
    for kind, meter in meters.items():
        running.add_metric([kind], meter.running)
        claims.add_metric([kind], meter.claims)
        for outcome in ("done", "later", "failed"):
            outcomes.add_metric([kind, outcome], meter.outcomes[outcome])
        for quantile in QUANTILES:
            lag.add_metric([kind, str(quantile)], meter.lag_s(quantile))
    yield from (running, claims, outcomes, lag)


def _of_apps(counts: Counts) -> Metric:
    metric = CounterMetricFamily(
        "tenon_app_items",
        "Items of apps' streams; known: kept by the tenant that has the account, else by the owner",
        labels=["provider", "app", "known"],
    )
    for (provider, app, known), count in counts.items():
        metric.add_metric([provider, app, str(known).lower()], count)
    return metric


def _repairs(repairs: Mapping[str, int]) -> Metric:
    metric = CounterMetricFamily(
        "tenon_doctor_repairs",
        "Lanes and tenants that slept over their work and were woken: must stay 0",
        labels=["level"],
    )
    for level, count in repairs.items():
        metric.add_metric([level], count)
    return metric
