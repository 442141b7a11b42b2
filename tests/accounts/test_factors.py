"""Second factors, re-authentication, and limits on attempts."""

import base64
import hashlib
import hmac
import struct
import time
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import time_machine
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.core.cache import cache
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from cng_portal.accounts import known_browsers
from cng_portal.accounts.models import Project, Role, User
from cng_portal.accounts.signin import attempts, confirmation, factors
from cng_portal.activity.models import Activity
from cng_portal.mail.models import OutgoingMail
from tests.accounts.test_sign_in import PASSWORD, sign_in
from tests.factories import ProjectFactory, UserFactory
from tests.smtp import sent_mails

if TYPE_CHECKING:
    from playwright.sync_api import Page
    from pytest_django.fixtures import SettingsWrapper
    from time_machine import TimeMachineFixture

pytestmark = pytest.mark.django_db


def code_of(secret: str, at: float | None = None) -> str:
    """Return the code of an authenticator app, now or at another time (RFC 6238)."""
    key = base64.b32decode(secret + "=" * (-len(secret) % 8))
    digest = hmac.new(key, struct.pack(">Q", int(at or time.time()) // 30), hashlib.sha1).digest()
    start = digest[-1] & 15
    return f"{(struct.unpack('>I', digest[start : start + 4])[0] & 0x7FFFFFFF) % 10**6:06d}"


@pytest.fixture
def user() -> User:
    return UserFactory(email="aye@example.com", password=PASSWORD, member_of=ProjectFactory())


@pytest.fixture
def secret(user: User) -> str:
    """The secret of the authenticator app that the user has set up."""
    client = Client()
    sign_in(client, user.email)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    page = client.get(reverse("mfa_activate_totp"))
    secret = page.context["form"].secret
    assert secret in page.text
    response = client.post(reverse("mfa_activate_totp"), {"code": code_of(secret)})
    assert response["Location"] == reverse("mfa_view_recovery_codes")
    cache.clear()  # so that tests can use the activation code again
    return secret


@pytest.mark.parametrize("answer", ["[1]", "1", '{"id": 1}', '{"rawId": "", "response": {"attestationObject": "AA"}}'])
def test_an_answer_that_no_passkey_gives_counts_as_a_wrong_passkey(user: User, secret: str, answer: str) -> None:
    client = Client()
    sign_in(client, user.email)
    assert "Incorrect code" in client.post(reverse("mfa_authenticate"), {"credential": answer}).text
    assert Client().post(reverse("mfa_login_webauthn"), {"credential": answer})["Location"] == reverse("account_login")

    client.post(reverse("mfa_authenticate"), {"code": code_of(secret)})
    session = client.session
    assert session["_auth_user_id"] == str(user.pk)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    added = client.post(reverse("mfa_add_webauthn"), {"name": "Key", "credential": answer})
    assert added.status_code == 200
    assert not Authenticator.objects.filter(type=Authenticator.Type.WEBAUTHN).exists()


def test_sign_in_needs_a_code_and_a_recovery_code_works_once(user: User, secret: str) -> None:
    client = Client()
    assert sign_in(client, user.email)["Location"] == reverse("mfa_authenticate")
    assert client.get("/").status_code == 302
    assert "Incorrect code" in client.post(reverse("mfa_authenticate"), {"code": "000000"}).text
    [code, *_others] = Authenticator.objects.get(type="recovery_codes").wrap().get_unused_codes()
    assert client.post(reverse("mfa_authenticate"), {"code": code})["Location"] == "/"
    again = Client()
    sign_in(again, user.email)
    assert again.post(reverse("mfa_authenticate"), {"code": code}).status_code == 200
    assert again.get("/").status_code == 302


def test_a_code_of_the_app_works_once_while_it_is_valid(
    user: User, secret: str, time_machine: "TimeMachineFixture"
) -> None:
    period = (int(time.time()) // 30 + 100) * 30
    for begins, code in ((period, code_of(secret, period)), (period + 300, code_of(secret, period + 330))):
        time_machine.move_to(begins + 1, tick=False)
        assert lets_in(user, code)
        # a code of the next period, from a phone whose clock is ahead, is accepted for 90 seconds
        for later in (2, 33, 58):
            time_machine.move_to(begins + later, tick=False)
            assert not lets_in(user, code)


def stored() -> str:
    return str(list(Authenticator.objects.values_list("data", flat=True)))


def lets_in(user: User, code: str) -> bool:
    client = Client()
    sign_in(client, user.email)
    client.post(reverse("mfa_authenticate"), {"code": code})
    return client.get("/").status_code == 200


def test_an_unreadable_factor_does_not_stop_the_encryption_of_others(user: User, secret: str) -> None:
    Authenticator.objects.filter(user=user, type="totp").update(data={"secret": None})
    other = Authenticator.objects.create(user=UserFactory(), type="totp", data={"secret": secret})
    with pytest.raises(ExceptionGroup):
        factors.encrypt_all()
    other.refresh_from_db()
    assert other.data["secret"].startswith("fernet:")


@pytest.mark.both_databases
def test_factor_secrets_are_encrypted_and_reencrypted_with_a_new_key(
    user: User, secret: str, settings: "SettingsWrapper"
) -> None:
    [recovery, *_others] = Authenticator.objects.get(type="recovery_codes").wrap().get_unused_codes()
    assert secret not in stored() and stored().count("'fernet:") == 2
    first = settings.SECRET_KEY

    # stored unencrypted by an earlier version
    [app] = Authenticator.objects.filter(type="totp")
    app.data["secret"] = secret
    app.save()
    assert lets_in(user, code_of(secret))
    assert (factors.encrypt_all(), factors.encrypt_all()) == (1, 0)
    assert secret not in stored()

    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another sentence that signs and encrypts", [first]
    assert lets_in(user, recovery)
    assert (factors.encrypt_all(), factors.encrypt_all()) == (2, 0)
    settings.SECRET_KEY_FALLBACKS = []
    [next_one, *_others] = Authenticator.objects.get(type="recovery_codes").wrap().get_unused_codes()
    assert next_one != recovery, "a code that was used stays used"
    assert lets_in(user, next_one)


def test_a_factor_whose_key_is_lost_is_explained_and_reset_by_command(
    user: User, secret: str, settings: "SettingsWrapper", capsys: pytest.CaptureFixture
) -> None:
    settings.SECRET_KEY = "after a restore without the secret of before"
    client = Client()
    sign_in(client, user.email)
    answer = client.post(reverse("mfa_authenticate"), {"code": code_of(secret)})
    assert answer.status_code == 403
    assert "Your second factor can&#x27;t be checked" in answer.text
    assert factors.encrypt_all() == 0, "what cannot be read stays as it is"

    call_command("reset_mfa", user.email.upper())
    assert "Removed 1 second factors of aye@example.com." in capsys.readouterr().out
    assert not Authenticator.objects.exists()
    assert Activity.objects.get(action="user.remove_factor").actor is None
    assert user.notifications.filter(title="An administrator removed a second factor: authenticator app").exists()
    assert sign_in(Client(), user.email)["Location"] == "/"
    with pytest.raises(CommandError, match="No user has the address nobody@example.com"):
        call_command("reset_mfa", "nobody@example.com")


@pytest.mark.django_db(transaction=True)
def test_a_new_factor_is_notified_and_logged(user: User, secret: str) -> None:
    notice = user.notifications.get(title="A second factor was added: authenticator app")
    assert any(notice.title in mail.subject and "If this wasn't you" in mail.body for mail in sent_mails())
    assert Activity.objects.filter(actor=user, action="user.add_factor").exists()


def test_factors_are_changed_only_after_a_confirmation(user: User) -> None:
    client = Client()
    sign_in(client, user.email)
    for name in ("mfa_activate_totp", "mfa_add_webauthn", "mfa_generate_recovery_codes", "account_email"):
        answers = {"action_add": "", "email": "new@example.com"}
        response = client.post(reverse(name), answers) if name == "account_email" else client.get(reverse(name))
        assert response["Location"].startswith(reverse("account_reauthenticate")), name


def test_django_admin_needs_a_second_factor_where_the_setting_says_so(
    settings: "SettingsWrapper", client_for: Callable[..., Client]
) -> None:
    admin = UserFactory(admin=True)
    client = client_for(admin)
    assert client.get("/admin/").status_code == 200
    settings.ADMIN_MFA_REQUIRED = True
    response = client.get("/admin/", follow=True)
    assert response.redirect_chain[-1][0] == reverse("accounts:security")
    assert "Django admin requires a second factor." in response.text
    assert client.session[factors.NEXT_PAGE] == "/admin/"
    Authenticator.objects.create(user=admin, type=Authenticator.Type.TOTP, data={"secret": "x"})
    assert client.get("/admin/").status_code == 200


def add_app(client: Client) -> None:
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    secret = client.get(reverse("mfa_activate_totp")).context["form"].secret
    client.post(reverse("mfa_activate_totp"), {"code": code_of(secret)})


@pytest.mark.parametrize(
    ("required", "refused"),
    [
        ("nobody", []),
        ("owners", [Role.OWNER]),
        ("everyone", [Role.OWNER, Role.MEMBER, Role.VIEWER, None]),
    ],
)
def test_users_without_a_required_factor_reach_only_the_page_that_adds_one(
    required: str, refused: list[Role | None], settings: "SettingsWrapper", client_for: Callable[..., Client]
) -> None:
    project = ProjectFactory()
    users = {role: UserFactory(member_of=project, member_of__role=role) for role in Role} | {None: UserFactory()}
    settings.MFA_REQUIRED = required
    security = reverse("accounts:security")
    for role, user in users.items():
        client = client_for(user)
        page = client.get(security).text
        assert ("Add a second factor to continue" in page) == (role in refused)
        if role not in refused:
            assert client.get("/").status_code == 200
            continue
        assert client.get("/").url == security
        assert client.get("/snapshots/", headers={"HX-Request": "true"})["HX-Redirect"] == security
        assert client.post(reverse("accounts:profile"), {"name": "Somebody"}).url == security
        assert User.objects.get(pk=user.pk).name == user.name
        assert client.get(reverse("mfa_activate_totp")).status_code == 200
        assert client.post(reverse("account_logout")).status_code == 302


def test_adding_the_factor_leads_back_to_the_requested_page(user: User, settings: "SettingsWrapper") -> None:
    settings.MFA_REQUIRED = "everyone"
    client = Client()
    sign_in(client, user.email)
    client.get("/snapshots/?q=nightly")
    add_app(client)
    codes = reverse("mfa_view_recovery_codes")
    assert '<a class="btn btn-secondary" href="/snapshots/?q=nightly">Continue</a>' in client.get(codes).text
    assert client.get("/snapshots/?q=nightly").status_code == 200
    assert "Continue" not in client.get(codes).text, "once"


@pytest.mark.parametrize(
    ("address", "wanted"),
    [
        ("http://testserver/volumes/?q=x", "/volumes/?q=x"),
        ("http://elsewhere.example/volumes/", None),
        ("http://testserver//elsewhere.example/", None),
    ],
)
def test_an_htmx_request_returns_to_its_page_after_the_factor_is_added(
    user: User, settings: "SettingsWrapper", address: str, wanted: str | None
) -> None:
    settings.MFA_REQUIRED = "everyone"
    client = Client()
    sign_in(client, user.email)
    client.post("/snapshots/new/", headers={"HX-Request": "true", "HX-Current-URL": address})
    assert client.session.get(factors.NEXT_PAGE) == wanted


def test_a_removed_factor_takes_effect_at_once(
    user: User, secret: str, settings: "SettingsWrapper", client_for: Callable[..., Client]
) -> None:
    client = client_for(user)
    settings.MFA_REQUIRED = "everyone"
    assert client.get("/").status_code == 200
    call_command("reset_mfa", user.email)
    assert client.get("/").url == reverse("accounts:security")


def test_an_administrators_action_continues_after_a_confirmation() -> None:
    admin = UserFactory(admin=True, email="admin@example.com", password=PASSWORD)
    project = ProjectFactory(name="Before")
    client = Client()
    sign_in(client, admin.email)
    session = client.session
    session[confirmation.CONFIRMED_AT] = time.time() - confirmation.VALID_SECONDS - 1
    session.save()
    url = reverse("admin:accounts_project_change", args=[project.pk])
    answers = {
        "name": "After",
        "snapshot_quota": -1,
        "snapshot_gb_quota": -1,
        "volume_quota": -1,
        "volume_gb_quota": -1,
    }
    answers |= {"memberships-TOTAL_FORMS": 0, "memberships-INITIAL_FORMS": 0}
    assert client.get(url).status_code == 200
    response = client.post(url, answers)
    assert response["Location"].startswith(reverse("account_reauthenticate"))
    assert Project.objects.get(pk=project.pk).name == "Before"
    client.post(response["Location"], {"password": "wrong", "next": url})
    assert Project.objects.get(pk=project.pk).name == "Before"
    client.post(response["Location"], {"password": PASSWORD, "next": url})
    assert Project.objects.get(pk=project.pk).name == "After"
    # now it was confirmed recently
    assert client.post(url, answers | {"name": "Again"}).status_code == 302
    assert Project.objects.get(pk=project.pk).name == "Again"
    # A clock that was ahead makes no confirmation last longer.
    session = client.session
    session[confirmation.CONFIRMED_AT] = time.time() + 3600
    session.save()
    response = client.post(url, answers | {"name": "Later"})
    assert response["Location"].startswith(reverse("account_reauthenticate"))


def test_a_posted_password_is_not_replayed_after_a_confirmation() -> None:
    admin = UserFactory(admin=True, email="admin@example.com", password=PASSWORD)
    client = Client()
    sign_in(client, admin.email)
    session = client.session
    session[confirmation.CONFIRMED_AT] = 0
    session.save()
    secret = "horse-of-a-newcomer"
    answers = {"email": "new@example.com", "password1": secret, "password2": secret}
    for name, args in (("user_add", []), ("user_changelist", [])):
        url = reverse(f"admin:accounts_{name}", args=args)
        response = client.post(url, answers)
        assert response["Location"].startswith(reverse("account_reauthenticate"))
        assert (secret in str(dict(client.session))) == (name != "user_add")
    assert not User.objects.filter(email="new@example.com").exists()


def test_a_confirmation_gives_the_session_a_new_key(user: User) -> None:
    client, stolen = Client(), Client()
    sign_in(client, user.email)
    stolen.cookies[settings.SESSION_COOKIE_NAME] = client.session.session_key
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    assert client.get("/").status_code == 200
    assert stolen.get("/").status_code == 302
    assert "This one" in client.get(reverse("accounts:sessions")).text


def test_a_changed_password_ends_the_other_sessions_and_notifies_the_user(user: User) -> None:
    current, other = Client(), Client()
    for client in (current, other):
        sign_in(client, user.email)
    new = "another password of the tests"
    current.post(reverse("account_change_password"), {"oldpassword": PASSWORD, "password1": new, "password2": new})
    assert current.get("/").status_code == 200
    assert len(current.get(reverse("accounts:sessions")).context["sessions"]) == 1
    assert other.get("/").status_code == 302
    assert user.notifications.get().title == "Your password was changed"


def test_a_new_address_takes_effect_when_confirmed_and_the_old_one_is_notified(
    user: User, django_capture_on_commit_callbacks: Callable
) -> None:
    client = Client()
    sign_in(client, user.email)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    client.post(reverse("account_email"), {"action_add": "", "email": "new@example.com"})
    user.refresh_from_db()
    assert user.email == "aye@example.com"
    [message] = [mail for mail in sent_mails() if mail.to == ["new@example.com"]]
    client.post(reverse("account_email"), {"action_remove": "", "email": "aye@example.com"})
    user.refresh_from_db()
    assert user.email == "aye@example.com"
    link = next(word for word in message.body.split() if "/confirm-email/" in word)
    with django_capture_on_commit_callbacks(execute=True):
        client.post(link)
    user.refresh_from_db()
    assert user.email == "new@example.com"
    assert sent_mails()[-1].to == ["aye@example.com"]
    assert sent_mails()[-1].subject == "1CNG: Your e-mail address is now new@example.com"
    assert Activity.objects.get(action="user.change_email").after == {"email": "new@example.com"}


def test_the_page_says_that_the_email_to_a_new_address_was_not_delivered_and_sends_it_again(user: User) -> None:
    client = Client()
    sign_in(client, user.email)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    client.post(reverse("account_email"), {"action_add": "", "email": "new@example.com"})
    page = client.get(reverse("account_email"))
    assert "We've e-mailed a link to it." in page.text
    OutgoingMail.objects.update(failed_at=timezone.now(), error="550 5.1.1 No such user")
    assert "The mail server refused our e-mail: 550 5.1.1 No such user" in client.get(reverse("account_email")).text
    with time_machine.travel(timezone.now() + timedelta(minutes=4)):
        client.post(reverse("account_email"), {"action_send": "", "email": "new@example.com"})
    assert [message.to for message in sent_mails()] == [["new@example.com"]]


def test_a_link_does_not_confirm_an_address_that_another_user_signs_in_with(user: User) -> None:
    other = UserFactory(email="other@example.com", password="another password")
    client, theirs = Client(), Client()
    sign_in(client, user.email)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    client.post(reverse("account_email"), {"action_add": "", "email": other.email})
    [message] = [mail for mail in sent_mails() if mail.to == [other.email]]
    link = next(word for word in message.body.split() if "/confirm-email/" in word)
    assert "other@example.com" in theirs.post(link, follow=True).text
    user.refresh_from_db()
    assert user.email == "aye@example.com"
    assert not EmailAddress.objects.filter(user=user, email=other.email, verified=True).exists()
    sign_in(theirs, other.email, "another password")
    assert theirs.session["_auth_user_id"] == str(other.pk)


def test_the_code_that_activated_an_app_does_not_sign_in(user: User) -> None:
    client = Client()
    sign_in(client, user.email)
    client.post(reverse("account_reauthenticate"), {"password": PASSWORD})
    code = code_of(client.get(reverse("mfa_activate_totp")).context["form"].secret)
    assert client.post(reverse("mfa_activate_totp"), {"code": code}).status_code == 302
    thief = Client()
    sign_in(thief, user.email)
    assert "Incorrect code." in thief.post(reverse("mfa_authenticate"), {"code": code}).text
    assert "_auth_user_id" not in thief.session


def test_strangers_attempts_do_not_lock_out_a_browser_in_which_the_user_signed_in_before(user: User) -> None:
    home = Client(REMOTE_ADDR="192.0.2.50")
    sign_in(home, user.email)
    home.post(reverse("account_logout"))
    lock_out(user)
    assert "Too many failed attempts." in sign_in(Client(REMOTE_ADDR="192.0.2.99"), user.email).text
    assert sign_in(home, user.email)["Location"] == "/"


def test_a_known_browser_has_its_own_limit_for_each_of_its_users(user: User) -> None:
    other = UserFactory(email="mya@example.com", password=PASSWORD)
    home = Client(REMOTE_ADDR="192.0.2.50")
    sign_in(home, other.email)
    home.post(reverse("account_logout"))
    lock_out(user)
    assert "Too many failed attempts." in sign_in(home, user.email).text, "known, but not for this user"
    for number in range(6):
        home.defaults["REMOTE_ADDR"] = f"198.51.100.{number}"
        page = sign_in(home, other.email, "wrong").text
    assert "Too many failed attempts." in page
    assert sign_in(Client(REMOTE_ADDR="192.0.2.98"), other.email)["Location"] == "/", "elsewhere is counted apart"


@pytest.mark.parametrize("cookie", ["", "nonsense", "e30:1x:forged"])
def test_a_forged_cookie_makes_no_browser_known(user: User, cookie: str) -> None:
    lock_out(user)
    stranger = Client(REMOTE_ADDR="192.0.2.99")
    stranger.cookies[known_browsers.KNOWN_BROWSER_COOKIE] = cookie
    assert "Too many failed attempts." in sign_in(stranger, user.email).text


def test_the_cookie_of_a_known_browser_is_signed_http_only_and_expires(user: User) -> None:
    home = Client()
    cookie = sign_in(home, user.email).cookies[known_browsers.KNOWN_BROWSER_COOKIE]
    assert (cookie["httponly"], cookie["samesite"], cookie["max-age"]) == (True, "Lax", 180 * 24 * 3600)
    home.post(reverse("account_logout"))
    with time_machine.travel(timezone.now() + timedelta(days=181)):
        lock_out(user)
        assert "Too many failed attempts." in sign_in(home, user.email).text


def lock_out(user: User, host: str = "testserver") -> None:
    for number in range(6):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{number}", HTTP_HOST=host), user.email, "wrong")


def test_attempts_on_an_account_are_limited_across_addresses(user: User) -> None:
    for number in range(6):
        client = Client(REMOTE_ADDR=f"192.0.2.{number}")
        page = sign_in(client, user.email, "wrong").text
    assert "Too many failed attempts." in page
    assert "Too many failed attempts." in sign_in(Client(REMOTE_ADDR="192.0.2.99"), user.email).text


def test_a_locked_out_user_gets_in_by_a_password_reset(user: User) -> None:
    for number in range(6):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{number}"), user.email, "wrong")
    client = Client(REMOTE_ADDR="192.0.2.99")
    assert "Too many failed attempts." in sign_in(client, user.email).text
    client.post(reverse("account_reset_password"), {"email": user.email})
    link = next(word for word in sent_mails()[-1].body.split() if "/reset/key/" in word)
    form = client.get(link)["Location"]
    client.post(form, {"password1": "a quite new one 1", "password2": "a quite new one 1"})
    assert sign_in(client, user.email, "a quite new one 1")["Location"] == "/"


@pytest.mark.both_databases
def test_attempt_counters_survive_other_addresses_and_are_deleted_when_they_expire(user: User) -> None:
    for number in range(6):
        sign_in(Client(REMOTE_ADDR=f"192.0.2.{number}"), user.email, "wrong")
    for number in range(400):
        cache.set(f"allauth:rl:allauth.account:reset_password:{number}", [time.time()], 3600)
    assert "Too many failed attempts." in sign_in(Client(REMOTE_ADDR="192.0.2.99"), user.email).text
    assert attempts.delete_expired(now=timezone.now()) == 0
    assert attempts.delete_expired(now=timezone.now() + timedelta(minutes=30)) >= 6
    assert cache.get("allauth:rl:allauth.account:reset_password:7")


def test_a_passkey_is_added_and_signs_in_without_the_password(
    page: "Page", user: User, sign_in: Callable[..., None], settings: "SettingsWrapper", transactional_db: None
) -> None:
    devtools = page.context.new_cdp_session(page)
    devtools.send("WebAuthn.enable")
    options = {"protocol": "ctap2", "transport": "internal", "hasResidentKey": True, "hasUserVerification": True}
    options |= {"isUserVerified": True, "automaticPresenceSimulation": True}
    devtools.send("WebAuthn.addVirtualAuthenticator", {"options": options})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)

    page.goto("/accounts/login/")
    page.get_by_label("E-mail").fill(user.email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.wait_for_url("**/")
    page.goto("/profile/security/")
    page.get_by_role("link", name="Add a passkey").click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Confirm").click()
    page.get_by_label("Name").fill("Laptop")
    page.get_by_label("Sign in without a password").check()
    page.get_by_role("button", name="Add the passkey").click()
    page.wait_for_url("**/recovery-codes/")
    page.goto("/profile/security/")
    page.get_by_text("Laptop", exact=True).first.wait_for()

    page.context.clear_cookies()
    page.goto("/accounts/login/")
    lock_out(user, host=urlsplit(page.url).netloc)
    page.get_by_label("E-mail").fill(user.email)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Sign in", exact=True).click()
    page.get_by_text("Too many failed attempts.").first.wait_for()
    page.get_by_role("button", name="Sign in with a passkey").click()
    page.wait_for_url("**/")
    assert page.locator(".person-name").inner_text() == user.email
    assert complaints == []
