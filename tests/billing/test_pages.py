import csv
import io
import re
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from django.urls import reverse

from billing import closing, context
from billing.low_balance import warn_low_balances
from billing.models import Invoice, ServiceKind
from billing.summary import build_summary, spend_by_project
from billing.usage import close_segment
from billing.wallet import buy_credits, correct_credits, grant_credits
from cng_portal.accounts.models import Customer, Role
from cng_portal.common import money, pdf
from tests.factories import ProjectFactory, SnapshotFactory, UserFactory

pytestmark = pytest.mark.django_db

PAGES = ["summary", "subscriptions", "credits", "transactions", "statement"]
FILES = [f"{name}_csv" for name in ("summary", "subscriptions", "credits", "transactions", "usage")]


def yangon(day: int, hour: int = 0, month: int = 11) -> datetime:
    return datetime(2040, month, day, hour, tzinfo=UTC) - timedelta(hours=6, minutes=30)


NOW = yangon(20, 12)


@pytest.fixture
def history(shop, use, time_machine):
    """October is invoiced; in November one snapshot is still charged and one has ended. It is noon on 20 November."""
    fields = {"customer": shop.customer, "by": None, "at": yangon(1, month=10)}
    buy_credits(**fields, amount_micro=50_000_000_000, reason="Bank transfer 17", key="b")
    grant_credits(**fields, amount_micro=1_000_000_000, reason="Welcome", key="g", expires_at=yangon(1, month=12))
    shop.open = use(yangon(30, 22, month=10), name="root-disk")
    shop.ended = use(yangon(5, 10) + timedelta(minutes=17, seconds=23), yangon(5, 13), name="=HYPERLINK(evil)")
    closing.close_months(at=yangon(1))
    time_machine.move_to(NOW, tick=False)
    return shop


@pytest.fixture
def owner(history, client_for):
    return client_for(history.owner)


def text_of(response) -> str:
    """Return the text of the page without markup, with whitespace collapsed."""
    text = re.sub(r"<[^>]+>", " ", response.content.decode())
    return re.sub(r"\s+", " ", text)


def rows_of(response) -> list[dict]:
    assert response["Content-Type"] == "text/csv; charset=utf-8"
    text = b"".join(response.streaming_content).decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("name", [*PAGES, *FILES])
def test_only_owners_of_the_customer_see_its_billing(history, client_for, name):
    url = reverse(f"billing:{name}")
    stranger = UserFactory(member_of=ProjectFactory())
    member = UserFactory(member_of=history.project, member_of__role=Role.MEMBER)
    guest = UserFactory(member_of=history.project, customer=stranger.customer)
    assert client_for(history.owner).get(url).status_code == 200
    assert client_for(member).get(url).status_code == 404
    assert client_for(UserFactory(admin=True)).get(url).status_code == 404
    for client in (stranger, guest):
        response = client_for(client).get(url)
        content = b"".join(response) if response.streaming else response.content
        assert response.status_code in (200, 404)
        assert b"root-disk" not in content
    assert client_for(history.owner).post(url).status_code == 405


@pytest.mark.parametrize("name", ["invoice", "invoice_csv", "invoice_pdf"])
def test_a_stranger_does_not_see_an_invoice(history, client_for, name):
    url = reverse(f"billing:{name}", args=[Invoice.objects.get().pk])
    assert client_for(history.owner).get(url).status_code == 200
    assert client_for(UserFactory(member_of=ProjectFactory())).get(url).status_code == 404
    assert client_for(history.owner).get(reverse(f"billing:{name}", args=[uuid4()])).status_code == 404


def test_the_summary_shows_active_services_and_their_costs(owner, history):
    page = text_of(owner.get(reverse("billing:summary")))
    # October: 26 h; November so far: 468 h and 3 h; to its end: 720 h and 3 h
    balance = 51_000 - (26 + 19 * 24 + 12 + 3) * 20
    assert f"Wallet balance {money.format_amount(balance * 10**6, 'MMK')} Prepaid" in page
    assert "K 50,000.00 bought, K 1,000.00 free" in page
    assert "All-time consumption K 9,940.00" in page
    assert "This month K 9,420.00 K 14,460.00 projected for the whole month" in page
    assert "BS Snapshot 1 50 GB K 20.00 K 9,420.00" in page
    assert "October 2040 K 520.00 K 520.00" in page


