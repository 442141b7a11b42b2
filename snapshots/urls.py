from django.urls import path

from .backups import views as backups
from .models import Kind
from .views import actions, bell, bulk, cancellation, limits, machines, snapshot_list, snapshot_page, volumes, wizard

app_name = "snapshots"
urlpatterns = [
    path("snapshots/", snapshot_list.volume_snapshots, name="volume_snapshots"),
    path("snapshots/vm/", snapshot_list.vm_snapshots, name="vm_snapshots"),
    path("snapshots/new/", wizard.new, name="new"),
    path("snapshots/vm/new/", wizard.new, {"kind": Kind.VM}, name="new_vm"),
    path("snapshots/new/<uuid:draft_id>/name/check/", wizard.check_name, name="check_name"),
    path("snapshots/new/<uuid:draft_id>/<slug:step>/", wizard.step, name="wizard"),
    path("snapshots/delete/", bulk.delete_many, name="delete_many"),
    path("snapshots/<uuid:snapshot_id>/", snapshot_page.snapshot, name="snapshot"),
    path("snapshots/<uuid:snapshot_id>/row/", snapshot_list.row, name="row"),
    path("snapshots/<uuid:snapshot_id>/menu/", snapshot_list.menu, name="menu"),
    path("snapshots/<uuid:snapshot_id>/rename/", actions.rename, name="rename"),
    path("snapshots/<uuid:snapshot_id>/move/", actions.move, name="move"),
    path("snapshots/<uuid:snapshot_id>/delete/", actions.delete, name="delete"),
    path("snapshots/<uuid:snapshot_id>/restore/", actions.restore, name="restore"),
    path("snapshots/<uuid:snapshot_id>/new-volume/", actions.new_volume, name="new_volume"),
    path("snapshots/<uuid:snapshot_id>/new-machine/", actions.new_machine, name="new_machine"),
    path("snapshots/<uuid:snapshot_id>/verify/", actions.verify, name="verify"),
    path("snapshots/<uuid:snapshot_id>/pin/", backups.pin, name="pin"),
    path("snapshots/<uuid:snapshot_id>/cancel/", cancellation.cancel_snapshot, name="cancel_snapshot"),
    path("operations/<uuid:operation_id>/cancel/", cancellation.cancel, name="cancel"),
    path("operations/<uuid:operation_id>/retry/", actions.retry, name="retry"),
    path("instances/", machines.machines, name="machines"),
    path("instances/<uuid:vm_id>/", machines.machine, name="machine"),
    path("instances/<uuid:vm_id>/take-snapshot/", machines.take_snapshot_of_machine, name="take_snapshot_of_machine"),
    path("instances/<uuid:vm_id>/back-up/", backups.back_up, name="back_up"),
    path("backups/", snapshot_list.backups, name="backups"),
    path("backups/new/", wizard.new, {"kind": Kind.BACKUP}, name="new_backup"),
    path("backups/schedules/", backups.schedules, name="schedules"),
    path("backups/schedules/<uuid:schedule_id>/", backups.schedule, name="schedule"),
    path("backups/schedules/<uuid:schedule_id>/menu/", backups.schedule_menu, name="schedule_menu"),
    path("backups/schedules/<uuid:schedule_id>/edit/", backups.edit, name="edit_schedule"),
    path("backups/schedules/<uuid:schedule_id>/pause/", backups.pause, name="pause_schedule"),
    path("backups/schedules/<uuid:schedule_id>/resume/", backups.resume, name="resume_schedule"),
    path("backups/schedules/<uuid:schedule_id>/run/", backups.run, name="run_schedule"),
    path("backups/schedules/<uuid:schedule_id>/delete/", backups.delete, name="delete_schedule"),
    path("volumes/", volumes.volumes, name="volumes"),
    path("volumes/<uuid:volume_id>/", volumes.volume, name="volume"),
    path("volumes/<uuid:volume_id>/take-snapshot/", wizard.take_snapshot_of, name="take_snapshot"),
    path("work/", bell.work, name="work"),
    path("profile/limits/", limits.limits, name="limits"),
]
