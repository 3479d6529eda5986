"""Webhook signatures, against the standard's vector, an independent reference and malice."""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping
from random import Random
from typing import get_args

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import assume, given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from services.chassis.secret import Secret
from services.providers.manifest import SignatureScheme
from services.providers.signatures import OF_URLS, SCHEMES, SignatureRefused, sign, verify
from services.providers.signing_keys import is_public, new_private_key, public_key

NOW = 1_700_000_000.0
GITHUB_SECRET = Secret("It's a Secret to Everybody")
STANDARD_SECRET = Secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
SECRETS: Mapping[SignatureScheme, Secret] = {
    "github_sha256": GITHUB_SECRET,
    "standard_webhooks": STANDARD_SECRET,
    "slack_v0": Secret("8f742231b10e8888abcd99yyyzzz85a5"),
    "stripe_v1": Secret("whsec_test_secret"),
    "hubspot_v3": Secret("yyyyyyyy-yyyy-yyyy-yyyy-yyyyyyyyyyyy"),
    "intuit_sha256": Secret("verifier token"),
}
URL = "https://hooks.example.com/v1/app/hubspot/main?a=1"
every_scheme = pytest.mark.parametrize("scheme", SCHEMES)
timed_schemes = pytest.mark.parametrize(
    "scheme", [each for each in SCHEMES if each not in {"github_sha256", "intuit_sha256"}]
)


def test_every_scheme_a_manifest_may_name_is_there() -> None:
    assert set(SCHEMES) == set(get_args(SignatureScheme))


def test_the_vector_in_githubs_documents() -> None:
    digest = "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    headers = {"x-hub-signature-256": f"sha256={digest}"}
    verify("github_sha256", [GITHUB_SECRET], headers, b"Hello, World!", NOW)


def test_the_vector_of_standard_webhooks() -> None:
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    body = b'{"test": 2432232314}'
    verify("standard_webhooks", [STANDARD_SECRET], headers, body, 1614265330)
    assert headers == sign(
        "standard_webhooks", STANDARD_SECRET, body, 1614265330, headers["webhook-id"]
    )


def test_the_vector_in_slacks_documents() -> None:
    """From "Verifying requests from Slack"."""
    body = (
        b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow"
        b"&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner"
        b"&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands"
        b"%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
        b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
    )
    digest = "a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
    headers = {
        "x-slack-signature": f"v0={digest}",
        "x-slack-request-timestamp": "1531420618",
    }
    secret = SECRETS["slack_v0"]
    verify("slack_v0", [secret], headers, body, 1531420618)
    assert sign("slack_v0", secret, body, 1531420618, "") == headers


def test_each_scheme_signs_what_its_provider_says_it_does() -> None:
    """Stripe, HubSpot and Intuit publish no vectors: their recipes, followed by hand."""
    body = b'[{"eventId": 1}]'

    def mac(scheme: SignatureScheme, message: bytes) -> bytes:
        return hmac.digest(SECRETS[scheme].reveal(), message, "sha256")

    stripe = mac("stripe_v1", b"1700000000." + body).hex()
    hubspot = base64.b64encode(
        mac("hubspot_v3", f"POST{URL}".encode() + body + b"1700000000000")
    ).decode()
    intuit = base64.b64encode(mac("intuit_sha256", body)).decode()
    by_hand: dict[SignatureScheme, dict[str, str]] = {
        "stripe_v1": {"stripe-signature": f"t=1700000000,v1={stripe}"},
        "hubspot_v3": {
            "x-hubspot-signature-v3": hubspot,
            "x-hubspot-request-timestamp": "1700000000000",
        },
        "intuit_sha256": {"intuit-signature": intuit},
    }
    for scheme, headers in by_hand.items():
        verify(scheme, [SECRETS[scheme]], headers, body, NOW, URL)
        assert sign(scheme, SECRETS[scheme], body, NOW, "", URL) == headers


@pytest.mark.parametrize(
    ("sent", "signed"),
    [
        ("%3A%2F%3F%40%21%24%27%28%29%2A%2C%3B", ":/?@!$'()*,;"),
        ("%3a%2f%3b", ":/;"),
        ("a%20b%26c%25%2B%E2%82%AC", "a%20b%26c%25%2B%E2%82%AC"),
        ("%253A", "%253A"),
    ],
)
def test_hubspot_undoes_twelve_signs_of_an_url_and_no_more(sent: str, signed: str) -> None:
    secret, url = SECRETS["hubspot_v3"], "https://h.example/v1/x?q="
    message = f"POST{url}{signed}x1700000000000".encode()
    given = base64.b64encode(hmac.digest(secret.reveal(), message, "sha256")).decode()
    headers = {
        "x-hubspot-signature-v3": given,
        "x-hubspot-request-timestamp": "1700000000000",
    }
    verify("hubspot_v3", [secret], headers, b"x", NOW, url + sent)


