"""Packages and their prices, usage, the wallet's ledger, and invoices.

A bill is a function of usage segments and price versions. Only wallet transactions, and one invoice per customer and month
once it is over, are written. Amounts are integers of a millionth of the customer's currency (`_micro`). The triggers that
freeze rows are in the migration `0002_triggers`.
"""

import uuid
from datetime import datetime
from typing import Any, Self

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from cng_portal.accounts.models import BillingType, Customer, Project, User
from cng_portal.common import money
from cng_portal.common.names import MAX_NAME_LENGTH, NameField
from cng_portal.inventory.models import MAX_HOURLY_PRICE_MICRO, Location

from . import rating
from .access import billed_customer
from .formulas import line_formula

# The largest resource's cost of a month at the highest price has to fit 64 bits, twice over for the rounding:
# 800 h × 5,000,000 GB × 1,000 = 4e18 millionths.
MAX_RATE_MICRO = 1_000 * money.MICRO
MAX_SIZE_GB = 5_000_000
MAX_AMOUNT_MICRO = 1_000_000_000_000 * money.MICRO

# The guide's own words: seeds/create-volume-snapshot.md, "Create Snapshot".
ONLY_HOURLY = _("Snapshots and backups support only Hourly billing cycles.")
ONLY_FIXED_PRORATA = _("The only billing rule supported is Fixed Prorata.")
SAME_START = _("The package already has a price that starts at this instant.")
LOWER_ONLY = _("A correction lowers a price that has begun. Plan a new price to raise it.")
PAST = _("A price starts in the future: hours that have begun keep the price they were sold at.")
ONLY_PACKAGE_KINDS = _("Packages are for Block Storage, BS Snapshot, VM Snapshot and VM Backup.")
ONE_PACKAGE = _(
    "This location already has an active package for this kind and currency. Only one package per zone is supported for "
    "Block Storage, VM Snapshot, BS Snapshot, and VM Backup: plan a new price for the existing one, or deactivate it first."
)


CANNOT_REACTIVATE = _(
    "A Block Storage package that was deactivated stays so: volumes would be charged without notice. Add another."
)


class ServiceKind(models.TextChoices):
    BLOCK_STORAGE = "block_storage", _("Block Storage")
    BS_SNAPSHOT = "bs_snapshot", _("BS Snapshot")
    VM_SNAPSHOT = "vm_snapshot", _("VM Snapshot")
    VM_BACKUP = "vm_backup", _("VM Backup")
    # 20 % of the VM's price. It has no package of its own, and is sold where VM Backup is.
    VM_BACKUP_AUTOMATIC = "vm_backup_auto", _("Automatic VM Backup")


PACKAGE_KINDS = [ServiceKind.BLOCK_STORAGE, ServiceKind.BS_SNAPSHOT, ServiceKind.VM_SNAPSHOT, ServiceKind.VM_BACKUP]


class BillingCycle(models.TextChoices):
    HOURLY = "hourly", _("Hourly")


class BillingRule(models.TextChoices):
    FIXED_PRORATA = "fixed_prorata", _("Fixed Prorata")


class Package(models.Model):
    """One kind of service in one location, for customers of one currency. Its prices are its versions."""

    location = models.ForeignKey(
        Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="packages"
    )
    kind = models.CharField(
        _("kind"),
        max_length=16,
        choices=[(kind.value, kind.label) for kind in PACKAGE_KINDS],
        error_messages={"invalid_choice": ONLY_PACKAGE_KINDS},
    )
    currency = models.CharField(
        _("currency"), max_length=3, choices=money.currency_choices, default=money.DEFAULT_CURRENCY
    )
    name = NameField(_("name"))
    active = models.BooleanField(
        _("active"),
        default=True,
        help_text=_("Only an active package can be ordered. Deactivating it deletes its planned prices."),
    )
    billing_cycle = models.CharField(
        _("billing cycle"),
        max_length=16,
        choices=BillingCycle.choices,
        default=BillingCycle.HOURLY,
        error_messages={"invalid_choice": ONLY_HOURLY},
        help_text=ONLY_HOURLY,
    )
    billing_rule = models.CharField(
        _("billing rule"),
        max_length=16,
        choices=BillingRule.choices,
        default=BillingRule.FIXED_PRORATA,
        error_messages={"invalid_choice": ONLY_FIXED_PRORATA},
        help_text=ONLY_FIXED_PRORATA,
    )

    class Meta:
        verbose_name = _("package")
        verbose_name_plural = _("packages")
        ordering = ["location", "kind", "currency", "-active", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["location", "kind", "currency"],
                condition=Q(active=True),
                name="billing_package_one_active",
                violation_error_message=ONE_PACKAGE,
            ),
            models.CheckConstraint(
                condition=Q(kind__in=[kind.value for kind in PACKAGE_KINDS]),
                name="billing_package_kind",
                violation_error_message=ONLY_PACKAGE_KINDS,
            ),
            models.CheckConstraint(
                condition=Q(billing_cycle="hourly"),
                name="billing_package_hourly",
                violation_error_message=ONLY_HOURLY,
            ),
            models.CheckConstraint(
                condition=Q(billing_rule="fixed_prorata"),
                name="billing_package_fixed_prorata",
                violation_error_message=ONLY_FIXED_PRORATA,
            ),
        ]

    def __str__(self) -> str:
        return self.name


