"""What OpenStack's clients request, without and with a slash at the end. Each location has a URL of its own."""

from django.urls import path

from . import cinder, keystone, properties, snapshots, volumes

app_name = "openstack"
ROOT = "volume/<str:location>/v3/<str:project>"
SNAPSHOT, VOLUME = f"{ROOT}/snapshots/<str:snapshot_id>", f"{ROOT}/volumes/<str:volume_id>"
urlpatterns = [
    path("identity", keystone.versions, name="identity"),
    path("identity/", keystone.versions, name="identity_slash"),
    path("identity/v3", keystone.version, name="identity_v3"),
    path("identity/v3/", keystone.version, name="identity_v3_slash"),
    path("identity/v3/auth/tokens", keystone.tokens, name="tokens"),
    path("identity/v3/auth/catalog", keystone.catalog, name="catalog"),
    path("volume/<str:location>", cinder.versions, name="volume_versions"),
    path("volume/<str:location>/", cinder.versions, name="volume_versions_slash"),
    path("volume/<str:location>/v3", cinder.versions, name="volume_v3"),
    path("volume/<str:location>/v3/", cinder.versions, name="volume_v3_slash"),
    path(f"{ROOT}/volumes", volumes.volumes, name="volumes"),
    path(f"{ROOT}/volumes/detail", volumes.details, name="volume_details"),
    path(VOLUME, volumes.volume, name="volume"),
    path(f"{VOLUME}/action", volumes.action, name="volume_action"),
    path(f"{VOLUME}/metadata", properties.all_properties, name="volume_properties"),
    path(f"{VOLUME}/metadata/<str:key>", properties.one_property, name="volume_property"),
    path(f"{ROOT}/snapshots", snapshots.snapshots, name="snapshots"),
    path(f"{ROOT}/snapshots/detail", snapshots.details, name="snapshot_details"),
    path(SNAPSHOT, snapshots.snapshot, name="snapshot"),
    path(f"{SNAPSHOT}/metadata", properties.all_properties, name="snapshot_properties"),
    path(f"{SNAPSHOT}/metadata/<str:key>", properties.one_property, name="snapshot_property"),
    path(f"{ROOT}/limits", cinder.limits, name="limits"),
    path(f"{ROOT}/os-quota-sets/<str:quota_project>", cinder.quotas, name="quotas"),
    path(f"{ROOT}/os-availability-zone", cinder.zones, name="zones"),
    path(f"{ROOT}/types", cinder.types, name="types"),
    path(f"{ROOT}/types/<str:type_id>", cinder.volume_type, name="volume_type"),
]
