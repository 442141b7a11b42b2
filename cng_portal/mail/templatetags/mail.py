from django import template

from cng_portal.mail.models import OutgoingMail

register = template.Library()


@register.simple_tag
def latest_mail(recipient: str) -> OutgoingMail | None:
    """The newest e-mail to an address, for its state. Example: {% latest_mail address as mail %}"""
    return OutgoingMail.objects.filter(recipient=recipient).order_by("-created_at").first()