def test_the_projection_equals_the_invoice(owner, history):
    summary = build_summary(customer=history.customer, at=NOW)
    closing.close_months(at=yangon(1, month=12))
    assert Invoice.objects.order_by("-month")[0].total_micro == summary.projected_micro


def test_the_spend_of_the_projects_adds_up_to_that_of_the_month(history, use, owner):
    other = ProjectFactory(customer=history.customer)
    use(yangon(10), yangon(11), project=other)
    spend = spend_by_project(customer=history.customer, at=NOW)
    assert spend == {history.project.pk: 9_420 * 10**6, other.pk: 24 * 20 * 10**6}
    assert sum(spend.values()) == build_summary(customer=history.customer, at=NOW).this_month_micro
    assert "K 9,420.00" in text_of(owner.get(reverse("project", args=[history.project.pk])))
    closing.close_months(at=yangon(1, month=12))
    assert spend_by_project(customer=history.customer, at=yangon(1, 1, month=12)) == {history.project.pk: 20 * 10**6}


def test_every_amount_of_the_summary_leads_to_rows_that_add_up_to_it(owner, history):
    content = owner.get(reverse("billing:summary")).content.decode()
    links = re.findall(r'<a href="([^"]*statement/\?[^"]*)">(K [^<]*)</a>', content)
    assert len(links) == 1 + (2 + 22) * 2  # the kind, and in two months and on 22 days the kind and the total
    for url, amount in links:
        assert f"Total {amount}" in text_of(owner.get(url.replace("&amp;", "&")))


def test_the_balance_is_the_transactions_less_the_rows_that_no_invoice_has_yet(owner, history):
    page = text_of(owner.get(reverse("billing:transactions")))
    assert "Transactions K 50,480.00" in page
    assert "Used since the last invoice K 9,420.00" in page
    assert "Balance K 41,060.00" in page
    due = owner.get(reverse("billing:statement"), {"due": "on"})
    assert "Total K 9,420.00" in text_of(due)
    assert {row.invoice_number for row in due.context["page"]["rows"]} == {""}


def test_the_cost_per_hour_leads_to_the_services_that_are_active(owner):
    content = owner.get(reverse("billing:summary")).content.decode()
    [(url, amount)] = re.findall(r'<a href="([^"]*subscriptions/\?kind=bs_snapshot)">(K [^<]*)</a>', content)
    page = owner.get(url)
    assert [(row.resource_name, row.hourly) for row in page.context["page"]["rows"]] == [("root-disk", amount)]
    assert "Only BS Snapshot. Show all kinds" in text_of(page)
    subscriptions = reverse("billing:subscriptions")
    assert not owner.get(subscriptions, {"kind": "vm_backup"}).context["page"]["rows"]


def test_the_chart_has_a_bar_for_each_kind_and_month_with_costs_and_no_style(history, client_for, time_machine):
    time_machine.move_to(yangon(31, 12, month=12), tick=False)
    content = client_for(history.owner).get(reverse("billing:summary")).content.decode()
    wide, narrow = re.findall(r"<svg viewBox=\"0 0 [13].*?</svg>", content, re.DOTALL)
    for chart in (wide, narrow):
        assert chart.count("<rect") == 3
        assert "Nov, BS Snapshot: K 14,460.00" in chart
        assert ">Dec</text>" in chart
        assert "style=" not in chart
    assert (wide.count("<text"), narrow.count("<text")) == (5 + 12, 5 + 6)


def test_usage_details_show_the_calculation_of_each_amount(owner, history):
    page = text_of(owner.get(reverse("billing:statement")))
    assert "3 hours × 50 GB × K 0.4000 = K 60.00" in page
    assert "5 Nov 2040, 10:17:23 to 5 Nov 2040, 13:00:00" in page
    assert page.count("Times are in Asia/Yangon.") == 1
    assert "UTC+06:30" not in page
    assert "Total K 9,940.00" in page
    assert "INV-000039-0001 October 2040 1 K 520.00" in page


