"""The files inside snapshots: browsing, searching and downloading them.

A customer's disk is foreign data, and its parsers are C code. So no process of the portal parses it: `reader/` runs in a
child that has the image as a read-only descriptor and nothing else, and answers through a pipe. `children.py` starts it,
`services.py` decides who may read what, `views.py` shows it.
"""
