"""How customers reach the provider. Nothing promises support where nothing is entered."""

from typing import Self

from django.core.exceptions import ValidationError
from django.core.validators import RegexValidator, URLValidator
from django.db import models
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _


class SupportContact(models.Model):
    """A single row, which administrators edit in Django admin."""

    id = models.PositiveSmallIntegerField(primary_key=True, default=1, editable=False)
    email = models.EmailField(_("e-mail"), blank=True)
    phone = models.CharField(
        _("phone"),
        max_length=40,
        blank=True,
        validators=[RegexValidator(r"^\+?[0-9][0-9 ()/.-]*$", _("Enter a phone number such as +95 1 234 567."))],
    )
    url = models.URLField(
        _("help desk"),
        blank=True,
        validators=[URLValidator(schemes=["https", "http"])],
        help_text=_("The address of a help desk or a chat, such as https://support.example.com."),
    )

    class Meta:
        verbose_name = _("support contact")
        verbose_name_plural = _("support contact")
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="support_contact_single")]

    def __str__(self) -> str:
        return gettext("Support contact")

    @classmethod
    def load(cls) -> Self | None:
        """The contact, or None where nothing is entered. One query."""
        contact = cls.objects.first()
        return contact if contact and any([contact.email, contact.phone, contact.url]) else None

    @property
    def phone_link(self) -> str:
        """The number for a `tel:` link (RFC 3966), without spaces and other separators."""
        return "".join(character for character in self.phone if character in "+0123456789")

    @property
    def summary(self) -> str:
        """E-mail, phone and help desk, as far as they are entered."""
        return ", ".join(filter(None, [self.email, self.phone, self.url]))

    def clean(self) -> None:
        if self._state.adding and SupportContact.objects.exists():
            raise ValidationError(_("There is a support contact already. Change that one."))