def test_rows_of_usage_link_to_the_page_of_their_resource(owner, history, use):
    snapshot = SnapshotFactory(
        name="nightly", volume__project=history.project, volume__location=history.location, ready_at=yangon(6)
    )
    use(yangon(6), yangon(6, 1), name=snapshot.name, resource_id=snapshot.pk)
    url = reverse("snapshots:snapshot", args=[snapshot.pk])
    content = owner.get(reverse("billing:statement")).content.decode()
    assert f'<a class="list-name" href="{url}">nightly</a>' in content
    assert '<th scope="row">root-disk<' in content  # deleted without a record
    closing.close_months(at=yangon(1, month=12))
    invoice = Invoice.objects.order_by("-month")[0]
    assert f'href="{url}"' in owner.get(reverse("billing:invoice", args=[invoice.pk])).content.decode()


def test_a_printed_statement_names_the_customer(owner):
    page = text_of(owner.get(reverse("billing:statement"), {"first": "2040-11-02", "last": "2040-11-05"}))
    assert "1CNG Shwe Customer number #000039" in page
    assert "2 Nov 2040 – 5 Nov 2040" in page


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ({"kind": "bs_snapshot"}, "K 9,940.00"),
        ({"kind": "vm_snapshot"}, None),
        ({"first": "2040-11-05", "last": "2040-11-05"}, "K 540.00"),
        ({"month": "2040-10-01"}, "K 520.00"),
        ({"last": "2040-10-31"}, "K 520.00"),
    ],
)
def test_the_statement_is_filtered(owner, query, total):
    page = text_of(owner.get(reverse("billing:statement"), query))
    assert (f"Total {total}" in page) if total else ("No usage matches" in page)


def test_the_statement_is_filtered_by_project_and_resource(owner, history, use):
    other = ProjectFactory(customer=history.customer, name="Other")
    use(yangon(6), yangon(6, 2), project=other, name="elsewhere")
    url = reverse("billing:statement")
    assert "Total K 40.00" in text_of(owner.get(url, {"project": other.pk}))
    assert "Total K 60.00" in text_of(owner.get(url, {"resource": history.ended.resource_id}))


def test_invalid_filters_are_explained(owner):
    url = reverse("billing:statement")
    page = text_of(owner.get(url, {"first": "2040-11-05", "last": "2040-11-04"}))
    assert "The last day is before the first one." in page
    assert "Enter a valid date" in text_of(owner.get(url, {"first": "yesterday"}))
    assert "Select a valid choice" in text_of(owner.get(url, {"project": uuid4()}))
    for name in ("resource", "month"):
        page = owner.get(url, {name: "x", "kind": "vm_backup"})
        assert f"Filters that don't exist were ignored: {name.capitalize()}" in text_of(page)
        assert not page.context["page"]["rows"]


@pytest.mark.parametrize("name", ["statement", "transactions", "credits", "subscriptions"])
def test_a_page_that_does_not_exist_is_the_first_one_and_says_so(owner, name):
    url = reverse(f"billing:{name}")
    first = owner.get(url)
    assert "That page doesn't exist." not in text_of(first)
    for number in ("0", "-1", "x", "9", "²", "9" * 30):
        page = owner.get(url, {"page": number})
        assert "That page doesn't exist. This is the first one." in text_of(page)
        assert len(page.context["page"]["rows"]) == len(first.context["page"]["rows"])


def test_the_csv_of_usage_has_all_inputs_of_an_amount(owner, history):
    rows = rows_of(owner.get(reverse("billing:usage_csv")))
    row = next(row for row in rows if row["resource_uuid"] == str(history.ended.resource_id))
    assert row == {
        "resource_uuid": str(history.ended.resource_id),
        "kind": "bs_snapshot",
        "name": "'=HYPERLINK(evil)",
        "project": "Default",
        "location": "1CNG-YGN-AZ01",
        "from": "2040-11-05T10:17:23+06:30",
        "to": "2040-11-05T13:00:00+06:30",
        "hours": "3",
        "gb": "50",
        "rate": "0.400000",
        "amount": "60.00",
        "currency": "MMK",
        "invoice": "",
        "corrects": "",
    }
    assert sum(float(row["amount"]) for row in rows) == 9940
    assert [row["invoice"] for row in rows_of(owner.get(reverse("billing:usage_csv"), {"month": "2040-10-01"}))] == [
        "INV-000039-0001"
    ]