class PriceVersion(models.Model):
    """From `starts_at` a GB of the package costs `rate_micro` an hour, until the next version. Immutable once begun.

    A version that `corrects` another one has the same start and a lower rate, and takes its place from there on: the next
    invoices credit what was overcharged.
    """

    package = models.ForeignKey(Package, verbose_name=_("package"), on_delete=models.PROTECT, related_name="versions")
    starts_at = models.DateTimeField(_("starts"))
    rate_micro = models.BigIntegerField(
        _("rate, millionths"),
        validators=[MinValueValidator(0), MaxValueValidator(MAX_RATE_MICRO)],
        help_text=_("Millionths of the currency per GB and hour."),
    )
    corrects = models.OneToOneField(
        "self", verbose_name=_("corrects"), on_delete=models.PROTECT, null=True, blank=True, related_name="correction"
    )
    reason = models.CharField(_("reason"), max_length=255, blank=True)
    created_by = models.ForeignKey(
        User, verbose_name=_("planned by"), on_delete=models.PROTECT, null=True, blank=True, related_name="+"
    )
    created_at = models.DateTimeField(_("planned"), default=timezone.now, editable=False)
    # Customers whose usage was recorded until then were notified of the planned price.
    announced_until = models.DateTimeField(_("announced until"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("price version")
        verbose_name_plural = _("price versions")
        ordering = ["package", "starts_at", "id"]
        constraints = [
            models.UniqueConstraint(
                fields=["package", "starts_at"],
                condition=Q(corrects=None),
                name="billing_price_start",
                violation_error_message=SAME_START,
            ),
            models.CheckConstraint(
                condition=Q(rate_micro__gte=0, rate_micro__lte=MAX_RATE_MICRO),
                name="billing_price_rate",
                violation_error_message=_("A rate is between 0 and 1,000 per GB and hour."),
            ),
            models.CheckConstraint(
                condition=Q(corrects=None, reason="") | (Q(corrects__isnull=False) & ~Q(reason="")),
                name="billing_price_reason",
                violation_error_message=_("A correction needs a reason."),
            ),
        ]

    def __str__(self) -> str:
        return money.format_rate(self.rate_micro, self.package.currency)

    @property
    def price(self) -> rating.Price:
        return rating.Price(since=self.starts_at, rate_micro=self.rate_micro, id=self.pk)


class UsageSegment(models.Model):
    """A period in which a resource of one kind, location and size is charged. Open while `ended_at` is None.

    It copies the resource's uuid and name, so that it outlives the resource. Once an invoice has a line of it, it can only
    be closed. `backdated`: it started or ended in a month that already had an invoice, or a price of such a month was
    corrected; the next invoice settles the difference and ends the flag. `voided`: it costs nothing. Usage that is changed
    or started again inside a paid hour starts where that hour ends, and may be over or changed again by then.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    resource_id = models.UUIDField(_("resource"))
    kind = models.CharField(_("kind"), max_length=16, choices=ServiceKind.choices)
    resource_name = models.CharField(_("name"), max_length=255)
    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="usage", db_index=False
    )
    project = models.ForeignKey(Project, verbose_name=_("project"), on_delete=models.PROTECT, related_name="usage")
    location = models.ForeignKey(
        Location, verbose_name=_("location"), on_delete=models.PROTECT, related_name="usage", db_index=False
    )
    size_gb = models.PositiveIntegerField(_("size, GB"))
    base_rate_micro = models.BigIntegerField(
        _("VM's hourly price, millionths"),
        null=True,
        blank=True,
        help_text=_("For automatic backups, which cost 20 % of it."),
    )
    started_at = models.DateTimeField(_("from"))
    ended_at = models.DateTimeField(_("to"), null=True, blank=True)
    # When the portal recorded them: verification compares these with the times of other records.
    start_recorded_at = models.DateTimeField(_("start recorded"), default=timezone.now, editable=False)
    end_recorded_at = models.DateTimeField(_("end recorded"), null=True, blank=True, editable=False)
    voided = models.BooleanField(_("voided"), default=False)
    backdated = models.BooleanField(_("backdated"), default=False)

    class Meta:
        verbose_name = _("usage segment")
        verbose_name_plural = _("usage segments")
        ordering = ["started_at", "id"]
        indexes = [
            # Rating reads these columns of tens of thousands of rows: PostgreSQL answers from the index alone.
            models.Index(
                fields=["customer", "ended_at"],
                include=["started_at", "kind", "location", "size_gb", "base_rate_micro", "voided"],
                name="billing_usage_by_end",
            ),
            models.Index(fields=["resource_id", "kind", "started_at"], name="billing_usage_by_resource"),
            models.Index(fields=["customer"], condition=Q(backdated=True), name="billing_usage_backdated"),
        ]
        constraints = [
            models.UniqueConstraint(
                fields=["resource_id", "kind"],
                condition=Q(ended_at=None),
                name="billing_usage_one_open",
                violation_error_message=_("This resource is being charged for this kind already."),
            ),
            models.CheckConstraint(
                condition=Q(ended_at=None) | Q(ended_at__gte=F("started_at")),
                name="billing_usage_end",
                violation_error_message=_("Usage cannot end before it starts."),
            ),
            models.CheckConstraint(
                condition=Q(voided=False) | Q(ended_at__isnull=False, ended_at=F("started_at")),
                name="billing_usage_voided",
                violation_error_message=_("Usage that is ended before it begins ends at its start."),
            ),
            models.CheckConstraint(
                condition=Q(kind__in=ServiceKind.values),
                name="billing_usage_kind",
                violation_error_message=_("This kind of service does not exist."),
            ),
            models.CheckConstraint(
                condition=Q(
                    kind=ServiceKind.VM_BACKUP_AUTOMATIC.value,
                    base_rate_micro__gte=0,
                    base_rate_micro__lte=MAX_HOURLY_PRICE_MICRO,
                    size_gb=0,
                )
                | Q(
                    ~Q(kind=ServiceKind.VM_BACKUP_AUTOMATIC.value),
                    base_rate_micro=None,
                    size_gb__gte=1,
                    size_gb__lte=MAX_SIZE_GB,
                ),
                name="billing_usage_measure",
                violation_error_message=_(
                    "Usage is measured in GB, or for automatic backups by the VM's hourly price."
                ),
            ),
        ]

    def __str__(self) -> str:
        return self.resource_name

    @property
    def usage(self) -> rating.Usage:
        return rating.Usage(
            started_at=self.started_at,
            ended_at=self.ended_at,
            size_gb=self.size_gb,
            base_rate_micro=self.base_rate_micro,
            voided=self.voided,
        )

    @property
    def measure(self) -> int | None:
        """Return the size to charge, in GB; None for automatic backups."""
        return None if self.base_rate_micro is not None else self.size_gb

    @property
    def paid_until(self) -> datetime | None:
        """Return the end of the last started hour, which is charged whole; None while the segment is open."""
        if self.ended_at is None:
            return None
        return self.started_at + rating.hours(self.started_at, self.ended_at) * rating.HOUR


def invoice_number(customer_number: int, sequence: int) -> str:
    return f"INV-{customer_number:06d}-{sequence:04d}"


class InvoiceQuerySet(models.QuerySet["Invoice"]):
    def visible_to(self, user: User) -> Self:
        customer = billed_customer(user)
        return self.filter(customer=customer) if customer else self.none()


class Invoice(models.Model):
    """A customer's bill for one calendar month in their time zone, written once, with its lines.

    `sequence` counts a customer's invoices from 1 without gaps, so that the number doesn't depend on the order in which
    customers are closed. Names are copies, so that an invoice never changes.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="invoices", db_index=False
    )
    sequence = models.PositiveIntegerField(_("sequence"))
    month = models.DateField(_("month"), help_text=_("Its first day."))
    starts_at = models.DateTimeField(_("from"))
    ends_at = models.DateTimeField(_("to"))
    customer_number = models.PositiveIntegerField(_("customer number"))
    customer_name = models.CharField(_("customer name"), max_length=MAX_NAME_LENGTH)
    billing_type = models.CharField(_("billing type"), max_length=8, choices=BillingType.choices)
    currency = models.CharField(_("currency"), max_length=3)
    time_zone = models.CharField(_("time zone"), max_length=64)
    total_micro = models.BigIntegerField(_("total, millionths"))
    line_count = models.PositiveIntegerField(_("lines"))
    made_at = models.DateTimeField(_("issued"))

    objects = InvoiceQuerySet.as_manager()

    class Meta:
        verbose_name = _("invoice")
        verbose_name_plural = _("invoices")
        ordering = ["-month", "customer_number"]
        constraints = [
            models.UniqueConstraint(fields=["customer", "month"], name="billing_invoice_month"),
            models.UniqueConstraint(fields=["customer", "sequence"], name="billing_invoice_sequence"),
            models.CheckConstraint(condition=Q(ends_at__gt=F("starts_at")), name="billing_invoice_period"),
            models.CheckConstraint(
                condition=Q(made_at__gte=F("ends_at")),
                name="billing_invoice_month_over",
                violation_error_message=_("An invoice is made once its month is over."),
            ),
            models.CheckConstraint(condition=Q(sequence__gte=1), name="billing_invoice_sequence_start"),
        ]

    def __str__(self) -> str:
        return self.number

    @property
    def number(self) -> str:
        return invoice_number(self.customer_number, self.sequence)


class ClosingFailure(models.Model):
    """Why a customer's month couldn't be closed, and what an administrator can do. Deleted once it is closed."""

    customer = models.OneToOneField(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, primary_key=True, related_name="closing_failure"
    )
    reason = models.TextField(_("reason"))
    failed_at = models.DateTimeField(_("since"))

    class Meta:
        verbose_name = _("month that could not be closed")
        verbose_name_plural = _("months that could not be closed")
        ordering = ["failed_at"]

    def __str__(self) -> str:
        return str(self.customer)


class HasFormula:
    """Whole hours at one rate, and the amount that follows from them."""

    @property
    def formula(self: Any) -> str:
        """`3 hours × 50 GB × K 0.4000 = K 60.00`."""
        return line_formula(
            hours=self.hours,
            size_gb=None if self.kind == ServiceKind.VM_BACKUP_AUTOMATIC else self.size_gb,
            rate_micro=self.rate_micro,
            amount_micro=self.amount_micro,
            currency=self.currency,
        )


class InvoiceLine(HasFormula, models.Model):
    """Whole hours of one usage segment at one rate. `amount_micro` is in whole units of the currency.

    A line with `corrects` takes back what that line overcharged: its hours and amount are the difference. Without hours it
    corrects the price, and `rate_micro` is the right one.
    """

    invoice = models.ForeignKey(
        Invoice, verbose_name=_("invoice"), on_delete=models.PROTECT, related_name="lines", db_index=False
    )
    segment = models.ForeignKey(
        UsageSegment, verbose_name=_("usage"), on_delete=models.PROTECT, related_name="lines", db_index=False
    )
    corrects = models.ForeignKey(
        "self",
        verbose_name=_("corrects"),
        on_delete=models.PROTECT,
        null=True,
        related_name="corrections",
        db_index=False,
    )
    # A price that has begun stays, see 0002_triggers, so a foreign-key check of a million lines would add nothing.
    price_version = models.ForeignKey(
        PriceVersion,
        verbose_name=_("price"),
        on_delete=models.PROTECT,
        null=True,
        related_name="+",
        db_index=False,
        db_constraint=False,
    )
    month = models.DateField(_("month of use"))
    resource_id = models.UUIDField(_("resource"))
    kind = models.CharField(_("kind"), max_length=16, choices=ServiceKind.choices)
    resource_name = models.CharField(_("name"), max_length=255)
    project_name = models.CharField(_("project name"), max_length=MAX_NAME_LENGTH)
    location_code = models.CharField(_("location"), max_length=32)
    from_at = models.DateTimeField(_("from"))
    to_at = models.DateTimeField(_("to"))
    hours = models.IntegerField(_("hours"))
    size_gb = models.PositiveIntegerField(_("size, GB"))
    rate_micro = models.BigIntegerField(_("rate, millionths"))
    amount_micro = models.BigIntegerField(_("amount, millionths"))

    class Meta:
        verbose_name = _("invoice line")
        verbose_name_plural = _("invoice lines")
        ordering = ["kind", "project_name", "resource_name", "from_at", "id"]
        # Includes the amount, so that the sum of an invoice is answered from the index.
        indexes = [models.Index(fields=["invoice", "amount_micro"], name="billing_line_by_invoice")]
        constraints = [
            # Nothing is charged twice: an hour is the first of at most one line.
            models.UniqueConstraint(
                fields=["segment", "from_at"], condition=Q(corrects=None), name="billing_line_once"
            ),
            # An invoice corrects the hours of a line once, and its price once.
            models.UniqueConstraint(
                fields=["corrects", "invoice"], condition=Q(hours__lt=0), name="billing_line_hours_corrected_once"
            ),
            models.UniqueConstraint(
                fields=["corrects", "invoice"], condition=Q(hours=0), name="billing_line_price_corrected_once"
            ),
            models.CheckConstraint(
                condition=Q(corrects=None, hours__gte=1, amount_micro__gte=0)
                | Q(corrects__isnull=False, hours__lte=0, amount_micro__lte=0),
                name="billing_line_sign",
            ),
            models.CheckConstraint(condition=Q(to_at__gte=F("from_at")), name="billing_line_period"),
        ]

    def __str__(self) -> str:
        return f"{self.resource_name}: {self.hours} h"

    @property
    def currency(self) -> str:
        return self.invoice.currency


class WalletAccount(models.TextChoices):
    """The accounts of a customer's ledger: the wallet, and where its credits came from or went."""

    WALLET = "wallet", _("Wallet")
    PURCHASES = "purchases", _("Purchases")
    GRANTS = "grants", _("Free credits")
    CONSUMPTION = "consumption", _("Consumption")
    CORRECTIONS = "corrections", _("Corrections")


class TransactionKind(models.TextChoices):
    BOUGHT = "bought", _("Bought")
    GRANTED = "granted", _("Granted free")
    REFUNDED = "refunded", _("Refunded")
    SPENT = "spent", _("Spent on an invoice")
    EXPIRED = "expired", _("Expired")
    CORRECTED = "corrected", _("Corrected")


class WalletTransaction(models.Model):
    """A move of credits from one account of the customer's ledger to another. Append-only.

    One row is both entries, so that a transaction can't be out of balance. `key` is the caller's idempotency key: a second
    transaction under the same key is the first one.
    """

    id = models.UUIDField(primary_key=True, default=uuid.uuid4, editable=False)
    customer = models.ForeignKey(
        Customer,
        verbose_name=_("customer"),
        on_delete=models.PROTECT,
        related_name="wallet_transactions",
        db_index=False,
    )
    kind = models.CharField(_("kind"), max_length=16, choices=TransactionKind.choices)
    source = models.CharField(_("from account"), max_length=16, choices=WalletAccount.choices)
    target = models.CharField(_("to account"), max_length=16, choices=WalletAccount.choices)
    amount_micro = models.BigIntegerField(_("amount, millionths"))
    key = models.CharField(_("idempotency key"), max_length=120, unique=True)
    reason = models.CharField(_("reason"), max_length=255)
    by = models.ForeignKey(User, verbose_name=_("by"), on_delete=models.PROTECT, null=True, related_name="+")
    invoice = models.ForeignKey(
        Invoice, verbose_name=_("invoice"), on_delete=models.PROTECT, null=True, related_name="transactions"
    )
    grant = models.OneToOneField(
        "self", verbose_name=_("credits that expired"), on_delete=models.PROTECT, null=True, related_name="expiry"
    )
    expires_at = models.DateTimeField(_("expires"), null=True)
    at = models.DateTimeField(_("time"))
    created_at = models.DateTimeField(_("recorded"), default=timezone.now, editable=False)

    class Meta:
        verbose_name = _("wallet transaction")
        verbose_name_plural = _("wallet transactions")
        ordering = ["-at", "-created_at", "id"]
        indexes = [models.Index(fields=["customer", "at"], name="billing_wallet_by_time")]
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_micro__gt=0, amount_micro__lte=MAX_AMOUNT_MICRO),
                name="billing_wallet_amount",
                violation_error_message=_("The amount of a transaction is more than 0 and at most 1,000,000,000,000."),
            ),
            models.CheckConstraint(
                condition=Q(~Q(target=WalletAccount.WALLET.value), source=WalletAccount.WALLET.value)
                | Q(~Q(source=WalletAccount.WALLET.value), target=WalletAccount.WALLET.value),
                name="billing_wallet_two_sides",
                violation_error_message=_("A transaction moves credits into the wallet or out of it."),
            ),
            models.CheckConstraint(
                condition=Q(expires_at=None) | Q(kind=TransactionKind.GRANTED.value, expires_at__gt=F("at")),
                name="billing_wallet_expiry",
                violation_error_message=_("Only free credits expire, and not before they are granted."),
            ),
            models.CheckConstraint(
                condition=~Q(reason=""),
                name="billing_wallet_reason",
                violation_error_message=_("A transaction needs a reason."),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} {money.format_amount(self.wallet_micro, self.customer.currency)}"

    @property
    def entries(self) -> list[tuple[str, int]]:
        """Return both sides as (account, millionths); their sum is 0."""
        return [(self.source, -self.amount_micro), (self.target, self.amount_micro)]

    @property
    def wallet_micro(self) -> int:
        """Return the change of the wallet, negative for credits taken from it."""
        return self.amount_micro if self.target == WalletAccount.WALLET else -self.amount_micro