def test_schemes_of_urls_refuse_another_url_and_others_take_any() -> None:
    for scheme in SCHEMES:
        secret = SECRETS[scheme]
        headers = sign(scheme, secret, b"x", NOW, "m", URL)
        for other in ("", URL + "0", URL.replace("https", "http")):
            if scheme in OF_URLS:
                with pytest.raises(SignatureRefused):
                    verify(scheme, [secret], headers, b"x", NOW, other)
            else:
                verify(scheme, [secret], headers, b"x", NOW, other)


@every_scheme
@given(data=st.data())
def test_one_changed_sign_of_any_header_is_refused(
    scheme: SignatureScheme, data: st.DataObject
) -> None:
    headers = sign(scheme, SECRETS[scheme], b"body", NOW, "msg_1", URL)
    name = data.draw(st.sampled_from(sorted(headers)))
    # What follows Standard Webhooks may write the same bytes in base64 in four ways.
    spared = 2 if name == "webhook-signature" else 0
    at = data.draw(st.integers(0, len(headers[name]) - 1 - spared))
    other = data.draw(st.characters(min_codepoint=33, max_codepoint=126))
    assume(other != headers[name][at])
    changed = headers[name][:at] + other + headers[name][at + 1 :]
    for wrong in (headers | {name: changed}, {n: v for n, v in headers.items() if n != name}):
        with pytest.raises(SignatureRefused):
            verify(scheme, [SECRETS[scheme]], wrong, b"body", NOW, URL)


def test_stripe_signs_with_two_secrets_at_once_and_says_one_time() -> None:
    secret = SECRETS["stripe_v1"]
    both = ",v1=".join(
        sign("stripe_v1", each, b"x", NOW, "")["stripe-signature"].rpartition("v1=")[2]
        for each in (Secret("another"), secret)
    )
    verify("stripe_v1", [secret], {"stripe-signature": f"t=1700000000,v1={both},v0=ab"}, b"x", NOW)
    for wrong in (f"t=1700000000,t=1700000001,v1={both}", f"v1={both}", "t=1700000000,v0=ab"):
        with pytest.raises(SignatureRefused):
            verify("stripe_v1", [secret], {"stripe-signature": wrong}, b"x", NOW)


def test_a_thousand_random_bodies_against_hmac_itself() -> None:
    random = Random(7)
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    for _ in range(1000):
        body = random.randbytes(random.randrange(0, 400))
        digest = hmac.digest(GITHUB_SECRET.reveal(), body, "sha256").hex()
        headers = {"x-hub-signature-256": f"sha256={digest}"}
        verify("github_sha256", [GITHUB_SECRET], headers, body, NOW)
        assert sign("github_sha256", GITHUB_SECRET, body, NOW, "any") == headers

        mac = base64.b64encode(hmac.digest(key, b"msg_1.1700000000." + body, hashlib.sha256))
        standard = {
            "webhook-id": "msg_1",
            "webhook-timestamp": "1700000000",
            "webhook-signature": f"v1,{mac.decode()}",
        }
        verify("standard_webhooks", [STANDARD_SECRET], standard, body, NOW)
        assert sign("standard_webhooks", STANDARD_SECRET, body, NOW, "msg_1") == standard


def test_the_standards_own_library_accepts_what_we_sign() -> None:
    headers = sign("standard_webhooks", STANDARD_SECRET, b'{"type":"a.b"}', time.time(), "msg_2")
    assert Webhook(STANDARD_SECRET.reveal_text()).verify('{"type":"a.b"}', headers)


@every_scheme
@given(body=st.binary(min_size=1, max_size=200), data=st.data())
def test_one_changed_bit_is_refused(
    scheme: SignatureScheme, body: bytes, data: st.DataObject
) -> None:
    headers = sign(scheme, SECRETS[scheme], body, NOW, "msg_1")
    verify(scheme, [SECRETS[scheme]], headers, body, NOW)
    at, bit = data.draw(st.integers(0, len(body) - 1)), data.draw(st.integers(0, 7))
    changed = body[:at] + bytes([body[at] ^ 1 << bit]) + body[at + 1 :]
    with pytest.raises(SignatureRefused):
        verify(scheme, [SECRETS[scheme]], headers, changed, NOW)


