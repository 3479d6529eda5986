"""What each process of a crew is told."""

from services.chassis.secret import Secret
from services.executor.crew import _posts
from services.executor.settings import Settings

SECRET = Secret("x")


def settings(metrics_port: int) -> Settings:
    return Settings(
        SECRET, SECRET, SECRET, metrics_port=metrics_port, rpc_processes=2, work_processes=2
    )


def test_each_process_has_a_port_of_its_own_for_its_metrics() -> None:
    posts = _posts(settings(9465), {"grpc": 50052})
    ports = [post.environment["TENON_EXECUTOR_METRICS_PORT"] for post in posts]
    assert ports == ["9465", "9466", "9467", "9468"]
    off = _posts(settings(0), {"grpc": 50052})
    assert {post.environment["TENON_EXECUTOR_METRICS_PORT"] for post in off} == {"0"}
