"""Restore drills: a snapshot is restored to a temporary volume, checked, and removed again, as evidence.

`services.py` requests drills and removes what dead workers left, `running.py` is the work, `file_systems.py` and `tools.py`
check what was restored, `proof.py` says when something was last proven restorable, `views.py` shows it.
"""
