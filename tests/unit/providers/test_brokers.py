"""Where brokers are, and which subjects events go to: what is written wrongly is told, not guessed."""

import pytest

from services.providers.brokers import Broker, Host, is_token, parse, subject_problem, url_problem


def test_a_broker_is_one_host_or_several_of_a_cluster() -> None:
    assert parse("nats://127.0.0.1") == Broker((Host("127.0.0.1", 4222),), encrypted=False)
    hosts = (Host("a.example.com", 4222), Host("b.example.com", 5), Host("2001:db8::1", 6))
    assert parse("tls://a.example.com,b.example.com:5,[2001:db8::1]:6") == Broker(
        hosts, encrypted=True
    )


@pytest.mark.parametrize(
    "url",
    [
        "tls://user:canary@a.example.com",
        "tls://canary@a.example.com",
        "nats://a.example.com",
        "nats://127.0.0.1,10.0.0.1",
        "tls://a.example.com:0",
        "tls://a.example.com:65536",
        "tls://a.example.com:",
        "tls://",
        "tls://a.example.com,",
        "tls://a.example.com/path",
        "tls://a.example.com?x",
        "tls://a b",
        "tls://ü.example.com",
        "tls://a.example.com\n",
        "https://a.example.com",
        "TLS://a.example.com",
        "tls://" + ",".join(["a.example.com"] * 17),
    ],
)
def test_what_is_no_url_of_a_broker_is_told_without_being_repeated(url: str) -> None:
    problem = url_problem(url)
    assert problem and "canary" not in problem and "example" not in problem


@pytest.mark.parametrize(
    "subject", ["orders", "orders.eu-1.invoice_paid", "a.b,c.d/e=f?g~", "a.$b"]
)
def test_a_subject_is_tokens_joined_by_dots(subject: str) -> None:
    assert subject_problem(subject) is None


@pytest.mark.parametrize(
    "subject",
    ["", ".", "a.", ".a", "a..b", "a.*", "a.>", "a b", "a\tb", "a\r\nPUB x 0", "ä", "$JS.API", "a" * 1025],
)  # fmt: skip
def test_nothing_else_is_a_subject(subject: str) -> None:
    assert subject_problem(subject) is not None


def test_a_token_is_printable_ascii_without_dots_and_wildcards() -> None:
    printable = {chr(code) for code in range(0x110000) if is_token(chr(code))}
    assert printable == {chr(code) for code in range(0x21, 0x7F)} - set(".*>")