def test_the_other_lists_have_a_csv_too(owner, history):
    assert rows_of(owner.get(reverse("billing:summary_csv")))[0] == {
        "month": "2040-10",
        "kind": "bs_snapshot",
        "amount": "520.00",
        "currency": "MMK",
    }
    assert [row["name"] for row in rows_of(owner.get(reverse("billing:subscriptions_csv")))] == ["root-disk"]
    inactive = rows_of(owner.get(reverse("billing:subscriptions_csv"), {"state": "inactive"}))
    assert inactive[0]["to"] == "2040-11-05T13:00:00+06:30"
    assert [row["amount"] for row in rows_of(owner.get(reverse("billing:credits_csv")))] == ["1000.00", "50000.00"]
    assert {row["amount"] for row in rows_of(owner.get(reverse("billing:transactions_csv")))} == {
        "1000.00",
        "50000.00",
        "-520.00",
    }


def test_subscriptions_show_running_and_ended_usage(owner):
    active = text_of(owner.get(reverse("billing:subscriptions")))
    assert "root-disk BS Snapshot Default" in active
    assert "K 20.00 K 9,880.00" in active
    inactive = text_of(owner.get(reverse("billing:subscriptions"), {"state": "inactive"}))
    assert "=HYPERLINK(evil)" in inactive
    assert "K 60.00" in inactive


@pytest.mark.both_databases
def test_deleted_resources_are_scheduled_until_their_last_hour_ends(owner, history, use, time_machine):
    use(NOW - timedelta(minutes=90), NOW - timedelta(minutes=20), name="goes-soon")
    use(NOW - timedelta(minutes=90), NOW - timedelta(minutes=40), name="has-gone")
    use(NOW - timedelta(minutes=60), NOW, name="just-gone")
    use(NOW - timedelta(minutes=1), NOW - timedelta(minutes=1), name="hardly-there")

    def names(state: str) -> set[str]:
        segments = owner.get(reverse("billing:subscriptions"), {"state": state}).context["page"]["rows"]
        rows = rows_of(owner.get(reverse("billing:subscriptions_csv"), {"state": state}))
        assert [row["resource_uuid"] for row in rows] == [str(segment.resource_id) for segment in segments]
        return {segment.resource_name for segment in segments}

    assert names("scheduled") == {"goes-soon", "hardly-there"}
    assert names("inactive") == {"has-gone", "just-gone", "=HYPERLINK(evil)"}
    assert names("active") == {"root-disk"}
    page = text_of(owner.get(reverse("billing:subscriptions"), {"state": "scheduled"}))
    assert "These are being deleted, and no further hours are charged." in page
    assert "20 Nov 2040, 12:30:00 UTC+06:30" in page
    time_machine.move_to(NOW + timedelta(minutes=30), tick=False)
    assert names("scheduled") == {"hardly-there"}
    time_machine.move_to(NOW + timedelta(hours=1), tick=False)
    assert "Nothing is being deleted" in text_of(owner.get(reverse("billing:subscriptions"), {"state": "scheduled"}))
    assert names("inactive") == {"goes-soon", "has-gone", "just-gone", "hardly-there", "=HYPERLINK(evil)"}
    page = owner.get(reverse("billing:subscriptions"), {"state": "lost", "kind": "x"})
    assert "Filters that don't exist were ignored: State, Kind" in text_of(page)
    export = owner.get(reverse("billing:subscriptions_csv"), {"state": "lost"})
    assert export["Location"] == f"{reverse('billing:subscriptions')}?state=lost"


def test_infra_credits_say_how_long_they_last(owner):
    page = text_of(owner.get(reverse("billing:credits")))
    assert "Wallet balance K 41,060.00" in page
    assert "Bank transfer 17" in page
    assert "At the current cost, it lasts 2 months" in page


def test_transactions_are_listed_with_their_sign_and_invoice(owner):
    page = text_of(owner.get(reverse("billing:transactions")))
    assert "Spent on an invoice" in page
    assert "Invoice INV-000039-0001 -K 520.00" in page


def test_an_invoice_shows_its_lines_and_its_period(owner):
    page = text_of(owner.get(reverse("billing:invoice", args=[Invoice.objects.get().pk])))
    assert "26 hours × 50 GB × K 0.4000 = K 520.00" in page
    assert "1 Oct 2040, 00:00:00 UTC+06:30 – 1 Nov 2040, 00:00:00 UTC+06:30 (Asia/Yangon)" in page