class UsedUpGrant(models.Model):
    """A grant of free credits that was used up when it expired, so that no transaction takes credits back."""

    grant = models.OneToOneField(
        WalletTransaction, on_delete=models.PROTECT, primary_key=True, related_name="used_up", verbose_name=_("grant")
    )
    created_at = models.DateTimeField(_("recorded"), default=timezone.now, editable=False)

    def __str__(self) -> str:
        return str(self.grant)


class LowBalanceWarning(models.Model):
    """A warning that the customer's credits run low. The next one is sent only after they have recovered."""

    customer = models.ForeignKey(
        Customer, verbose_name=_("customer"), on_delete=models.PROTECT, related_name="warnings"
    )
    balance_micro = models.BigIntegerField(_("balance, millionths"))
    hourly_micro = models.BigIntegerField(_("hourly cost, millionths"))
    warned_at = models.DateTimeField(_("warned"))
    recovered_at = models.DateTimeField(_("recovered"), null=True, blank=True)

    class Meta:
        verbose_name = _("low balance warning")
        verbose_name_plural = _("low balance warnings")
        ordering = ["-warned_at"]
        constraints = [
            models.UniqueConstraint(fields=["customer"], condition=Q(recovered_at=None), name="billing_warning_once")
        ]

    def __str__(self) -> str:
        return f"{self.customer}: {money.format_amount(self.balance_micro, self.customer.currency)}"


class CustomerAccount(Customer):
    """The customer in billing's admin: balances, and actions on the wallet."""

    class Meta:
        proxy = True
        verbose_name = _("customer's wallet")
        verbose_name_plural = _("customers' wallets")


class Seal(models.Model):
    """Evidence of a written row and of its place in the order of writing: see seals.py. Append-only.

    `content` is the hash of the row that `subject` names, `digest` that of the seal before it, `subject` and `content`.
    """

    chain = models.CharField(_("chain"), max_length=60)
    sequence = models.PositiveIntegerField(_("sequence"))
    subject = models.CharField(_("subject"), max_length=80)
    content = models.CharField(_("hash of the content"), max_length=64)
    digest = models.CharField(_("digest"), max_length=64)

    class Meta:
        verbose_name = _("seal")
        verbose_name_plural = _("seals")
        constraints = [models.UniqueConstraint(fields=["chain", "sequence"], name="billing_seal_sequence")]

    def __str__(self) -> str:
        return f"{self.chain} {self.sequence}"
