"""A sweep: its cells, and their measurement into a report.

`verbs` has `run` and `predict`, `plan` makes the cells for the `machine`, and `session` chooses the report. `measuring` takes the
plan from there: `runner` has the cells measured one after the other by the launcher of `local`, and `timekeeper` then times those
that are compared to each other, in turn. A `watcher` is informed of all that.
"""