def test_an_invoice_comes_in_pages_that_show_every_line_once(owner, history, use):
    for number in range(120):
        use(yangon(6), yangon(6, 1), name=f"disk-{number % 7}")
    closing.close_months(at=yangon(1, month=12))
    invoice = Invoice.objects.order_by("-month")[0]
    url, line_ids, pages = reverse("billing:invoice", args=[invoice.pk]), [], []
    while url:
        page = owner.get(url).context["page"]
        line_ids += [row.line_id for row in page["rows"]]
        pages.append(page)
        url = page["next_url"]
    assert line_ids == list(invoice.lines.values_list("pk", flat=True))
    assert [len(page["rows"]) for page in pages] == [50, 50, invoice.line_count - 100]
    assert owner.get(pages[2]["previous_url"]).context["page"]["rows"] == pages[1]["rows"]
    assert owner.get(pages[1]["previous_url"]).context["page"]["rows"] == pages[0]["rows"]
    assert (pages[1]["first_url"], pages[2]["first_url"]) == ("", reverse("billing:invoice", args=[invoice.pk]))
    assert f"Lines ({invoice.line_count})" in text_of(owner.get(pages[2]["previous_url"]))


@pytest.mark.parametrize("line", ["x", "-1", "0", "9" * 30, "²"])
def test_a_page_from_a_line_that_the_invoice_does_not_have_is_the_first_one(owner, line):
    url = reverse("billing:invoice", args=[Invoice.objects.get().pk])
    page = owner.get(url, {"from": line})
    assert "That page doesn't exist. This is the first one." in text_of(page)
    assert page.context["page"]["rows"] == owner.get(url).context["page"]["rows"]


def test_the_pdf_of_an_invoice_is_valid(owner):
    response = owner.get(reverse("billing:invoice_pdf", args=[Invoice.objects.get().pk]))
    assert response["Content-Type"] == "application/pdf"
    assert response["Content-Disposition"] == 'attachment; filename="INV-000039-0001.pdf"'
    assert response.content.startswith(b"%PDF-")
    assert response.content == owner.get(reverse("billing:invoice_pdf", args=[Invoice.objects.get().pk])).content


def test_a_correction_points_at_the_line_that_it_corrects(owner, history, time_machine):
    charged = Invoice.objects.get().lines.get()
    close_segment(resource_id=history.open.resource_id, kind=history.kind, at=yangon(30, 23, month=10))
    url = reverse("billing:invoice", args=[charged.invoice_id])
    pointer = f'corrects <a href="{url}?from={charged.pk}#line-{charged.pk}">INV-000039-0001</a>'
    assert pointer in owner.get(reverse("billing:statement"), {"due": "on"}).content.decode()
    closing.close_months(at=yangon(1, month=12))
    second = Invoice.objects.order_by("-month")[0]
    assert pointer in owner.get(reverse("billing:invoice", args=[second.pk])).content.decode()
    assert (
        f'id="line-{charged.pk}"' in owner.get(reverse("billing:invoice", args=[charged.invoice_id])).content.decode()
    )
    rows = rows_of(owner.get(reverse("billing:invoice_csv", args=[second.pk])))
    assert {(row["hours"], row["amount"], row["corrects"]) for row in rows} == {
        ("3", "60.00", ""),
        ("-25", "-500.00", "INV-000039-0001"),
    }
    assert owner.get(reverse("billing:invoice_pdf", args=[second.pk])).status_code == 200


INSTALLED_FONTS = [path for path in pdf.FONTS if Path(path).exists()]
NAMES = [
    "ရန်ကုန် ဒေတာဘေ့စ် — နေ့စဉ်",
    "ေ်",  # combining marks without a base letter
    "数据 🚀 Überfluß",
    "العربية \u202eevil",
    "\u200b\tx",
    "W" * 255,
    "က" * 255,
]