@every_scheme
@given(
    values=st.lists(
        st.one_of(
            st.none(),
            st.text(),
            st.text(alphabet="v1a,=sha256é٣ \n", max_size=90),
            st.from_regex(r"\Asha256=[0-9a-fA-F]{60,70}\Z"),
            st.from_regex(r"\A(v0=|t=1700000000,v1=)[0-9a-fA-F]{60,70}\Z"),
            st.from_regex(r"\A[A-Za-z0-9+/]{40,44}={0,3}\Z"),
            st.from_regex(r"\Av1a?,[A-Za-z0-9+/]{0,44}={0,3}\Z"),
            st.from_regex(r"\A-?[0-9]{1,400}(\.[0-9])?\Z"),
        ),
        min_size=4,
        max_size=4,
    )
)
def test_malformed_headers_are_refused_and_nothing_else(
    scheme: SignatureScheme, values: list[str | None]
) -> None:
    names = sorted(sign(scheme, SECRETS[scheme], b"body", NOW, "m", URL))
    headers = {name: value for name, value in zip(names, values, strict=False) if value is not None}
    with pytest.raises(SignatureRefused):
        verify(scheme, [SECRETS[scheme]], headers, b"body", NOW)


@every_scheme
@pytest.mark.parametrize("secrets", [[], [Secret("")], [Secret("\xff not base64")]])
def test_without_a_usable_secret_nothing_is_accepted(
    scheme: SignatureScheme, secrets: list[Secret]
) -> None:
    with pytest.raises(SignatureRefused):
        verify(scheme, secrets, sign(scheme, SECRETS[scheme], b"x", NOW, "m"), b"x", NOW)


@every_scheme
@pytest.mark.parametrize("empty", ["", "whsec_"])
def test_an_empty_secret_refuses_a_signature_made_with_it(
    scheme: SignatureScheme, empty: str
) -> None:
    standard = hmac.digest(b"", b"m.1700000000.x", "sha256")
    headers = {
        "x-hub-signature-256": f"sha256={hmac.digest(b'', b'x', 'sha256').hex()}",
        "webhook-id": "m",
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{base64.b64encode(standard).decode()}",
    }
    with pytest.raises(SignatureRefused):
        verify(scheme, [Secret(empty)], headers, b"x", NOW)


@every_scheme
def test_both_secrets_count_while_they_overlap_and_a_stale_one_does_not(
    scheme: SignatureScheme,
) -> None:
    old = SECRETS[scheme]
    new = Secret("whsec_" + base64.b64encode(b"n" * 32).decode())
    for signer in (old, new):
        verify(scheme, [new, old], sign(scheme, signer, b"x", NOW, "m"), b"x", NOW)
    with pytest.raises(SignatureRefused):
        verify(scheme, [new], sign(scheme, old, b"x", NOW, "m"), b"x", NOW)


@timed_schemes
@pytest.mark.parametrize(
    ("skew_s", "accepted"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)]
)
def test_the_tolerance_goes_both_ways(
    scheme: SignatureScheme, skew_s: int, *, accepted: bool
) -> None:
    secret = SECRETS[scheme]
    headers = sign(scheme, secret, b"x", NOW, "m")
    if accepted:
        verify(scheme, [secret], headers, b"x", NOW + skew_s)
    else:
        with pytest.raises(SignatureRefused):
            verify(scheme, [secret], headers, b"x", NOW + skew_s)


def test_one_good_signature_among_others_is_enough() -> None:
    headers = sign("standard_webhooks", STANDARD_SECRET, b"x", NOW, "m")
    headers["webhook-signature"] = f"v1a,abc= v1,%% v1, {headers['webhook-signature']} v2,x"
    verify("standard_webhooks", [STANDARD_SECRET], headers, b"x", NOW)


def test_bytes_cannot_move_between_the_id_and_the_body() -> None:
    """`m` . `1700000000` . `1700000000.x` signs the same bytes as `m.1700000000` . … . `x`."""
    headers = sign("standard_webhooks", STANDARD_SECRET, b"1700000000.x", NOW, "m")
    headers["webhook-id"] = "m.1700000000"
    with pytest.raises(SignatureRefused):
        verify("standard_webhooks", [STANDARD_SECRET], headers, b"x", NOW)


def test_a_refusal_says_the_same_to_every_sender() -> None:
    def refusal(headers: dict[str, str], secrets: list[Secret]) -> SignatureRefused:
        with pytest.raises(SignatureRefused) as refused:
            verify("github_sha256", secrets, headers, b"x", NOW)
        return refused.value

    wrong = {"x-hub-signature-256": f"sha256={'0' * 64}"}
    refusals = [refusal({}, [GITHUB_SECRET]), refusal(wrong, [GITHUB_SECRET]), refusal(wrong, [])]
    assert len({str(each) for each in refusals}) == 1
    assert len({each.detail for each in refusals}) == 3


def test_what_was_no_secret_once_does_not_bar_its_successor() -> None:
    headers = sign("standard_webhooks", STANDARD_SECRET, b"{}", NOW, "x")
    verify("standard_webhooks", [STANDARD_SECRET, Secret("no base64")], headers, b"{}", NOW)
    with pytest.raises(SignatureRefused, match="signature"):
        verify("standard_webhooks", [Secret("no base64"), Secret("")], headers, b"{}", NOW)