@pytest.mark.parametrize("fonts", [pdf.FONTS, []], ids=["with fonts", "without fonts"])
def test_no_name_breaks_the_pdf_or_is_lost_in_it(owner, history, use, monkeypatch, fonts):
    monkeypatch.setattr(pdf, "FONTS", fonts)
    customer = history.customer
    customer.name = NAMES[0]
    customer.save()
    used = [use(yangon(6), yangon(6, 1), name=name) for name in NAMES]
    closing.close_months(at=yangon(1, month=12))
    invoice = Invoice.objects.order_by("-month")[0]
    response = owner.get(reverse("billing:invoice_pdf", args=[invoice.pk]))
    assert response.content.startswith(b"%PDF-")
    assert response.content.rstrip().endswith(b"%%EOF")
    if not fonts:  # then the file has the text unchanged, and unreadable names have the UUID beside them
        streams = re.findall(rb"stream\n(.*?)\nendstream", response.content, re.DOTALL)
        text = b"".join(zlib.decompress(stream) for stream in streams).decode("latin-1")
        assert "#000039" in text
        assert "root-disk" in text
        assert text.count("?? ? Überfluß") == 1
        for segment in used:
            drawn = segment.resource_name.isascii()
            assert (str(segment.resource_id)[:23] in text) is not drawn


def test_long_names_are_broken_where_their_column_ends():
    page = pdf.TableDocument("Invoice", heading=[], widths=[])
    page.set_font(page.family, size=pdf.SMALL)
    name = "W" * 120
    lines = page.wrap(name, 50)
    assert "".join(lines) == name
    assert len(lines) > 1
    assert all(page.width_of(line) <= 50 for line in lines)
    assert page.wrap("nightly copy of the first disk", 30) == ["nightly copy of the", "first disk"]


@pytest.mark.skipif(not any("Myanmar" in path or "Padauk" in path for path in INSTALLED_FONTS), reason="no such font")
def test_stacked_letters_of_myanmar_script_stand_above_each_other():
    page = pdf.TableDocument("Invoice", heading=[], widths=[])
    page.set_font(page.family, size=10)
    assert page.get_string_width("အင်္ဂါ") < sum(page.get_string_width(letter) for letter in "အဂါ") * 1.3
    page.set_text_shaping(False)
    assert page.get_string_width("အင်္ဂါ") > sum(page.get_string_width(letter) for letter in "အဂါ") * 1.3


def test_long_lists_are_paginated(owner, history, use):
    for number in range(60):
        use(yangon(6), yangon(6, 1), name=f"disk-{number:02d}")
    url = reverse("billing:statement")
    first, second = owner.get(url), owner.get(url, {"page": 2})
    assert len(first.context["page"]["rows"]) == 50
    assert len(second.context["page"]["rows"]) == 13
    rows = [*first.context["page"]["rows"], *second.context["page"]["rows"]]
    assert len({(row.resource_id, row.from_at) for row in rows}) == 63


def test_the_top_bar_shows_credits_or_usage_of_the_month(history, rf):
    request = rf.get("/")
    request.user = history.owner
    history.owner.customer = Customer.objects.get()
    wallet = context.wallet(request)
    assert (wallet["wallet_label"], str(wallet["wallet_amount"])) == ("Infra credits", "K 41,060.00")
    history.owner.customer.billing_type = "postpaid"
    wallet = context.wallet(request)
    assert (wallet["wallet_label"], str(wallet["wallet_amount"])) == ("Usage this month", "K 9,420.00")


def test_empty_billing_pages_explain_themselves(client_for):
    client = client_for(UserFactory(member_of=ProjectFactory()))
    for name in PAGES:
        assert client.get(reverse(f"billing:{name}")).status_code == 200


def test_a_low_balance_is_shown_on_the_billing_pages(owner, history):
    correct_credits(customer=history.customer, amount_micro=-41_000_000_000, reason="x", by=None, key="c", at=NOW)
    assert warn_low_balances(at=NOW) == 1
    for name in ("summary", "credits"):
        assert "Your infra credits run low" in text_of(owner.get(reverse(f"billing:{name}")))


def test_automatic_backups_show_the_fifth_and_the_base_price(owner, history, use):
    use(yangon(6), yangon(6, 3), kind=ServiceKind.VM_BACKUP_AUTOMATIC, size_gb=0, base_rate_micro=100_000_000)
    assert "3 hours × 20 % of K 100.0000 = K 60.00" in text_of(owner.get(reverse("billing:statement")))