# RFC 8032, section 7.1, test 1: a private key and its public one.
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
PAIR = Secret("whsk_" + base64.b64encode(SEED + PUBLIC).decode())
WHPK = "whpk_" + base64.b64encode(PUBLIC).decode()


def test_the_public_key_is_that_of_the_rfc_and_so_is_what_it_verifies() -> None:
    assert public_key(PAIR) == WHPK
    assert public_key(Secret("whsk_" + base64.b64encode(SEED).decode())) == WHPK
    headers = sign("standard_webhooks", PAIR, b'{"a": 1}', NOW, "msg_1")
    version, _, signature = headers["webhook-signature"].partition(",")
    assert version == "v1a"
    theirs = Ed25519PublicKey.from_public_bytes(PUBLIC)
    theirs.verify(base64.b64decode(signature), b'msg_1.1700000000.{"a": 1}')


def test_a_thousand_random_bodies_against_ed25519_itself() -> None:
    random = Random(8)
    ours, theirs = Secret(WHPK), Ed25519PrivateKey.from_private_bytes(SEED)
    for number in range(1000):
        body = random.randbytes(random.randrange(400))
        made = theirs.sign(f"m_{number}.1700000000.".encode() + body)
        headers = {
            "webhook-id": f"m_{number}",
            "webhook-timestamp": "1700000000",
            "webhook-signature": f"v1a,{base64.b64encode(made).decode()}",
        }
        verify("standard_webhooks", [ours], headers, body, NOW)
        assert sign("standard_webhooks", PAIR, body, NOW, f"m_{number}") == headers
        with pytest.raises(SignatureRefused):
            verify("standard_webhooks", [ours], headers, body + b" ", NOW)


def test_each_version_of_signature_is_of_its_sort_of_key_alone() -> None:
    """A public key as the bytes of a symmetric one would let everybody sign."""
    forged = base64.b64encode(hmac.digest(PUBLIC, b"m.1700000000.x", "sha256")).decode()
    headers = sign("standard_webhooks", PAIR, b"x", NOW, "m")
    for signature in (f"v1,{forged}", headers["webhook-signature"].replace("v1a,", "v1,")):
        told = {**headers, "webhook-signature": signature}
        with pytest.raises(SignatureRefused):
            verify("standard_webhooks", [Secret(WHPK), PAIR], told, b"x", NOW)
    with pytest.raises(SignatureRefused, match="signature"):
        verify("standard_webhooks", [STANDARD_SECRET], headers, b"x", NOW)
    by_github = {
        "x-hub-signature-256": f"sha256={hmac.digest(WHPK.encode(), b'x', 'sha256').hex()}"
    }
    with pytest.raises(SignatureRefused):
        verify("github_sha256", [Secret(WHPK)], by_github, b"x", NOW)


@pytest.mark.parametrize(
    "text",
    [
        "whsk_",
        "whsk_no base64",
        "whsk_" + base64.b64encode(SEED[:31]).decode(),
        "whsk_" + base64.b64encode(SEED + bytes(32)).decode(),
        "whpk_" + base64.b64encode(PUBLIC + b"x").decode(),
    ],
)
def test_what_is_no_pair_signs_and_verifies_nothing(text: str) -> None:
    assert public_key(Secret(text)) == ""
    with pytest.raises(SignatureRefused):
        sign("standard_webhooks", Secret(text), b"x", NOW, "m")
    with pytest.raises(SignatureRefused):
        verify("standard_webhooks", [Secret(text)], sign("standard_webhooks", PAIR, b"x", NOW, "m"), b"x", NOW)  # fmt: skip


def test_a_fresh_pair_is_another_each_time_and_its_private_half_is_not_public() -> None:
    made = [new_private_key() for _ in range(2)]
    assert len({public_key(each) for each in made}) == 2
    assert [is_public(each) for each in (*made, Secret(WHPK))] == [False, False, True]
    assert public_key(STANDARD_SECRET) == ""


def test_no_more_asymmetric_signatures_are_looked_at_than_an_overlap_has() -> None:
    headers = sign("standard_webhooks", PAIR, b"x", NOW, "m")
    word = "v1a," + base64.b64encode(bytes(64)).decode()
    headers["webhook-signature"] = " ".join([word, word, headers["webhook-signature"]])
    with pytest.raises(SignatureRefused):
        verify("standard_webhooks", [Secret(WHPK)], headers, b"x", NOW)
    headers["webhook-signature"] = headers["webhook-signature"].partition(" ")[2]
    verify("standard_webhooks", [Secret(WHPK)], headers, b"x", NOW)
